"""A GGUF model from a patch: the original file with the changed tensors in a type that holds the change, the rest as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluedit.edits.base import Edit
from bluedit.edits.changes import Change
from bluedit.edits.export import gguf_files, rounding
from bluedit.edits.export.blueprint import Blueprint
from bluedit.edits.export.conversion import Conversion
from bluedit.edits.export.gguf_files import Entry, Setting, text, whole
from bluedit.edits.export.gguf_names import check_installed, weight_names
from bluedit.edits.export.outputs import DIGEST_KEY, GGUF, Exported, Part, check_card
from bluedit.errors import ModelError, PatchError
from bluedit.models.editable import tensor_fingerprint
from bluedit.models.gguf import GgufHeader, check_supported
from bluedit.progress import Progress, silent
from bluedit.storage.files import atomic_file, writable_target
from bluedit.version import __version__

__all__ = ["AUTO", "export_gguf", "export_gguf_from_folder"]

AUTO = "auto"
"""The type that does not lose the edit: see :func:`~bluedit.edits.export.rounding.choose_type`."""
_WIDE = ("token_embd.weight", "output.weight")
"""Tensors that are stored with 8 bits where fewer are asked for, as llama.cpp does."""
_FEW_BITS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
_FILE_TYPE = "general.file_type"


def export_gguf(
    edit: Edit,
    path: str | Path,
    base: Blueprint,
    *,
    kind: str = AUTO,
    all_tensors: bool = False,
    check: bool = True,
    replace: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Write a patched GGUF file from the GGUF file of `base`; whole or not at all.

    **Arguments**

    - `kind`: the type of the changed tensors, one of :data:`~bluedit.edits.export.gguf_files.TYPES`, or `auto`: the smallest
      that does not lose the edit.
    - `all_tensors`: store every matrix in that type. Otherwise all others are copied byte for byte.
    - `check`: refuse a file whose weights are not those that the patch was computed on.

    **Raises** :class:`~bluedit.errors.PatchError` for a patch of another model, :class:`~bluedit.errors.ModelError` for a file
    that cannot be read or a type that cannot hold its tensors.
    """
    check_installed()
    import gguf

    if base.gguf is None:
        raise ModelError(f"{base.name} was not made from a GGUF file; export_gguf_from_folder converts folders")
    header = base.gguf
    target = _target(path, header, replace)
    base.check(edit)
    names = weight_names(edit.changes, header.architecture, header.blocks)
    asked = gguf_files.find_type(rounding.LOSSLESS[0] if kind == AUTO else kind)
    rest = asked if all_tensors else None
    check_supported(header)
    reader = gguf.GGUFReader(header.path)
    changed = {names[weight]: (weight, change) for weight, change in edit.changes.items()}
    if missing := changed.keys() - {tensor.name for tensor in reader.tensors}:
        raise PatchError(f"{header.path} holds no {min(missing)}; the patch was made for {edit.manifest.model}")
    parts: list[Part] = []
    entries: list[Entry] = []
    for tensor in reader.tensors:
        if tensor.name in changed:
            weight, change = changed[tensor.name]
            weight_DF = _numbers(tensor)
            _check_fits(edit, weight, weight_DF, header, check=check)
            entry, part = _changed(tensor.name, weight, weight_DF, change, kind)
            entries.append(entry)
            parts.append(part)
        elif rest is not None and len(tensor.shape) > 1:
            shape = [int(size) for size in reversed(tensor.shape)]
            entries.append(
                gguf_files.stored(
                    tensor.name, shape, _type_of(tensor.name, shape, rest), lambda one=tensor: _numbers(one).numpy()
                )
            )
        else:
            entries.append(gguf_files.copied(tensor))
    settings = {**gguf_files.settings_of(reader), **_marks(edit)}
    if rest is not None:
        settings[_FILE_TYPE] = whole(gguf_files.file_type(rest))
    with atomic_file(target, replace=replace) as temporary:
        gguf_files.write_file(temporary, header.architecture, settings, entries, progress)
    return _exported(target, base, edit, parts)


def export_gguf_from_folder(
    edit: Edit,
    path: str | Path,
    base: Blueprint,
    conversion: Conversion,
    *,
    kind: str = AUTO,
    replace: bool = False,
    progress: Progress = silent,
) -> Exported:
    """Write a patched GGUF file from a model of transformers, all of it converted; see
    :func:`~bluedit.edits.export.conversion.convert`.

    `kind` is the type of all matrices. `auto`: float16, and float32 for a changed weight that float16 would lose.
    """
    check_installed()
    target = _target(path, None, replace)
    base.check(edit)
    asked = gguf_files.find_type(rounding.LOSSLESS[0] if kind == AUTO else kind)
    names = weight_names(edit.changes, conversion.architecture, conversion.blocks)
    changed = {names[weight]: (weight, change) for weight, change in edit.changes.items()}
    parts: list[Part] = []
    entries: list[Entry] = []
    for name, (shape, make) in conversion.tensors.items():
        if name in changed:
            weight, change = changed[name]
            entry, part = _changed(name, weight, torch.from_numpy(make()), change, kind)
            entries.append(entry)
            parts.append(part)
        else:
            entries.append(gguf_files.stored(name, shape, _type_of(name, shape, asked), make))
    settings = {**conversion.settings, _FILE_TYPE: whole(gguf_files.file_type(asked)), **_marks(edit)}
    with atomic_file(target, replace=replace) as temporary:
        gguf_files.write_file(temporary, conversion.architecture, settings, entries, progress)
        conversion.check(temporary)
    return _exported(target, base, edit, parts)


def _target(path: str | Path, header: GgufHeader | None, replace: bool) -> Path:
    target = Path(path).expanduser()
    if target.suffix.lower() != ".gguf":
        raise ModelError(f"{target} should end in .gguf: programs know the format by that")
    if header is not None and target.resolve() == header.path.resolve():
        raise PatchError("--out is the model's own file, which is not overwritten; choose another name")
    check_card(target)
    return writable_target(target, replace=replace, kind=GGUF)


def _numbers(tensor: Any) -> Tensor:
    """A tensor of a file as float32, in the shape that modules have."""
    import gguf

    numbers = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    return torch.from_numpy(numbers.reshape([int(size) for size in reversed(tensor.shape)]))


def _check_fits(edit: Edit, weight: str, weight_DF: Tensor, header: GgufHeader, *, check: bool) -> None:
    """**Raises** :class:`~bluedit.errors.PatchError` for a tensor that the patch was not computed on.

    The patch has the hash of what a module held: in half precision where it was loaded so, and transposed in GPT-2.
    """
    change = edit.changes[weight]
    if tuple(weight_DF.shape) != change.shape:
        raise PatchError(
            f"{weight} is {' x '.join(map(str, weight_DF.shape))} in {header.path}, and the patch has another shape"
        )
    if not check:
        return
    before = edit.manifest.weights[weight].before
    held = (weight_DF.to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    if not any(before in (tensor_fingerprint(one), tensor_fingerprint(one.T)) for one in held):
        raise PatchError(
            f"{weight} of {header.path} does not hold the values this patch was computed on ({edit.manifest.model}): it is "
            "another model, or another quantisation of it. Export a GGUF LoRA, which goes beside any quantisation "
            "(bluedit export gguf-lora), edit the file itself, or pass check=False (--no-check) if you know better"
        )


def _changed(name: str, weight: str, weight_DF: Tensor, change: Change, kind: str) -> tuple[Entry, Part]:
    """A changed tensor in its type, ready to write, and what that does to the change."""
    chosen = rounding.choose_type(weight_DF, change) if kind == AUTO else kind
    measured = rounding.measure(weight_DF, change, chosen)
    array, number = measured.array, gguf_files.find_type(chosen)
    part = Part(weight=weight, stored=name, kind=number.name, error=measured.error, error_at_keys=measured.error_at_keys)
    return Entry(name, number, tuple(array.shape), array.dtype, lambda: array), part


def _type_of(name: str, shape: Sequence[int], asked: Any) -> Any:
    """The type of an unchanged tensor where all are to be of one: vectors and positions keep float32, as llama.cpp needs."""
    if len(shape) < 2 or name == "position_embd.weight":
        return gguf_files.find_type("f32")
    kind = gguf_files.find_type("q8_0") if name in _WIDE and asked.name in _FEW_BITS else asked
    return kind if gguf_files.blocks_of(shape[-1], kind) else gguf_files.find_type("f16")


def _marks(edit: Edit) -> Mapping[str, Setting]:
    """Settings by which the file says which patch is in it."""
    return {
        DIGEST_KEY: text(edit.digest),
        "bluedit.version": text(__version__),
        "bluedit.facts": whole(len(edit.manifest.facts)),
    }


def _exported(target: Path, base: Blueprint, edit: Edit, parts: Sequence[Part]) -> Exported:
    warnings: list[str] = []
    lost = [part for part in parts if not rounding.survives(part.error_at_keys or 0.0)]
    if lost:
        worst = max(lost, key=lambda part: part.error_at_keys or 0.0)
        warnings.append(
            f"{worst.kind} may lose the edit: rounding {worst.weight} is {worst.error:.0%} of the change, and "
            f"{worst.error_at_keys:.0%} of it where the facts read it; use --type f16, or ask the file for its facts with "
            "--verify"
        )
    return Exported(path=target, kind="gguf", base=base.base_name, parts=tuple(parts), warnings=tuple(warnings))
