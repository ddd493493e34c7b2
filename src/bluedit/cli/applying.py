"""A checkpoint with a patch applied: what `bluedit patch apply` and `bluedit export checkpoint` do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bluedit.cli.asking import Asked
    from bluedit.cli.console import Bars
    from bluedit.edits import Edit
    from bluedit.edits.export import Exported

__all__ = ["check_output", "write_checkpoint"]


def write_checkpoint(
    edit: Edit, model: str, out: Path, *, check: bool, device: str | None, dtype: str, module_map: Path | None,
    trust_remote_code: bool, force: bool, bars: Bars, asked: Asked | None = None,
) -> tuple[Exported, list[str]]:  # fmt: skip
    """Load a model, apply the patch, write it; and put the questions to it where there are any.

    Returns what was written, and the names of files with weights that were copied without the patch.
    """
    from bluedit.edits.checkpoint import other_weights, read_applied, save_checkpoint
    from bluedit.edits.export.outputs import Exported, Part
    from bluedit.models import load_model
    from bluedit.models.loading import model_folder
    from bluedit.storage.locks import claimed

    check_output(out, model, force)
    with claimed(out):
        editable = load_model(
            model, device=device, dtype=dtype, module_map=module_map, trust_remote_code=trust_remote_code,
            chat=asked is not None and asked.anything and edit.manifest.chat is not None, progress=bars,
        )  # fmt: skip
        source = model_folder(model)
        if source is not None:
            read_applied(editable, source)
        if asked is not None and asked.anything:
            asked.ask("unedited", editable, edit, bars)
        edit.apply(editable, check=check)
        if asked is not None and asked.anything:
            asked.ask("exported", editable, edit, bars)
            asked.held["patched"] = asked.held.get("exported", set())
        bars(f"writing {out}", 0, None)
        save_checkpoint(editable, out, source=source, replace=force)
    parts = tuple(
        Part(weight=name, stored=name, kind=str(editable.model.get_parameter(name).dtype).removeprefix("torch."),
             error=edit.manifest.weights[name].rounding or 0.0)
        for name in sorted(edit.changes)
    )  # fmt: skip
    exported = Exported(path=out, kind="checkpoint", base=base_name(model), parts=parts)
    return exported, other_weights(source) if source is not None else []


def base_name(model: str) -> str:
    """What a checkpoint's card calls the model it was made from: a name of the hub, or the last part of a path."""
    from bluedit.models.loading import locate

    source = locate(model)
    return str(source.absolute()) if isinstance(source, Path) and str(source) == model else model


def check_output(out: Path, model: str, force: bool) -> None:
    """Say what is wrong with a checkpoint's place before anything is loaded."""
    from bluedit.edits.checkpoint import CHECKPOINT
    from bluedit.models.loading import locate
    from bluedit.storage.files import separate, writable_target

    source = locate(model)
    if isinstance(source, Path):
        separate(out, source, what="model")
    writable_target(out, replace=force, kind=CHECKPOINT)
