"""Compass search on a lattice of settings (Kolda, Lewis and Torczon 2003, section 1.1): no gradients, few trials, no chance.

A point is a number of half steps for every setting, counted from where the search starts; a whole step multiplies a setting
by its factor. The search walks along one axis after the other for as long as that pays, with whole steps first and half steps
then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bluedit.editors.base import Editor
from bluedit.editors.settings import declared_names
from bluedit.errors import SettingsError, did_you_mean

__all__ = ["Axis", "Point", "compass"]

Point = tuple[int, ...]

_GAIN = 0.5
"""Points of the objective that a step has to bring: less is chance, and walks far along plateaus."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """How one setting is varied: by a factor, between two ends.

    - `heading`: the direction that is tried first, 1 or -1.
    """

    name: str
    factor: float
    lowest: float
    highest: float
    heading: int = 1

    def value(self, start: float, halves: int) -> float | None:
        """The setting a number of half steps from `start`, to two digits; None beyond an end. From 0, steps go up from the
        lowest value."""
        if not halves:
            return start
        if not start and halves < 0:
            return None
        moved = (start or self.lowest) * self.factor ** ((halves if start else halves - 1) / 2)
        return float(f"{moved:.2g}") if self.lowest <= moved <= self.highest * (1 + 1e-9) else None

    @classmethod
    def named(cls, name: str, editor: Editor) -> Axis:
        """The axis of a setting of an editor, by the name users write.

        **Raises** :class:`~bluedit.errors.SettingsError` for a setting that is not searched over.
        """
        searched = {one.name: one.search for one in editor.settings.described().values() if one.search}
        if (name in editor.settings.names() and name not in searched) or name not in declared_names():
            raise SettingsError(did_you_mean(name, searched, what="setting to vary"))
        if name not in editor.uses:
            raise SettingsError(f"{editor.name} does not use the setting {name!r}; it uses {', '.join(editor.uses)}")
        search = searched[name]
        return cls(name=name, factor=search.factor, lowest=search.lowest, highest=search.highest, heading=search.heading)


def compass(axes: Sequence[Axis], objective: Callable[[Point], float | None], chosen: Callable[[Point], object]) -> None:
    """Look for the point where `objective` is largest.

    **Arguments**

    - `objective`: the value at a point, asked for more than once; None beyond an end. It ends the search by raising.
    - `chosen`: called with every point that is moved to, the start first.
    """
    point: Point = (0,) * len(axes)
    best = objective(point)
    assert best is not None
    chosen(point)
    headings = [axis.heading for axis in axes]
    for step in (2, 1):
        moved = True
        while moved:
            moved = False
            for index in range(len(axes)):
                for heading in (headings[index], -headings[index]):
                    walked = False
                    while True:
                        ahead = (*point[:index], point[index] + heading * step, *point[index + 1 :])
                        value = objective(ahead)
                        if value is None or value < best + _GAIN:
                            break
                        point, best, walked = ahead, value, True
                        chosen(point)
                    if walked:
                        headings[index], moved = heading, True
                        break
