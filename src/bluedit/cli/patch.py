"""`bluedit patch`: look at patches, put them into checkpoints, take them out again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluedit.cli.options import AsJson, Check, Device, Force, Model, ModuleMap, Quiet, TrustRemoteCode

if TYPE_CHECKING:
    from bluedit.edits import Edit
    from bluedit.results import Record

__all__ = ["PatchPath", "app", "describe"]

app = typer.Typer(no_args_is_help=True, help="Show, compare, apply and revert patches; take single facts out.")

PatchPath = Annotated[Path, typer.Argument(metavar="PATCH", help="A patch folder or .safetensors file.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder the checkpoint is written to.")]


@app.command()
def show(patch: PatchPath, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Show what a patch edits, how, and how large it is."""
    from bluedit.cli import console

    console.load()
    from bluedit.edits import load_edit

    loaded = load_edit(patch)
    if as_json:
        from bluedit.results.edits import PatchShowResult

        console.emit(PatchShowResult.of({"patch": str(patch), **loaded.summary()}))
    else:
        console.show(describe(loaded))


@app.command()
def apply(
    patch: PatchPath,
    model: Model,
    out: Out,
    check: Check = True,
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="Dtype of the written weights; the checkpoint's own by default."),
    ] = None,
    force: Force = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint with the patch applied. The original weights are stored with it, for `revert`.

    A GGUF file becomes a Hugging Face folder of dequantised weights."""
    from bluedit.cli import console

    console.load()
    from bluedit.cli.applying import write_checkpoint
    from bluedit.edits import load_edit
    from bluedit.edits.export.card import card
    from bluedit.edits.export.outputs import write_card

    loaded = load_edit(patch)
    with console.bars(f"loading {model}") as bars:
        exported, others = write_checkpoint(
            loaded, model, out, check=check, device=device, dtype=dtype or "auto", module_map=module_map, force=force,
            trust_remote_code=trust_remote_code, bars=bars,
        )  # fmt: skip
        write_card(exported, card(exported, loaded))
    if others:
        console.say(f"copied as they are, without the patch: {', '.join(others)}")
    from bluedit.results.edits import PatchApplyResult

    if loaded.manifest.failed:
        console.warn(f"this patch did not pass when it was made: {loaded.manifest.failed}")
    result = PatchApplyResult(checkpoint=str(out), model=model, patch=str(patch), weights=sorted(loaded.changes))
    _report(as_json, result, f"written to {out}")


@app.command()
def revert(
    model: Annotated[str, typer.Option("--model", "-m", help="A checkpoint folder written by `patch apply`.")],
    out: Out,
    patch: Annotated[
        Path | None, typer.Argument(metavar="[PATCH]", help="The patch to revert; by default the one applied last.")
    ] = None,
    device: Device = None,
    force: Force = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint without the patch: the original weights, bit for bit."""
    from bluedit.cli import console

    console.load()
    from bluedit.cli.applying import check_output
    from bluedit.edits import applied_patches, load_edit
    from bluedit.edits.checkpoint import read_applied, save_checkpoint
    from bluedit.errors import PatchError
    from bluedit.models import load_model
    from bluedit.models.loading import model_folder
    from bluedit.storage.locks import claimed

    chosen = load_edit(patch) if patch else None
    check_output(out, model, force)
    with claimed(out), console.bars(f"loading {model}") as bars:
        editable = load_model(model, device=device, dtype="auto", module_map=module_map, trust_remote_code=trust_remote_code)
        source = model_folder(model)
        if source is not None:
            read_applied(editable, source)
        applied = applied_patches(editable)
        if not applied:
            raise PatchError(
                f"{model} holds no record of an applied patch; only checkpoints written by `bluedit patch apply` do"
            )
        (chosen or applied[-1]).revert(editable)
        bars(f"writing {out}", 0, None)
        save_checkpoint(editable, out, source=source, replace=force)
    left = len(applied) - 1
    from bluedit.results.edits import PatchRevertResult

    result = PatchRevertResult(checkpoint=str(out), model=model, patches_left=left)
    _report(as_json, result, f"written to {out}; {left} patches remain in it")


def _report(as_json: bool, result: Record, text: str) -> None:
    from bluedit.cli import console

    if as_json:
        console.emit(result)
    else:
        console.say(text)


def describe(patch: Edit) -> Any:
    """A patch for people: one line of what it is, its weights, its first facts."""
    from rich.console import Group

    from bluedit.cli.console import Table
    from bluedit.reports.tables import short

    manifest = patch.manifest
    settings = ", ".join(f"{name}={short(value)}" for name, value in manifest.settings.items())
    layers = f"critical layers {', '.join(map(str, manifest.layers))}, " if manifest.layers else ""
    failed = f"\nFAILED its gates: {manifest.failed}" if manifest.failed else ""
    head = (
        f"{len(manifest.facts)} facts edited into {manifest.model} with {manifest.method}, {manifest.strategy}, "
        f"{layers}in {manifest.seconds:.1f} s\n{settings}{failed}"
    )
    weights = Table(["weight", "change", "rank", "||D||", "||D|| / ||W||", "condition of C", "null space"], text=2)
    for name, record in manifest.weights.items():
        change = patch.changes[name]
        condition = "-" if record.condition is None else f"{record.condition:.1e}"
        free = "-" if record.null_space_rank is None else f"{record.null_space_rank} of {change.shape[1]}"
        weights.add(name, change.kind, str(change.rank), f"{record.norm:.3f}", f"{record.relative_norm:.3f}", condition, free)
    steps = {record.layer: record for record in manifest.optimisation}
    facts = Table(["id", "prompt", "target", *(f"evaluations, layer {layer}" for layer in steps)], text=3)
    for column, fact in enumerate(patch.facts[:20]):
        facts.add(fact.id, fact.text, fact.target, *(str(record.evaluations[column]) for record in steps.values()))
    rest = [f"and {len(patch.facts) - 20} more; --json lists all"] if len(patch.facts) > 20 else []
    return Group(head, *([weights] if manifest.weights else []), facts, *rest)
