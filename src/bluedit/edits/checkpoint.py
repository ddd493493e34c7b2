"""Checkpoints that remember their patches: written with the original bits next to them, so that a patch can be reverted.

A patched checkpoint is a copy of the model's folder, file by file. Only the bytes of the weights that a patch changes differ,
and one more folder is in it, `bluedit/`: the applied patches in order, the weights they changed as they were before the first,
and the list of all files. With the last patch reverted, the copy is the model's folder again, byte for byte.

A model that is not in a folder, or is written in another precision than the folder's, is written by `save_pretrained`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from bluedit.edits.base import Edit, applied_patches, original_weights, restore_applied
from bluedit.edits.loading import load_edit
from bluedit.errors import DamagedFileError, InputError, PatchError
from bluedit.models import EditableModel
from bluedit.models.weight_files import StoredTensor, is_weight_file, stored_tensors
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.files import OutputKind, atomic_folder, contents, is_temporary, separate, writable_target
from bluedit.storage.hashes import hash_tensor
from bluedit.storage.tensors import read_tensors, write_tensors

__all__ = ["CHECKPOINT", "CHECKPOINT_CARD", "other_weights", "read_applied", "save_checkpoint"]

_FOLDER = "bluedit"
CHECKPOINT_CARD = f"{_FOLDER}/README.md"
"""The card of the patches, which is written once the checkpoint is in its place."""
_ORIGINALS = "originals.safetensors"
_INDEX = "applied.json"
_FORMAT_VERSION = 2
_LEFT_OUT = (".git", ".cache")
"""Folders of version control and of downloads, which are not part of a checkpoint."""
_WRITTEN_BY_VERSION_1 = (
    "added_tokens.json", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt",
    "model.safetensors.index.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
)  # fmt: skip


def _owned(path: Path) -> Collection[str] | None:
    try:
        record = read_document(path / _FOLDER / _INDEX)
    except DamagedFileError:
        return None
    if "files" in record:
        return {*record["files"], f"{_FOLDER}/{_INDEX}", CHECKPOINT_CARD}
    # Version 1 stored no list; what save_pretrained writes is known.
    weights = [name for name in contents(path) if name.endswith(".safetensors")]
    return {*_WRITTEN_BY_VERSION_1, *weights, f"{_FOLDER}/{_INDEX}"}


CHECKPOINT = OutputKind("a checkpoint that bluedit patched", _owned)
"""What is replaced by a checkpoint where that is asked for."""


def save_checkpoint(model: EditableModel, path: str | Path, *, source: str | Path | None = None, replace: bool = False) -> Path:
    """Write model, tokenizer and, where patches are applied, their record. Appears whole or not at all.

    **Arguments**

    - `source`: the folder that the model was loaded from. Its files are then copied as they are, and only the weights that
      patches change are written again; the model must not have been changed otherwise. Left out, transformers writes all.
    - `replace`: replace an earlier patched checkpoint that holds nothing else.

    **Raises** :class:`~bluedit.errors.InputError` when something is there already that may not be replaced, and when the path
    lies in the source or around it.
    """
    target = writable_target(Path(path).expanduser(), replace=replace, kind=CHECKPOINT)
    if beside := [edit for edit in applied_patches(model) if edit.facts and not edit.weights]:
        raise PatchError(
            f"an edit of kind {beside[0].kind!r} is applied, which changes no weights: a checkpoint cannot hold it. Keep the "
            "edit's own file, and apply it to the model when that is loaded"
        )
    origin = Path(source).expanduser() if source is not None else None
    if origin is not None:
        separate(target, origin, what="model")
        _check_record(origin)
    with atomic_folder(target, replace=CHECKPOINT if replace else None) as folder:
        if origin is None:
            model.model.save_pretrained(folder)
            model.tokenizer.save_pretrained(folder)
        else:
            _write_copy(model, origin, folder)
        if applied_patches(model):
            _write_record(model, folder)
    return target


def other_weights(source: Path) -> list[str]:
    """Files of a model's folder that hold weights in other formats: they are copied, but no patch changes them."""
    return [name for name in _copied(source) if is_weight_file(name) and not name.endswith(".safetensors")]


def _check_record(source: Path) -> None:
    if (source / _FOLDER).exists() and not (source / _FOLDER / _INDEX).is_file():
        raise InputError(
            f"{source} has something named {_FOLDER} in it that bluedit did not write, where the record of patches goes; "
            "rename it"
        )


def _copied(source: Path) -> list[str]:
    """The files of a model's folder that belong to the checkpoint, as relative paths."""
    names = (name for name in contents(source) if not name.endswith("/") and not is_temporary(name))
    return [name for name in names if name.split("/")[0] not in (*_LEFT_OUT, _FOLDER)]


def _write_copy(model: EditableModel, source: Path, folder: Path) -> None:
    """Copy a model's folder, with the weights that differ from it as the model has them."""
    stored = _places(model, source, _changed(model, source))
    copied = _copied(source)
    if stored is None:
        model.model.save_pretrained(folder)
        copied = [name for name in copied if not is_weight_file(name) and not (folder / name).exists()]
    for name in copied:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_file():
            shutil.copyfile(source / name, place)
        else:  # a link to a folder, or to nothing
            place.symlink_to((source / name).readlink())
    for name, place in (stored or {}).items():
        place.write(folder, model.model.get_parameter(name).detach())


def _changed(model: EditableModel, source: Path) -> set[str]:
    """The weights that may differ from those in the source: changed by patches now, or when the source was written."""
    record = source / _FOLDER / _ORIGINALS
    return {*original_weights(model), *(read_tensors(record).tensors if record.is_file() else ())}


def _places(model: EditableModel, source: Path, names: Iterable[str]) -> Mapping[str, StoredTensor] | None:
    """Where weights stand in the source's files; None where one of them is not there as the model has it."""
    try:
        stored = stored_tensors(source)
    except (OSError, ValueError):
        return None
    found: dict[str, StoredTensor] = {}
    originals, prefix = original_weights(model), f"{model.model.base_model_prefix}."
    recorded = (source / _FOLDER / _INDEX).is_file()
    for name in names:
        weight = model.model.get_parameter(name)
        place = stored.get(name) or stored.get(name.removeprefix(prefix))
        if place is None or (place.dtype, place.shape) != (weight.dtype, tuple(weight.shape)):
            return None
        # A checkpoint of ours holds patched weights; any other holds the originals, or the place is not the right one.
        if not recorded and hash_tensor(place.read(source)) != hash_tensor(originals[name]):
            return None
        found[name] = place
    return found


def _write_record(model: EditableModel, folder: Path) -> None:
    record, applied = folder / _FOLDER, applied_patches(model)
    record.mkdir()
    names = [f"patch-{number:04}.safetensors" for number, _ in enumerate(applied)]
    for name, patch in zip(names, applied, strict=True):
        patch.save(record / name)
    write_tensors(record / _ORIGINALS, original_weights(model))
    document = {"format": "bluedit-checkpoint", "format_version": _FORMAT_VERSION, "patches": names, "files": contents(folder)}
    write_document(record / _INDEX, document)


def read_applied(model: EditableModel, path: str | Path) -> tuple[Edit, ...]:
    """Tell a loaded model which patches its checkpoint folder holds, so that they can be reverted.

    Returns them, oldest first; none where the folder has no record.

    **Raises** :class:`~bluedit.errors.PatchError` when the record is damaged, or does not belong to these weights.
    """
    folder = Path(path).expanduser() / _FOLDER
    if not (folder / _INDEX).is_file():
        if (folder / _ORIGINALS).exists() or os.path.lexists(folder / _INDEX):
            raise PatchError(
                f"{folder / _INDEX} is missing: the record of applied patches is damaged, and what is applied is not known; go "
                "back to the unpatched checkpoint instead"
            )
        return ()
    try:
        record = read_document(folder / _INDEX)
        originals = _read_originals(folder, record)
        names = record["patches"]
    except (DamagedFileError, KeyError) as error:
        problem = str(error) if isinstance(error, DamagedFileError) else f"{folder / _INDEX} names no patches"
        raise PatchError(f"{problem}; the record is damaged: go back to the unpatched checkpoint instead") from error
    # A name from a file is a name, not a path: it may not lead out of the folder.
    if not isinstance(names, list) or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise PatchError(f"{folder / _INDEX} names files outside its folder; it was not written by bluedit")
    patches = tuple(load_edit(folder / name) for name in names)
    restore_applied(model, patches, originals)
    return patches


def _read_originals(folder: Path, record: Mapping[str, object]) -> dict[str, Tensor]:
    version = record.get("format_version")
    if not isinstance(version, int) or version > _FORMAT_VERSION:
        raise DamagedFileError(folder / _INDEX, f"is of version {version}; this bluedit reads {_FORMAT_VERSION}")
    file = read_tensors(folder / _ORIGINALS)
    if version > 1 and file.digest is None:
        raise DamagedFileError(folder / _ORIGINALS, "is damaged: it has no hashes")
    return file.tensors
