"""`bluedit models` and `bluedit methods`: what is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluedit.cli.options import AsJson, Quiet

if TYPE_CHECKING:
    from bluedit.editors.base import Editor

__all__ = ["methods", "models"]


def models(quiet: Quiet = False, as_json: AsJson = False) -> None:
    """List the models whose critical layers and settings are known."""
    from bluedit.cli import console
    from bluedit.editors.presets import PRESETS
    from bluedit.models.embedded import EMBEDDED
    from bluedit.reports.tables import short

    def where(model: dict[str, Any]) -> str:
        if model["embedded"]:
            return f"{model['name']} (embedded)"
        if model["download"] is None:
            return model["name"]
        got = f"cached, from the {model['download']['source']}" if model["download"]["here"] else f"bluedit get {model['name']}"
        return f"{model['name']}\n({got})"

    document: list[dict[str, Any]] = [
        {
            "name": known.name,
            "embedded": known.name in EMBEDDED,
            "download": _download(known.name),
            "recognised_by": dict(known.shape),
            "layers": list(known.layers),
            "boundary": [known.layers[0], known.layers[-1]],
            "one_layer": dict(known.one_layer),
            "settings": {key or "all methods": dict(values) for key, values in known.settings.items()},
            "corpus": known.corpus,
        }
        for known in PRESETS
    ]
    if as_json:
        from bluedit.results.known import ModelsResult

        console.emit(ModelsResult.of({"models": document}))
        return
    table = console.Table(["model", "recognised by", "critical layers", "settings"], text=4)
    for model in document:
        settings = "\n".join(
            f"{key}: {', '.join(f'{name}={short(value)}' for name, value in values.items())}"
            for key, values in model["settings"].items()
        )
        table.add(
            where(model),
            "\n".join(f"{name}={value}" for name, value in model["recognised_by"].items()),
            f"{model['layers'][0]}-{model['layers'][-1]}",
            settings,
        )
    console.show(table)
    console.say("any other causal language model with a known layout can be edited with --layers and --corpus")


def _download(name: str) -> dict[str, Any] | None:
    """Whether a model that bluedit gets is here, and where it is from; None for models that it does not get."""
    from bluedit.models.embedded import DOWNLOADS
    from bluedit.models.getting import model_got, origin_of

    if name not in DOWNLOADS:
        return None
    folder = model_got(name)
    origin = (origin_of(folder) if folder else None) or {}
    keys = ("source", "from", "revision", "fingerprint")
    return {"here": folder is not None, "folder": str(folder) if folder else None} | {key: origin.get(key) for key in keys}


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A method whose settings to explain.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """List the editing methods, published and installed; or explain the settings of one."""
    from bluedit.cli import console

    console.load()
    from bluedit.methods import METHODS, find_method, installed_methods

    chosen = METHODS | installed_methods() if name is None else {name: find_method(name)}
    document: list[dict[str, Any]] = [
        {
            "name": method.name,
            "summary": method.summary,
            "strategy": method.strategy.name,
            "caches_keys": method.caches_keys,
            "largest_batch": method.largest_batch,
            "settings": {name: value for name, value in method.settings.as_dict().items() if name in method.uses},
            "reference": method.reference,
            "installed": method.name not in METHODS,
        }
        | ({} if name is None else {"described": _described(method)})
        for method in chosen.values()
    ]
    if as_json:
        from bluedit.results.known import MethodsResult

        console.emit(MethodsResult.of({"methods": document}))
    elif name is None:
        table = console.Table(["method", "what it does", "own strategy", "settings"], text=4)
        for method in document:
            table.add(method["name"], method["summary"], method["strategy"], ", ".join(method["settings"]))
        console.show(table)
        console.say("every method but those that train one weight also takes BLUE's strategy: --strategy boundary")
        console.say("`bluedit methods NAME` explains the settings of one")
    else:
        _show(document[0])


def _described(method: Editor) -> list[dict[str, Any]]:
    """The settings of a method one by one."""
    from bluedit.reports.settings import settings_of

    return [
        {
            "name": one.name,
            "type": one.type,
            "default": one.default,
            "bounds": one.bounds,
            "unit": one.unit,
            "meaning": one.sentence,
        }
        for one in settings_of(method)
    ]


def _show(method: dict[str, Any]) -> None:
    """One method and its settings, for people."""
    from bluedit.cli import console
    from bluedit.reports.tables import short

    table = console.Table(["setting", "type", "default", "range", "unit", "meaning"], title=_headline(method), text=6)
    for one in method["described"]:
        table.add(one["name"], one["type"], short(one["default"]), one["bounds"], one["unit"], one["meaning"])
    console.show(table)
    first = method["described"][0]
    console.say(f"set them with --set NAME=VALUE, as in --set {first['name']}={short(first['default'])}")


def _headline(method: dict[str, Any]) -> str:
    reference = f" ({method['reference']})" if method["reference"] else ""
    return f"{method['name']}: {method['summary']}{reference}"
