"""Checkpoints that remember their patches: written with the original bits beside, so that a patch can be taken out.

A folder written by :func:`save_checkpoint` is an ordinary Hugging Face checkpoint with one more folder in it, `bluedit/`:
the applied patches in order, and the weights they changed as they were before the first.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bluedit.errors import PatchError
from bluedit.files import atomic_folder, writable_target
from bluedit.models import EditableModel
from bluedit.patches.patch import Patch, applied_patches, original_weights, restore_ledger
from bluedit.storage.parsing import read_object

__all__ = ["CHECKPOINT_MARKER", "read_ledger", "save_checkpoint"]

_FOLDER = "bluedit"
_ORIGINALS = "originals.safetensors"
_INDEX = "applied.json"
CHECKPOINT_MARKER = "config.json"
"""The file that shows a folder to be a checkpoint."""


def save_checkpoint(model: EditableModel, path: str | Path, *, replace: bool = False) -> Path:
    """Write model, tokenizer and, where patches are applied, their record. Appears whole or not at all.

    **Raises** :class:`~bluedit.errors.InputError` when something is there already and `replace` is not set.
    """
    target = writable_target(Path(path).expanduser(), replace=replace, marker=CHECKPOINT_MARKER)
    with atomic_folder(target) as folder:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        applied = applied_patches(model)
        if applied:
            ledger = folder / _FOLDER
            ledger.mkdir()
            names = [f"patch-{number:04}.safetensors" for number, _ in enumerate(applied)]
            for name, patch in zip(names, applied, strict=True):
                patch.save(ledger / name)
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in original_weights(model).items()}, ledger / _ORIGINALS
            )
            (ledger / _INDEX).write_text(json.dumps({"format_version": 1, "patches": names}, indent=2) + "\n", encoding="utf-8")
    return target


def read_ledger(model: EditableModel, path: str | Path) -> tuple[Patch, ...]:
    """Tell a loaded model which patches its checkpoint folder holds, so that they can be reverted.

    Returns them, oldest first; none where the folder has no record.

    **Raises** :class:`~bluedit.errors.PatchError` when the record is damaged, or does not belong to these weights.
    """
    ledger = Path(path).expanduser() / _FOLDER
    if not (ledger / _INDEX).is_file():
        return ()
    try:
        names = read_object(ledger / _INDEX)["patches"]
        originals = load_file(ledger / _ORIGINALS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise PatchError(f"{ledger} is damaged: {error}; revert from the unpatched checkpoint instead") from error
    # A name from a file is a name, not a path: it may not lead out of the folder.
    if not isinstance(names, list) or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise PatchError(f"{ledger / _INDEX} names files outside its folder; it was not written by bluedit")
    patches = tuple(Patch.load(ledger / name) for name in names)
    restore_ledger(model, patches, originals)
    return patches
