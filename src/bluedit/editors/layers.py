"""Layers: as people write them, and the choice of those that an edit works on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bluedit.errors import SettingsError, excerpt
from bluedit.strategies import SINGLE

if TYPE_CHECKING:
    from bluedit.editors.base import Editor
    from bluedit.editors.presets import Preset
    from bluedit.models.layout.structure import Structure

__all__ = ["Choice", "choose_layers", "layers_text", "parse_layers", "unknown_layers"]

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
            raise SettingsError(f"the layers {excerpt(text)}: the range runs backwards; write {last}-{first}")
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


@dataclass(frozen=True)
class Choice:
    """Critical layers, in rising order, and where they are from: `named`, `the strategy's`, or `known for MODEL`."""

    layers: tuple[int, ...]
    source: str


def choose_layers(
    editor: Editor, structure: Structure, preset: Preset | None, asked: Sequence[int] | None = None
) -> Choice | None:
    """The critical layers of an edit: those asked for, else the strategy's own, else those known for the model.

    **Returns** None where nothing is known; :func:`unknown_layers` says so.

    **Raises** :class:`~bluedit.errors.SettingsError` for layers that cannot be edited.
    """
    strategy = editor.strategy
    source = "named"
    found: Sequence[int] | None = asked
    if found is None and strategy.fixed_layers is not None:
        found, source = strategy.fixed_layers, "the strategy's"
    if found is None and preset is not None:
        found, source = preset.layers_for(editor.name, one=strategy == SINGLE), f"known for {preset.name}"
    if found is None:
        return None
    critical = _checked(found)
    _check_present(editor, structure, critical)
    return Choice(critical, source)


def unknown_layers(editor: Editor, structure: Structure) -> SettingsError:
    """The error for a model whose critical layers nobody named or knows."""
    example = "--layers 5 or layers=[5]" if editor.strategy == SINGLE else "--layers 4-8 or layers=range(4, 9)"
    return SettingsError(
        f"the critical layers of this model (of {structure.depth} layers) are not known for {editor.name}; name them, as in "
        f"{example}, or have them chosen: `bluedit trace`, then auto"
    )


def _checked(layers: Any) -> tuple[int, ...]:
    if isinstance(layers, str) or not all(type(layer) is int for layer in layers):
        raise SettingsError(f"layers={layers!r} is not understood; give whole numbers, as in layers=range(4, 9)")
    return tuple(sorted(set(layers)))


def _check_present(editor: Editor, structure: Structure, critical: tuple[int, ...]) -> None:
    """**Raises** :class:`~bluedit.errors.SettingsError` for a layer that does not exist, or is a mixture of experts."""
    steps = editor.strategy.steps(critical)
    asked = {*critical, *(layer for step in steps for layer in (step.layer, step.target_layer))}
    if outside := sorted(layer for layer in asked if not 0 <= layer < structure.depth):
        raise SettingsError(f"layer {outside[-1]} is not in this model: it has layers 0 to {structure.depth - 1}")
    if sparse := sorted(asked - set(structure.dense)):
        raise SettingsError(
            f"layer {sparse[0]} is a mixture of experts: its MLP is not a single matrix that can be edited; choose among "
            "layers " + ", ".join(map(str, structure.dense))
        )
