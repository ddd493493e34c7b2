"""What weight files a model's folder holds, read from their names and headers alone."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bluedit.errors import excerpt
from bluedit.storage.parsing import parse_json, read_json

__all__ = ["StoredTensor", "WeightFiles", "is_weight_file", "read_weight_files", "stored_tensors"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin.index.json", "*.gguf", "*.h5", "*.msgpack", "*.onnx")
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
        raise TypeError(f"{excerpt(name)} is not a file name")
    return name


def _numbers(path: Path) -> Counter[str]:
    """How many numbers of each type a safetensors file holds.

    **Raises** `ValueError` where it is shorter than its header says.
    """
    numbers: Counter[str] = Counter()
    for tensor in _header(path)[1].values():
        numbers[tensor["dtype"]] += math.prod(tensor["shape"])
    return numbers


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the numbers of a safetensors file start, and what its header says of each tensor.

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
    tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
    expected = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if size < expected:
        raise ValueError(f"is truncated: {size:,} of {expected:,} bytes are present")
    return 8 + length, tensors


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor stands in a folder: bytes `start` to `end` of a file."""

    file: str
    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, folder: Path) -> Tensor:
        """Its numbers."""
        with (folder / self.file).open("rb") as file:
            file.seek(self.start)
            content = bytearray(file.read(self.end - self.start))
        return torch.frombuffer(content, dtype=self.dtype).reshape(self.shape)

    def write(self, folder: Path, tensor: Tensor) -> None:
        """Put other numbers of this type and shape in its place; the rest of the file stays as it is."""
        assert (tensor.dtype, tuple(tensor.shape)) == (self.dtype, self.shape)
        with (folder / self.file).open("r+b") as file:
            file.seek(self.start)
            file.write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


_TORCH_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The floating-point tensors that a folder's model is loaded from, by name; cost: the headers of its files.

    **Raises** `ValueError` where a file is missing or broken.
    """
    files = read_weight_files(folder)
    if not files.whole:
        raise ValueError("its weight files are incomplete")
    found: dict[str, StoredTensor] = {}
    for file in files.files:
        origin, tensors = _header(folder / file)
        for name, tensor in tensors.items():
            if tensor["dtype"] in _TORCH_TYPES and tensor["shape"] and math.prod(tensor["shape"]):
                start, end = (origin + offset for offset in tensor["data_offsets"])
                found[name] = StoredTensor(file, start, end, _TORCH_TYPES[tensor["dtype"]], tuple(tensor["shape"]))
    return found


def is_weight_file(name: str) -> bool:
    """Whether a file of a model's folder holds weights, as its name tells, or lists the files that do."""
    plain = name.rpartition("/")[2]
    return any(fnmatch.fnmatch(plain, pattern) for pattern in (*_WEIGHTS, *_PICKLES))
