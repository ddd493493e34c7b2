"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluedit import renamed
from bluedit.errors import SettingsError, excerpt

if TYPE_CHECKING:
    from bluedit.editors.base import Editor

__all__ = [
    "AsJson",
    "Assignments",
    "Chat",
    "Check",
    "CorpusName",
    "Device",
    "Dtype",
    "Force",
    "Layers",
    "Limit",
    "MethodName",
    "Model",
    "ModuleMap",
    "OnConflict",
    "Quiet",
    "Samples",
    "Seed",
    "StrategyName",
    "Templates",
    "TraceFacts",
    "TrustRemoteCode",
    "given_as",
    "layers_asked",
    "parse_assignments",
    "read_method",
    "read_templates",
]

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="NAME", help="A folder, a GGUF file, a hub name, or a name that `bluedit models` lists."
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; by default a GPU if there is one. auto: all GPUs."),
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16, float16, or auto for the checkpoint's own.")
]
MethodName = Annotated[str, typer.Option("--method", help="The editing method; `bluedit methods` lists them.")]
StrategyName = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        help="even, square-root, boundary (BLUE), each-layer, single:LAYER. The default is boundary, or single for "
        "methods that edit one layer.",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        help="Critical layers, such as 1-4 or 1,2,3,4; optional for known models. auto: choose them by causal tracing.",
    ),
]
TraceFacts = Annotated[
    str | None,
    typer.Option(
        "--trace-facts",
        metavar="FILE",
        help="With --layers auto: trace these facts to choose layers; by default, use the last `bluedit trace` of this model.",
    ),
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the method, e.g. lambda=5.")
]
CorpusName = Annotated[
    str | None,
    typer.Option(
        "--corpus",
        help="Where second moments come from: text:FILE, jsonl:FILE, hub:NAME, world:SEED, zoo:MODEL, "
        "stats:FILE (`bluedit stats`).",
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="Documents of the corpus to use; all by default.")]
Templates = Annotated[
    Path | None, typer.Option("--templates", help="JSON list of context templates; the model writes them by default.")
]
Seed = Annotated[int, typer.Option("--seed", help="Random seed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output, and nothing else.")]


def _hush(quiet: bool) -> None:
    from bluedit.cli import console

    console.hush(quiet)


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_hush, help="Print only errors on standard error: no progress, notes or warnings."),
]
"""Acts when it is read."""
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Use only the first N records.")]
OnConflict = Annotated[
    str,
    typer.Option(
        "--on-conflict",
        metavar="HOW",
        help="When facts give one question two targets: error refuses them, last uses the later one, keep uses both.",
    ),
]
Check = Annotated[bool, typer.Option("--check/--no-check", help="Refuse a patch that was made for other weights.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier output.")]
ModuleMap = Annotated[
    Path | None,
    typer.Option(
        "--module-map", metavar="FILE", help="A file with the module paths of the model, for layouts that are not recognised."
    ),
]
Chat = Annotated[bool, typer.Option("--chat", help="Put every prompt into the model's chat template, as a user message.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint.")]


def parse_assignments(values: list[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping; the values stay text until the settings check them.

    **Raises** :class:`~bluedit.errors.SettingsError` where there is no `=`.
    """
    assignments: dict[str, Any] = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not separator or not name.strip():
            raise SettingsError(f"--set {excerpt(value)} is not a setting; write --set key=value, as in --set lambda=5")
        assignments[name.strip()] = text.strip()
    for old in assignments.keys() & renamed.SETTINGS.keys():
        _say_renamed(f"setting {old}", renamed.SETTINGS[old])
    return renamed.present_names(assignments, renamed.SETTINGS)


def given_as(old: str, earlier: str | None, value: str) -> str:
    """The value of an option, from its earlier name where that was written, with a warning."""
    if earlier is None:
        return value
    _say_renamed(f"option {old}", renamed.OPTIONS[old])
    return earlier


def _say_renamed(what: str, now: str) -> None:
    from bluedit.cli import console

    console.say(f"the {what} is now called {now}; the old name goes with the next release")


def read_method(name: str, strategy: str | None) -> Editor:
    """The method that is edited with: BLUE's strategy where none is named, but for methods that edit one layer or none."""
    from bluedit.methods import find_method
    from bluedit.strategies import find_strategy

    method = find_method(name)
    if strategy or not (method.strategy.one_layer or method.strategy.fixed_layers == ()):
        method = method.with_strategy(find_strategy(strategy or "boundary"))
    return method


def layers_asked(layers: str | None, trace_facts: str | None) -> tuple[tuple[int, ...] | None, bool]:
    """The critical layers that are named, if any, and whether they are to be chosen by tracing."""
    from bluedit.editors.layers import parse_layers

    automatic = layers == "auto"
    if trace_facts and not automatic:
        raise SettingsError("--trace-facts needs --layers auto; add --layers auto")
    return (parse_layers(layers) if layers and not automatic else None), automatic


def read_templates(path: Path | None) -> tuple[str, ...] | None:
    """Context templates from a JSON list of texts."""
    from bluedit.storage.parsing import read_json

    if path is None:
        return None
    try:
        templates = read_json(path)
    except (OSError, ValueError) as error:
        raise SettingsError(f"the templates file {path} cannot be read: {error}") from error
    if not isinstance(templates, list) or not all(isinstance(template, str) for template in templates):
        raise SettingsError(f'{path} must hold a JSON list of texts, such as ["{{}}", "I know that. {{}}"]')
    return tuple(templates)
