"""A GGUF LoRA adapter from a patch: a small file that llama.cpp loads beside an untouched model, quantised or not.

For every changed tensor NAME the file holds `NAME.lora_a`, r x d_in, and `NAME.lora_b`, d_out x r. llama.cpp adds
(alpha / r) B A x to what the tensor computes; alpha stands once in the file, so all factors have one rank r = alpha, with
columns of zeros where a change has fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bluedit.edits.base import Edit
from bluedit.edits.export import gguf_files
from bluedit.edits.export.blueprint import Blueprint
from bluedit.edits.export.gguf_files import Entry, Setting, real, text, whole
from bluedit.edits.export.gguf_names import architecture_of, check_installed, weight_names
from bluedit.edits.export.low_rank import factor_all
from bluedit.edits.export.outputs import DIGEST_KEY, GGUF, Exported, Part, check_card
from bluedit.errors import ModelError, SettingsError, did_you_mean
from bluedit.storage.files import atomic_file, writable_target
from bluedit.version import __version__

__all__ = ["ADAPTER_TYPES", "export_gguf_lora"]

ADAPTER_TYPES = {"f32": torch.float32, "f16": torch.float16}
"""The types of an adapter's numbers, by name."""


def export_gguf_lora(
    edit: Edit, path: str | Path, base: Blueprint, *, rank: int | None = None, kind: str = "f32", replace: bool = False
) -> Exported:
    """Write a patch as an adapter for llama.cpp; whole or not at all.

    **Arguments**

    - `base`: the model, by its Hugging Face folder or its GGUF file.
    - `rank`: as for :func:`~bluedit.edits.export.lora.export_lora`.
    - `kind`: the type of the factors, f32 or f16.

    **Raises** :class:`~bluedit.errors.PatchError` where the patch does not fit the model, or is not low rank and no `rank` is
    given; :class:`~bluedit.errors.ModelError` for an architecture whose names are not known.
    """
    check_installed()
    if kind not in ADAPTER_TYPES:
        raise SettingsError(did_you_mean(kind, ADAPTER_TYPES, what="type of an adapter's numbers"))
    target = Path(path).expanduser()
    if target.suffix.lower() != ".gguf":
        raise ModelError(f"{target} should end in .gguf: programs know the format by that")
    check_card(target)
    writable_target(target, replace=replace, kind=GGUF)
    base.check(edit)
    architecture, blocks = _architecture(base)
    names = weight_names(edit.changes, architecture, blocks)
    factors = factor_all(edit.changes, rank, ADAPTER_TYPES[kind])
    largest = max(one.rank for one in factors.values())
    entries: list[Entry] = []
    for weight, one in factors.items():
        up_DR, down_RF = _padded(one.up_DR, largest, 1), _padded(one.down_RF, largest, 0)
        entries += [_entry(f"{names[weight]}.lora_a", down_RF), _entry(f"{names[weight]}.lora_b", up_DR)]
    parts = tuple(
        Part(weight=weight, stored=names[weight], kind=kind.upper(), rank=one.rank, error=one.error)
        for weight, one in factors.items()
    )
    with atomic_file(target, replace=replace) as temporary:
        gguf_files.write_file(temporary, architecture, _settings(edit, base, largest), entries)
    worst = max(one.error for one in factors.values())
    notes = (f"compressed to rank {largest}: up to {worst:.2%} of a change is lost",) if rank is not None and worst else ()
    return Exported(path=target, kind="gguf-lora", base=base.base_name, parts=parts, notes=notes)


def _architecture(base: Blueprint) -> tuple[str, int]:
    if base.gguf is not None:
        return base.gguf.architecture, base.gguf.blocks
    return architecture_of(base.config), int(base.config.get_text_config().num_hidden_layers)


def _padded(factor: Tensor, rank: int, axis: int) -> Tensor:
    """A factor with zeros up to the rank of the file."""
    missing = rank - factor.shape[axis]
    if not missing:
        return factor
    shape = list(factor.shape)
    shape[axis] = missing
    return torch.cat([factor, factor.new_zeros(shape)], axis)


def _entry(name: str, factor: Tensor) -> Entry:
    array = np.ascontiguousarray(factor.cpu().numpy())
    kind = gguf_files.find_type("f16" if array.dtype == np.float16 else "f32")
    return Entry(name, kind, tuple(array.shape), array.dtype, lambda: array)


def _settings(edit: Edit, base: Blueprint, rank: int) -> Mapping[str, Setting]:
    return {
        "general.type": text("adapter"),
        "general.name": text(f"{len(edit.manifest.facts)} facts, {edit.manifest.method}"),
        "general.base_model.count": whole(1),
        "general.base_model.0.name": text(Path(base.base_name).name),
        "adapter.type": text("lora"),
        "adapter.lora.alpha": real(float(rank)),
        DIGEST_KEY: text(edit.digest),
        "bluedit.version": text(__version__),
    }
