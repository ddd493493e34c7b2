"""Layers as people write them."""

from __future__ import annotations

import re

from bluedit.errors import SettingsError, excerpt

__all__ = ["parse_layers"]

_LAYERS = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")


def parse_layers(text: str) -> tuple[int, ...]:
    """`1-4`, `1,2,3,4` or a mixture of both, as layers.

    **Raises** :class:`~bluedit.errors.SettingsError` for anything else.
    """
    plain = text.replace(" ", "")
    if not _LAYERS.fullmatch(plain):
        raise SettingsError(
            f"the layers {excerpt(text)} are not understood; write a range such as 1-4, or a list such as 1,2,3,4"
        )
    layers: set[int] = set()
    for part in plain.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise SettingsError(f"the layers {excerpt(text)}: a range runs backwards; write {last}-{first}")
        layers.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(layers))
