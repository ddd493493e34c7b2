"""`bluedit edit`: facts into a patch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluedit.cli.options import (
    AsJson,
    Chat,
    Device,
    Dtype,
    Force,
    Limit,
    Model,
    ModuleMap,
    Seed,
    TrustRemoteCode,
    parse_assignments,
    read_method,
    read_templates,
)
from bluedit.errors import SettingsError
from bluedit.layers import parse_layers

if TYPE_CHECKING:
    from bluedit.cli.console import Bars
    from bluedit.datasets import Case
    from bluedit.editing import Plan
    from bluedit.methods import Method
    from bluedit.models import EditableModel
    from bluedit.patches import Patch
    from bluedit.tracing.kept import Choice

__all__ = ["edit"]

_LARGE = 4 * 2**30
"""Bytes of weights from which on the memory plan is said."""

_EMBEDDED_FACTS = ("world:counterfact:0:2", 60)
"""What an embedded model's layers are chosen on: a draw of its own, on which nothing is reported."""


def edit(
    model: Model,
    facts: Annotated[Path, typer.Option("--facts", "-f", help="JSONL, JSON or CSV of facts, CounterFact or zsRE records.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the patch goes: a folder, or one .safetensors file.")],
    method: Annotated[str, typer.Option("--method", help="The editing method; `bluedit methods` lists them.")] = "memit",
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            help="even, square-root, boundary (BLUE), each-layer, single:LAYER. The default is boundary; methods that edit one "
            "layer keep it.",
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            help="Critical layers, 1-4 or 1,2,3,4; may be left out for known models. auto: chosen by causal tracing.",
        ),
    ] = None,
    trace_facts: Annotated[
        str | None,
        typer.Option(
            "--trace-facts",
            metavar="FILE",
            help="With --layers auto: choose them on these facts; by default on the last `bluedit trace` of this model.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the method, e.g. lambda=5.")
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            help="Where second moments come from: text:FILE, jsonl:FILE, hub:NAME, world:SEED, stats:FILE (`bluedit stats`).",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Documents of the corpus to use; all by default.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, metavar="N", help="Edit in sequence, N facts at a time; all at once by default."),
    ] = None,
    session: Annotated[
        Path | None, typer.Option("--session", help="Keep the sequence in this folder after each batch, and go on from there.")
    ] = None,
    templates: Annotated[
        Path | None, typer.Option("--templates", help="JSON list of context templates; the model writes them by default.")
    ] = None,
    limit: Limit = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    force: Force = False,
    chat: Chat = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Write facts into a model, as a patch. The model's own files are not touched."""
    automatic = layers == "auto"
    critical = parse_layers(layers) if layers and not automatic else None
    overrides = parse_assignments(settings or [])
    if trace_facts and not automatic:
        raise SettingsError("--trace-facts is what --layers auto chooses on; say --layers auto too")
    # What can be wrong without the model is looked at before the model is loaded.
    chosen = read_method(method, strategy)
    chosen.override(overrides)
    if session and not batch_size:
        raise SettingsError("--session keeps a sequence; say how many facts a batch has with --batch-size")
    from bluedit.datasets import read_cases, read_known
    from bluedit.errors import DatasetError, FactError
    from bluedit.facts import check_facts

    try:
        checked = check_facts(case.fact for case in read_cases(facts, limit=limit))
    except FactError as error:
        raise DatasetError(str(facts), [str(error)]) from error
    traced = read_known(trace_facts) if trace_facts else None
    chosen.check_batch(min(batch_size or len(checked), len(checked)))
    contexts = read_templates(templates)

    from bluedit.cli import console
    from bluedit.editing import plan_edit
    from bluedit.files import writable_target
    from bluedit.models import load_model
    from bluedit.patches.patch import MANIFEST_NAME
    from bluedit.sessions import edit_in_sequence
    from bluedit.statistics import Statistics, read_corpus

    writable_target(out, replace=force, marker=MANIFEST_NAME)
    source = Statistics(read_corpus(corpus), samples) if corpus else None
    with console.bars() as bars:
        editable = load_model(
            model, device=device, dtype=dtype, module_map=module_map, trust_remote_code=trust_remote_code, chat=chat
        )
        if automatic and not chosen.strategy.fixed_layers:
            choice = _choose(editable, model, traced, seed, bars)
            critical = choice.layers_for(chosen.strategy)
            console.say(
                f"layers {choice} chosen by causal tracing of {choice.facts} facts; edited: {_listed(chosen, critical)}"
            )
        plan = plan_edit(
            editable, (), method=chosen, layers=critical, settings=overrides, corpus=source, templates=contexts, seed=seed
        )
        _say_memory(editable, plan)
        patch = edit_in_sequence(editable, plan, checked, batch_size or max(1, len(checked)), session, bars)
        patch.save(out, replace=force)
    if as_json:
        console.emit({"patch": str(out), **_document(patch)})
    else:
        from bluedit.cli.patch import describe

        console.show(describe(patch))
        console.say(f"written to {out}; apply it with: bluedit patch apply {out} --model {model} --out FOLDER")


def _say_memory(editable: EditableModel, plan: Plan) -> None:
    """For models whose memory is a question: what the edit will take, before it takes it."""
    from bluedit.cli import console
    from bluedit.doctor import plan_for, plan_line

    expected = plan_for(editable.model, editable.structure, plan.method, plan.layers, plan.settings, editable.dtype)
    if expected.weights > _LARGE:
        console.say(plan_line(expected, editable.device))


def _choose(editable: EditableModel, name: str, traced: list[Case] | None, seed: int, bars: Bars) -> Choice:
    """The layers that a trace of `traced` shows, or else the kept trace of this model; an embedded model has facts of its
    own."""
    from bluedit.datasets import read_dataset
    from bluedit.tracing.choice import layers_by_tracing
    from bluedit.tracing.kept import recall
    from bluedit.zoo import EMBEDDED

    if traced is None:
        try:
            return recall(editable)
        except SettingsError:
            if name not in EMBEDDED:
                raise
        traced = read_dataset(*_EMBEDDED_FACTS)
    return layers_by_tracing(editable, traced, seed=seed, progress=bars)


def _listed(method: Method, layers: tuple[int, ...]) -> str:
    return ", ".join(str(step.layer) for step in method.strategy.steps(layers))


def _document(patch: Patch) -> dict[str, Any]:
    """What `--json` prints of a patch."""
    manifest = patch.manifest
    ids = [fact.id for fact in manifest.facts]
    return {
        "facts": [record.model_dump() for record in manifest.facts],
        "batches": list(manifest.batches),
        "method": manifest.method,
        "strategy": manifest.strategy,
        "layers": list(manifest.layers),
        "settings": manifest.settings,
        "evaluations": {str(record.layer): dict(zip(ids, record.evaluations, strict=True)) for record in manifest.optimisation},
        "losses": {str(record.layer): dict(zip(ids, record.losses, strict=True)) for record in manifest.optimisation},
        "weights": {name: record.model_dump() for name, record in manifest.weights.items()},
        "seconds": manifest.seconds,
    }
