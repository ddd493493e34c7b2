"""`bluedit stats`: second moments of keys, ahead of the edits that need them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluedit.cli.options import AsJson, Device, Dtype, Force, Model, ModuleMap, Quiet, TrustRemoteCode
from bluedit.editors.layers import parse_layers
from bluedit.errors import SettingsError

if TYPE_CHECKING:
    from bluedit.models import EditableModel
    from bluedit.statistics import Collection, Corpus, SecondMoment, Statistics

__all__ = ["stats"]


def stats(
    model: Model,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers, such as 4-8 or 4,5,6,7,8; optional for known models.")
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            help="text:FILE with one document per line, jsonl:FILE, hub:NAME[:CONFIG], world:SEED, zoo:MODEL, or stats:FILE.",
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Use at most N documents; all by default.")] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length", min=1, metavar="TOKENS", help="Truncate documents to this length; the context length by default."
        ),
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(
            "--until",
            min=0,
            metavar="ERROR",
            help="Stop once the estimated relative error of an edit is at most this, e.g. 0.1.",
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure how well the moments converge, at twice the memory.")
    ] = True,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Also export the moments to one file.")
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Store the moments of an exported file instead of computing any."),
    ] = None,
    save_every: Annotated[
        float, typer.Option("--save-every", min=0, metavar="SECONDS", help="How often to save an unfinished pass.")
    ] = 60.0,
    device: Device = None,
    dtype: Dtype = None,
    force: Force = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compute second moments of keys over a text, export or import them. An interrupted pass resumes.

    `bluedit edit` finds them if you give it the same model, corpus and samples.
    """
    chosen = parse_layers(layers) if layers else None
    if import_ is not None and any(option is not None for option in (layers, corpus, samples, max_length, until, export)):
        raise SettingsError("--import takes layers, corpus and samples from the file; give --model and --import only")

    from bluedit.cli import console

    console.load()
    from bluedit.statistics import SharedStatistics, Statistics, read_corpus
    from bluedit.statistics.export import EXPORT
    from bluedit.storage.files import writable_target

    # What can be wrong without the model is looked at before the model is loaded.
    if export is not None:
        writable_target(export, replace=force, kind=EXPORT)
    shared = SharedStatistics.open(import_) if import_ is not None else None
    source = read_corpus(corpus) if corpus else None
    if source is not None and source.shared is not None and export is not None:
        raise SettingsError(f"{corpus} is such a file already; copy it instead of --export")

    from bluedit.models import load_model

    with console.bars(f"loading {model}") as bars:
        editable = load_model(
            model, device=device, dtype=dtype, module_map=module_map, trust_remote_code=trust_remote_code, progress=bars
        )
        if shared is not None:
            moments = Statistics().adopt(editable, shared)
            about: dict[str, Any] = shared.origin.model_dump(include={"corpus", "samples", "max_length"})
            about["imported"] = str(import_)
        else:
            wanted, source = _wanted(editable, chosen, source)
            statistics = Statistics(
                source, samples, max_length=max_length, measured=measure, until=until, save_every=save_every
            )
            collection = statistics.collect(
                editable,
                wanted,
                progress=lambda done, total: bars("second moments of keys", done, total),
                starting=lambda layers: _state_memory(editable, layers, measured=measure or until is not None),
            )
            moments = {layer: collection.moments[layer] for layer in wanted}
            about = _account(source, statistics, collection, editable)
            if export is not None:
                statistics.export(export, editable, collection, model, replace=force)
                about["exported"] = str(export)
    document = {"model": model} | about | _described(moments)
    if as_json:
        from bluedit.results.commands import StatsResult

        console.emit(StatsResult.of(document))
        return
    console.show(_report(document, moments))
    if export is not None:
        console.say(f"written to {export}; elsewhere: bluedit edit --corpus stats:{export}, or bluedit stats --import {export}")
    if document["samples"] != samples and shared is None and source is not None and source.shared is None:
        console.say(f"converged; bluedit edit finds them with --samples {document['samples']}")


def _wanted(model: EditableModel, layers: tuple[int, ...] | None, source: Corpus | None) -> tuple[tuple[int, ...], Corpus]:
    """Layers and corpus: those that were named, or those known for the model."""
    from bluedit.editors.presets import find_preset
    from bluedit.statistics import read_corpus

    known, depth = find_preset(model.model.config), model.structure.depth
    if known is not None:
        layers = layers or known.layers
        source = source or (read_corpus(known.corpus) if known.corpus else None)
    if layers is None:
        raise SettingsError(f"the critical layers of this model (of {depth} layers) are not known; name them: --layers 4-8")
    if source is None:
        raise SettingsError("no corpus is known for this model; name one: --corpus text:FILE")
    if layers[-1] >= depth:
        raise SettingsError(f"layer {layers[-1]} is not in this model: it has layers 0 to {depth - 1}")
    return layers, source


def _account(source: Corpus, statistics: Statistics, collection: Collection, model: EditableModel) -> dict[str, Any]:
    """What was asked for, and what it took; null where nothing was computed."""
    origin = source.shared.origin if source.shared else None
    return {
        "corpus": source.name,
        "samples": collection.samples,
        "max_length": origin.max_length if origin else statistics.length(model),
        "until": statistics.until,
        "computed": list(collection.computed),
        "resumed_from": collection.resumed,
        "seconds": round(collection.seconds, 3),
        "tokens_per_second": collection.tokens_now / collection.seconds if collection.tokens_now else None,
        "padding_share": 1 - collection.tokens / collection.padded if collection.padded else None,
    }


def _described(moments: dict[int, SecondMoment]) -> dict[str, Any]:
    first = next(iter(moments.values()))
    return {
        "documents": first.documents,
        "tokens": first.tokens,
        "layers": {
            str(layer): {
                "file": str(moment.file) if moment.file and moment.file.exists() else None,
                "curve": [point.model_dump() for point in moment.curve],
            }
            for layer, moment in moments.items()
        },
    }


def _state_memory(model: EditableModel, layers: Sequence[int], *, measured: bool) -> None:
    """Say how much memory a pass needs in addition to the model, before it starts."""
    from bluedit.cli import console
    from bluedit.models.memory.machine import memory_of
    from bluedit.statistics import Pass

    needed, free = Pass.memory(model, layers, measured=measured), memory_of(model.device).free
    size = model.structure.d_ff
    console.say(
        f"{len(layers)} second moments, {size:,} x {size:,}: {needed / 2**30:.2f} GiB in addition to the model, "
        f"{free / 2**30:.2f} GiB are free"
    )
    if needed > free:
        console.warn("that is more than is free; use fewer layers at a time, or --no-measure, which halves it")


def _report(document: dict[str, Any], moments: dict[int, SecondMoment]) -> Any:
    """For people: what is stored now, how fast it was computed, and how well it has converged."""
    from rich.console import Group

    from bluedit.cli.console import Table

    lines = [
        f"second moments of layers {', '.join(document['layers'])} of {document['model']} over {document['corpus']}: "
        f"{document['documents']:,} documents, {document['tokens']:,} tokens"
    ]
    if document.get("tokens_per_second"):
        since = f" since document {document['resumed_from']:,}" if document["resumed_from"] else ""
        lines.append(
            f"{document['tokens_per_second']:,.0f} tokens/s{since}, {document['seconds']:.1f} s, "
            f"{100 * document['padding_share']:.1f} % padding"
        )
    elif "imported" not in document:
        lines.append("already stored; nothing was computed")
    if not any(moment.curve for moment in moments.values()):
        return Group(*lines)
    measured = {layer: moment.curve for layer, moment in moments.items() if moment.curve}
    table = Table(["documents", "tokens", *(f"layer {layer}" for layer in measured)], text=0)
    for points in zip(*measured.values(), strict=False):
        cells = (f"{_percent(point.change)} ({_percent(point.moment)})" for point in points)
        table.add(f"{points[0].documents:,}", f"{points[0].tokens:,}", *cells)
    return Group(*lines, "estimated relative error, percent: of the update for one fact, and in brackets of C", table)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2g}"
