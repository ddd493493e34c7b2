"""A checkpoint's `config.json`, looked at before anything is made from it.

Configuration classes make lists as long as the number of layers, and architectures are built module by module: a size that is
wrong by six digits takes all memory there is, or never ends. What is here reads numbers only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from bluedit.errors import ModelError, excerpt
from bluedit.storage.parsing import read_object

__all__ = ["check_sizes", "read_configuration"]

_LARGEST_FILE = 16 * 2**20
_LIMITS = (
    # How many of something a model has: the deepest published ones have some hundreds of layers, or experts.
    (re.compile(r"(^|_)(layers?|heads?|experts?|blocks?|groups?|stages?)$"), 10_000),
    (re.compile(r"^(num|n)_(\w*_)?(layers?|heads?|experts?|blocks?|groups?|streams)(_|$)"), 10_000),
    # How wide something is: vocabularies have some hundred thousand tokens, MLPs as many keys.
    (re.compile(r"(^|_)(size|dim|rank|width|embd|inner|channels)$|^d_\w+$|^n_(embd|inner)$"), 10_000_000),
    (re.compile(r"(^|_)positions?(_embeddings)?$|^(max_seq_len|seq_length|n_ctx)$"), 1_000_000_000),
)
"""The largest sizes that can be meant, by how a setting is called."""


def read_configuration(path: Path) -> dict[str, Any]:
    """The settings in a `config.json`, with sizes that a model can have.

    **Raises** :class:`~bluedit.errors.ModelError` for a file that is no object of settings, or asks for absurd sizes.
    """
    try:
        document = read_object(path, _LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    check_sizes(document, str(path))
    return document


def check_sizes(document: dict[str, Any], source: str) -> None:
    """**Raises** :class:`~bluedit.errors.ModelError` naming a setting that is larger than any model's."""
    for name, value in _numbers(document):
        for pattern, limit in _LIMITS:
            if pattern.search(name.rpartition(".")[2]) and abs(value) > limit:
                raise ModelError(
                    f"{source} asks for {name} = {excerpt(value, 40)}, and no model has more than {limit:,}; correct the file, "
                    "or fetch it again"
                )


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in settings, with their dotted names."""
    if isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            yield from _numbers(inner, f"{name}.{key}".lstrip("."))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
