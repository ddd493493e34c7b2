"""`bluedit edit`: facts into a patch."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bluedit.cli.gates import Gates, show_plan
from bluedit.cli.options import (
    AsJson,
    Assignments,
    Chat,
    CorpusName,
    Device,
    Dtype,
    Force,
    Layers,
    Limit,
    MethodName,
    Model,
    ModuleMap,
    OnConflict,
    Quiet,
    Samples,
    Seed,
    StrategyName,
    Templates,
    TraceFacts,
    TrustRemoteCode,
    layers_asked,
    parse_assignments,
    read_method,
    read_templates,
)
from bluedit.errors import NotPassedError, SettingsError

if TYPE_CHECKING:
    from bluedit.cli.console import Bars
    from bluedit.datasets import Case
    from bluedit.editing import Setup
    from bluedit.edits import Edit, Ledger
    from bluedit.facts import Fact
    from bluedit.models import EditableModel

__all__ = ["edit"]

_LARGE = 4 * 2**30
"""Bytes of weights from which on the memory plan is said."""


def edit(
    model: Model,
    facts: Annotated[Path, typer.Option("--facts", "-f", help="JSONL, JSON or CSV of facts, CounterFact or zsRE records.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where the patch goes: a folder, or one .safetensors file. Not needed with a ledger."),
    ] = None,
    method: MethodName = "memit",
    strategy: StrategyName = None,
    layers: Layers = None,
    trace_facts: TraceFacts = None,
    assignments: Assignments = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            "--settings", metavar="FILE", help="Settings and layers that `bluedit tune` found; --set takes precedence."
        ),
    ] = None,
    corpus: CorpusName = None,
    samples: Samples = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, metavar="N", help="Edit in sequence, N facts at a time; all at once by default."),
    ] = None,
    session: Annotated[
        Path | None,
        typer.Option("--session", help="Save the session in this folder after each batch; the same command resumes it."),
    ] = None,
    max_damage: Annotated[
        float | None,
        typer.Option(
            "--max-damage",
            min=0,
            metavar="X",
            help="Fail if specificity falls by more than X points, or perplexity on --text rises by more than X percent. The "
            "patch is then written, marked as failed, and the exit code is 1.",
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="CORPUS", help="Held-out text for --max-damage: text:FILE, as a corpus.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the edit would do and take, and edit nothing.")] = False,
    templates: Templates = None,
    limit: Limit = None,
    on_conflict: OnConflict = "error",
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    force: Force = False,
    chat: Chat = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write facts into a model, as a patch. The model's own files are not touched.

    With a ledger (`bluedit log`) as --model, edit its model as the head has it; every batch becomes a version."""
    from bluedit.cli import console

    console.load()
    critical, automatic = layers_asked(layers, trace_facts)
    overrides = parse_assignments(assignments or [])
    # What can be wrong without the model is looked at before the model is loaded.
    chosen = read_method(method, strategy)
    chosen.override(overrides)
    ledger = _ledger(model, out, session, batch_size, dry_run)
    from bluedit.datasets import read_known
    from bluedit.facts import check_on_conflict
    from bluedit.tuning import read_tuning

    conflict = check_on_conflict(on_conflict)
    checked, cases = _read_facts(facts, limit, conflict)
    gates = Gates(checked, cases, max_damage, text)
    traced = read_known(trace_facts) if trace_facts else None
    tuned = read_tuning(settings) if settings else None
    chosen.check_batch(min(batch_size or len(checked), len(checked)))
    contexts = read_templates(templates)

    from bluedit.cli.automatic import traced_layers
    from bluedit.editing import prepare
    from bluedit.edits.base import PATCH
    from bluedit.sessions import edit_in_sequence
    from bluedit.statistics import Statistics, read_corpus
    from bluedit.storage.files import writable_target

    if out and not dry_run:
        writable_target(out, replace=force, kind=PATCH)
    source = Statistics(read_corpus(corpus), samples) if corpus else None
    with _claims(out, session), console.bars(f"loading {model}") as bars:
        editable = _load(
            ledger or model, device=device, dtype=dtype, module_map=module_map, trust_remote_code=trust_remote_code,
            chat=chat, progress=bars,
        )  # fmt: skip
        if automatic and chosen.strategy.fixed_layers is None:
            critical = traced_layers(editable, model, chosen, traced, seed, bars)
        if tuned:
            overrides = tuned.settings_for(editable, chosen) | overrides
        bars("preparing the edit", 0, None)
        setup = prepare(
            editable, method=chosen, layers=critical or (tuned.layers if tuned else None), settings=overrides, corpus=source,
            templates=contexts, seed=seed, on_conflict=conflict,
        )  # fmt: skip
        with _as_edited(ledger, editable):
            gates.before(editable, setup, batch_size, bars)
        if dry_run:
            return show_plan(editable, setup, len(checked), batch_size, gates, as_json)
        _say_memory(editable, setup)
        if ledger:
            patch = _into(ledger, editable, setup, checked, batch_size, bars)
        else:
            patch = edit_in_sequence(editable, setup, checked, batch_size or max(1, len(checked)), session, bars)
        with _as_edited(ledger or patch, editable):
            patch = patch.redescribed(failed=gates.after(editable, bars))
        if out:
            patch.save(out, replace=force)
    _report(patch, out, model, ledger, gates, as_json)
    return None


def _into(
    ledger: Ledger, model: EditableModel, setup: Setup, facts: Sequence[Fact], batch_size: int | None, bars: Bars
) -> Edit:
    from bluedit.cli import console
    from bluedit.sessions import edit_into_ledger

    before = ledger.head.number
    edit = edit_into_ledger(ledger, model, setup, facts, batch_size, progress=bars)
    if facts and ledger.head.number == before:
        console.say(f"version {before} has these facts already, edited in the same way: nothing was edited")
    return edit


@contextmanager
def _as_edited(edited: Ledger | Edit | None, model: EditableModel) -> Generator[None]:
    """The model with an edit, or as the head of a ledger has it, while the block runs."""
    from bluedit.edits import Edit
    from bluedit.edits.base import arrange

    if isinstance(edited, Edit):
        edited.apply(model, check=False)
    elif edited is not None:
        edited.restore(model)
    try:
        yield
    finally:
        arrange([], model)


def _ledger(model: str, out: Path | None, session: Path | None, batch_size: int | None, dry_run: bool) -> Ledger | None:
    """The ledger that `--model` names, if it is one.

    **Raises** :class:`~bluedit.errors.SettingsError` for options that do not go together.
    """
    from bluedit.edits.ledger import Ledger, is_ledger

    if not is_ledger(model):
        if out is None and not dry_run:
            raise SettingsError("say where the patch goes: --out PATCH; only a ledger (`bluedit log`) keeps its edits itself")
        if session and not batch_size:
            raise SettingsError("--session saves a sequence of batches; set the number of facts per batch with --batch-size")
        return None
    if session:
        raise SettingsError(f"{model} is a ledger, which saves its sequences itself; leave --session out")
    return Ledger.open(model)


def _load(source: Ledger | str, **options: Any) -> EditableModel:
    from bluedit.cli.opening import ledger_model
    from bluedit.models import load_model

    return load_model(source, **options) if isinstance(source, str) else ledger_model(source, **options)


@contextmanager
def _claims(*paths: Path | None) -> Generator[None]:
    """The outputs that are named, held for this process."""
    from bluedit.storage.locks import claimed

    with ExitStack() as stack:
        for path in paths:
            if path is not None:
                stack.enter_context(claimed(path))
        yield


def _report(patch: Edit, out: Path | None, model: str, ledger: Ledger | None, gates: Gates, as_json: bool) -> None:
    from bluedit.cli import console

    if as_json:
        from bluedit.results.edits import EditResult

        document = {"patch": str(out) if out else None, **_document(patch), **gates.as_dict()}
        console.emit(EditResult.of(document | {"failed": patch.manifest.failed}))
    else:
        from bluedit.cli.patch import describe

        console.show(describe(patch))
        gates.show()
        if ledger:
            console.say(f"version {ledger.head.number} of {model}; undo it with: bluedit log undo {model}")
        if out:
            console.say(f"written to {out}; apply it with: bluedit patch apply {out} --model {model} --out FOLDER")
    if patch.manifest.failed:
        raise NotPassedError(f"the edit did not pass: {patch.manifest.failed}")


def _read_facts(
    path: Path, limit: int | None, on_conflict: Literal["error", "last", "keep"]
) -> tuple[tuple[Fact, ...], list[Case]]:
    """The facts of a file, checked together, and the cases that they are from.

    **Raises** :class:`~bluedit.errors.DatasetError` for facts that contradict one another.
    """
    from bluedit.datasets import read_cases
    from bluedit.errors import DatasetError, FactError
    from bluedit.facts import check_facts

    try:
        cases = read_cases(path, limit=limit, on_conflict=on_conflict)
        facts = check_facts((fact for case in cases for fact in case.facts), on_conflict=on_conflict)
    except FactError as error:
        raise DatasetError(str(path), [str(error)]) from error
    kept = {(fact.prompt, fact.subject, fact.target) for fact in facts}
    return facts, [case for case in cases if (case.fact.prompt, case.fact.subject, case.fact.target) in kept]


def _say_memory(editable: EditableModel, setup: Setup) -> None:
    """For models whose memory is a question: what the edit will take, before it takes it."""
    from bluedit.cli import console
    from bluedit.doctor import plan_for, plan_line

    expected = plan_for(editable.model, editable.structure, setup.method, setup.layers, setup.settings, editable.dtype)
    if expected.weights > _LARGE:
        console.say(plan_line(expected, editable.device))


def _document(patch: Edit) -> dict[str, Any]:
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
        "remaining": {
            str(record.layer): dict(zip(ids, record.remaining, strict=True))
            for record in manifest.optimisation
            if record.remaining is not None
        },
        "weights": {name: record.model_dump() for name, record in manifest.weights.items()},
        "seconds": manifest.seconds,
    }
