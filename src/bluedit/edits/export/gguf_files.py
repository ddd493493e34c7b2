"""Writing GGUF files through the package `gguf`: settings, then tensors one after the other, never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bluedit.errors import ModelError, SettingsError, did_you_mean
from bluedit.progress import Progress, silent, stage

__all__ = [
    "TYPES",
    "Entry",
    "Setting",
    "blocks_of",
    "copied",
    "file_type",
    "find_type",
    "real",
    "settings_of",
    "stored",
    "text",
    "texts",
    "truth",
    "whole",
    "wholes",
    "write_file",
]

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""The types that tensors are written in, by name: those that the package can quantise to."""
_ELSEWHERE = ("_k", "iq", "tq", "mxfp", "nvfp")
"""What is in the names of types that only llama.cpp itself quantises to."""


class Setting(NamedTuple):
    """A setting of a GGUF file: its value and the format's numbers of its type, and of what a list is of."""

    value: Any
    kind: int
    inner: int | None = None


def text(value: str) -> Setting:
    """A text."""
    return Setting(value, 8)


def whole(value: int) -> Setting:
    """A whole number, 32 bits, not negative."""
    return Setting(int(value), 4)


def real(value: float) -> Setting:
    """A number in float32."""
    return Setting(float(value), 6)


def truth(value: bool) -> Setting:
    """Yes or no."""
    return Setting(bool(value), 7)


def texts(values: Sequence[str]) -> Setting:
    """A list of texts."""
    return Setting(list(values), 9, 8)


def wholes(values: Sequence[int]) -> Setting:
    """A list of whole numbers, 32 bits, with a sign."""
    return Setting(list(values), 9, 5)


@dataclass(frozen=True)
class Entry:
    """A tensor to write: its name and type, the shape and type of the array it is stored as, and what makes that array."""

    name: str
    kind: Any
    shape: tuple[int, ...]
    dtype: Any
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def find_type(name: str) -> Any:
    """The package's number of a type.

    **Raises** :class:`~bluedit.errors.SettingsError` for an unknown type, and for one that only llama.cpp quantises to.
    """
    import gguf

    lowered = name.lower()
    if lowered in TYPES:
        return gguf.GGMLQuantizationType[name.upper()]
    if any(part in lowered for part in _ELSEWHERE):
        raise SettingsError(
            f"only llama.cpp itself quantises to {name}; export with --type f16 --all-tensors, and run its llama-quantize"
        )
    raise SettingsError(did_you_mean(name, TYPES, what="type of tensors"))


def file_type(kind: Any) -> int:
    """The format's number for a file whose matrices are mostly of a type."""
    import gguf

    name = "ALL_F32" if kind.name == "F32" else f"MOSTLY_{kind.name}"
    return int(gguf.LlamaFileType[name])


def blocks_of(columns: int, kind: Any) -> bool:
    """Whether a row of so many numbers can be cut into the blocks of a type."""
    import gguf

    return columns % gguf.GGML_QUANT_SIZES[kind][0] == 0


def copied(tensor: Any) -> Entry:
    """A tensor of a file that was read, byte for byte."""
    return Entry(tensor.name, tensor.tensor_type, tuple(tensor.data.shape), tensor.data.dtype, lambda: tensor.data)


def stored(name: str, shape: Sequence[int], kind: Any, make: Callable[[], np.ndarray]) -> Entry:
    """A tensor that is stored in a type; `make` gives its numbers in float32 once they are written."""
    import gguf

    plain = {"F32": np.float32, "F16": np.float16}.get(kind.name)
    whole = tuple(shape) if plain is not None else gguf.quant_shape_to_byte_shape(tuple(shape), kind)
    return Entry(name, kind, tuple(map(int, whole)), plain or np.uint8, lambda: gguf.quants.quantize(make(), kind))


def settings_of(reader: Any) -> dict[str, Setting]:
    """The settings of a file that was read, in order, without those that every file counts anew; empty lists are left out.

    A list cannot be empty in a file that the package writes.
    """
    found: dict[str, Setting] = {}
    for name, one in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind, value = one.types[0], one.contents()
        if isinstance(value, list) and not value:
            continue
        found[name] = Setting(value, int(kind), int(one.types[-1]) if len(one.types) > 1 else None)
    return found


def write_file(
    path: Path,
    architecture: str,
    settings: Mapping[str, Setting],
    entries: Sequence[Entry],
    progress: Progress = silent,
) -> None:
    """Write a GGUF file of version 3, little-endian, in one pass."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for name, setting in settings.items():
        if name == gguf.Keys.General.ALIGNMENT:
            writer.add_custom_alignment(setting.value)
            continue
        inner = None if setting.inner is None else gguf.GGUFValueType(setting.inner)
        writer.add_key_value(name, setting.value, gguf.GGUFValueType(setting.kind), sub_type=inner)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(entry.dtype), entry.nbytes, raw_dtype=entry.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with stage(progress, "writing tensors", len(entries)) as advance:
            for entry in entries:
                array = entry.make()
                if array.nbytes != entry.nbytes:
                    raise ModelError(f"{entry.name} has {array.nbytes:,} bytes where {entry.nbytes:,} were announced")
                writer.write_tensor_data(np.ascontiguousarray(array))
                advance(1)
    finally:
        writer.close()
