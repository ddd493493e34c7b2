"""What weight files a model's folder holds, read from their names and headers alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bluedit.errors import excerpt
from bluedit.storage.parsing import parse_json, read_json

__all__ = ["WeightFiles", "read_weight_files"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LARGEST_HEADER = 100_000_000
"""Bytes; safetensors reads no larger one."""
_LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class WeightFiles:
    """The files that a folder's model is loaded from.

    - `files`: the safetensors files that are there and whole.
    - `missing`: those that the index names and that are not there.
    - `broken`: what is wrong with a file, by name.
    - `pickles`: weights in files that run code when they are opened.
    - `others`: safetensors files that the model is not loaded from.
    - `numbers`: how many numbers are stored, by safetensors' name of their type (`F32`, `BF16`).
    """

    files: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    broken: Mapping[str, str] = field(default_factory=dict)
    pickles: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        return bool(self.files) and not self.missing and not self.broken

    @property
    def parameters(self) -> int:
        return sum(self.numbers.values())

    @property
    def dtype(self) -> str | None:
        """The type of most of the numbers."""
        return max(self.numbers, key=lambda name: self.numbers[name]) if self.numbers else None


def read_weight_files(folder: Path) -> WeightFiles:
    """Look at the weight files of a folder; cost: their headers, whatever their size."""
    there = sorted(path.name for path in folder.glob("*.safetensors"))
    pickles = tuple(sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern)))
    broken: dict[str, str] = {}
    named: list[str] = []
    if _SINGLE in there:  # what transformers takes first, too
        named = [_SINGLE]
    elif (folder / _INDEX).is_file():
        try:
            named = sorted({_file_name(name) for name in read_json(folder / _INDEX)["weight_map"].values()})
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            broken[_INDEX] = f"cannot be read: {type(error).__name__}: {error}"
    numbers: Counter[str] = Counter()
    whole: list[str] = []
    for name in named:
        if name in there:
            try:
                numbers.update(_numbers(folder / name))
                whole.append(name)
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                broken[name] = str(error) if isinstance(error, ValueError) else f"cannot be read: {error}"
    return WeightFiles(
        files=tuple(whole),
        missing=tuple(name for name in named if name not in there),
        broken=broken,
        pickles=pickles,
        others=tuple(name for name in there if name not in named),
        numbers=dict(numbers),
    )


def _file_name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{excerpt(name)} is no name of a file")
    return name


def _numbers(path: Path) -> Counter[str]:
    """How many numbers of each type a safetensors file holds.

    The file is eight bytes of the header's length, the header in JSON, and the numbers.

    **Raises** `ValueError` where it is shorter than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS))
        if start == _LFS:
            raise ValueError("is a pointer of Git LFS, not the file itself; run git lfs pull")
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            raise ValueError("has a header that is not that of a safetensors file")
        if size < 8 or length > size - 8:
            raise ValueError(f"is truncated: {size:,} bytes end before its header does")
        try:
            header = parse_json(file.read(length))
        except ValueError:
            raise ValueError("has a header that is not that of a safetensors file") from None
    tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
    expected = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
    if size < expected:
        raise ValueError(f"is truncated: {size:,} of {expected:,} bytes are there")
    numbers: Counter[str] = Counter()
    for tensor in tensors:
        numbers[tensor["dtype"]] += math.prod(tensor["shape"])
    return numbers
