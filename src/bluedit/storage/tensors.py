"""Tensor files: safetensors whose metadata hold a hash of every tensor, and one of all metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bluedit.errors import DamagedFileError
from bluedit.storage.documents import parse_object
from bluedit.storage.files import atomic_file
from bluedit.storage.hashes import DIGEST, check_seal, hash_tensor, hash_tensors, seal

__all__ = ["TensorFile", "check_hashes", "read_tensors", "write_tensors"]

_ABOUT = "bluedit"
_METADATA, _HASHES, _KEY = "metadata", "hashes", "key"


@dataclass(frozen=True)
class TensorFile:
    """What a file held.

    - `tensors`: by name, on the CPU.
    - `metadata`: what the writer added, texts by name.
    - `digest`: the hash of metadata and tensors together; None where the file is of an earlier version, without hashes.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    digest: str | None


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, key: str | None = None
) -> str:
    """Write tensors, whole or not at all; the file's digest. Cost in addition to writing: 0.13 s a GB for the hashes.

    `key` says what the file is, so that a swapped file is noticed.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = seal({_METADATA: dict(metadata or {}), _HASHES: hash_tensors(ready), _KEY: key})
    with atomic_file(path) as temporary:
        # One entry: the order of several would differ from file to file.
        save_file(ready, temporary, metadata={_ABOUT: json.dumps(about, sort_keys=True)})
    return about[DIGEST]


def read_tensors(path: Path, *, key: str | None = None) -> TensorFile:
    """Read a file of :func:`write_tensors`, with the `key` it was written with, or one of an earlier version.

    **Raises** :class:`~bluedit.errors.DamagedFileError` when it is missing, cannot be read, or is not what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise DamagedFileError(path, problem) from error
    if _ABOUT not in metadata:
        if any(f'"{_HASHES}"' in text for text in metadata.values()):
            raise DamagedFileError(path, "is damaged: its hashes are there, but not under their name")
        return TensorFile(tensors, metadata, None)
    about = parse_object(metadata[_ABOUT], path)
    digest = about.get(DIGEST)
    about = check_seal(about, path, required=True)
    if about[_KEY] != key:
        raise DamagedFileError(path, "is another file, put in its place")
    check_hashes(tensors, about[_HASHES], path)
    return TensorFile(tensors, about[_METADATA], digest)


def check_hashes(tensors: Mapping[str, Tensor], hashes: Mapping[str, str], source: Path) -> None:
    """**Raises** :class:`~bluedit.errors.DamagedFileError` unless tensors are those that were hashed, all of them."""
    if lacking := sorted(hashes.keys() - tensors.keys()):
        raise DamagedFileError(source, f"is damaged: it lacks {lacking[0]}")
    if added := sorted(tensors.keys() - hashes.keys()):
        raise DamagedFileError(source, f"is damaged: it holds {added[0]}, which is not part of it")
    for name, tensor in tensors.items():
        if hash_tensor(tensor) != hashes[name]:
            raise DamagedFileError(source, f"is damaged: {name} does not hold the numbers that were written (its hash differs)")
