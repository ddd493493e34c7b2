"""Hashes by which damage is noticed: of tensors, and of the documents that describe them.

XXH3 with 128 bits: 0.13 s for 1 GB on one core, where SHA-256 takes 0.9 s. It finds every accidental change; it does not
protect from somebody who wants to deceive, who could write a hash as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from bluedit.errors import DamagedFileError

__all__ = ["DIGEST", "check_seal", "hash_tensor", "hash_tensors", "hash_text", "seal"]

DIGEST = "digest"
"""The key of a document under which the hash of all the rest stands."""


def hash_tensor(tensor: Tensor) -> str:
    """The hash of a tensor's type, shape and bits."""
    tensor = tensor.detach().cpu().contiguous()
    state = xxhash.xxh3_128(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The hashes of tensors by name."""
    return {name: hash_tensor(tensor) for name, tensor in sorted(tensors.items())}


def hash_text(text: str) -> str:
    """The hash of a text."""
    return xxhash.xxh3_128(text.encode("utf-8", "surrogatepass")).hexdigest()


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON document with the hash of all that is in it; the order of its keys and its line breaks do not count."""
    content = {key: value for key, value in document.items() if key != DIGEST}
    return {**content, DIGEST: _digest(content)}


def check_seal(document: Mapping[str, Any], source: Path, *, required: bool) -> dict[str, Any]:
    """What a sealed document holds, without the seal.

    **Raises** :class:`~bluedit.errors.DamagedFileError` when the content is not what was sealed, or there is no seal where one
    is `required`.
    """
    content = dict(document)
    digest = content.pop(DIGEST, None)
    if DIGEST not in document and not required:
        return content
    if digest != _digest(content):
        raise DamagedFileError(source, "is damaged: it does not hold what was written (its hash differs)")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    # What json reads and writes again is the same text, floats included.
    return hash_text(json.dumps(json.loads(json.dumps(content)), sort_keys=True, separators=(",", ":")))
