"""Layers as people write them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bluedit.errors import SettingsError, excerpt

__all__ = ["layers_text", "parse_layers"]

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


def layers_text(layers: Iterable[int]) -> str:
    """Layers in words: "layer 3", "layers 0 and 5", "layers 0-5", "layers 0-3, 6 and 8"."""
    numbers = sorted(set(layers))
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    parts: list[str] = []
    for one in ranges:
        parts += map(str, one) if len(one) < 3 else [f"{one[0]}-{one[-1]}"]
    *others, last = parts
    return f"{'layer' if len(numbers) == 1 else 'layers'} {', '.join(others)}{' and ' if others else ''}{last}"
