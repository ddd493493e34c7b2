"""What is worth knowing about an edit that is made all the same, as warnings.

Each says one sentence; those of one kind about several layers can be told in one sentence, see :func:`told_together`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bluedit.errors import BlueditWarning
from bluedit.layers import layers_text

__all__ = ["LargeChangeWarning", "RoundingWarning", "UnmetWarning", "told_together"]


class LargeChangeWarning(BlueditWarning):
    """A change that is larger than the weight it changes: `amount` is ||D|| / ||W||."""

    def __init__(self, *, layer: int, amount: float, origin: str, advice: str, condition: float | None) -> None:
        cause = "" if condition is None else f" (condition number of the second moment: {condition:.1e})"
        text = f"the change of layer {layer} is {amount:.1f} times as large as the weight it changes{cause}; {advice}"
        super().__init__(text, layer=layer, amount=amount, origin=origin, advice=advice)

    @classmethod
    def together(cls, several: Sequence[BlueditWarning]) -> str:
        amounts = _range([f"{one.amount:.1f}" for one in sorted(several, key=_amount)])
        layers = {one.layer for one in several}
        if len(layers) == 1:
            return f"the change of {layers_text(layers)} is {amounts} times as large as the weight it changes"
        return f"the changes of {layers_text(layers)} are {amounts} times as large as the weights they change"


class RoundingWarning(BlueditWarning):
    """A change that is lost in part to the precision of its weight: `amount` is the fraction lost."""

    def __init__(self, *, layer: int, amount: float, origin: str, dtype: str) -> None:
        advice = "apply the patch to the model in float32 (--dtype float32) to keep all of it"
        text = f"rounding to {dtype} moves the change of layer {layer} by {amount:.0%} of its size; {advice}"
        super().__init__(text, layer=layer, amount=amount, origin=origin, advice=advice)
        self.dtype = dtype

    @classmethod
    def together(cls, several: Sequence[BlueditWarning]) -> str:
        amounts = _range([f"{100 * one.amount:.0f}" for one in sorted(several, key=_amount)])
        layers = {one.layer for one in several}
        changes, their = ("change", "its") if len(layers) == 1 else ("changes", "their")
        kinds = dict.fromkeys(one.dtype for one in several if isinstance(one, RoundingWarning))
        return f"rounding to {' and '.join(kinds)} moves the {changes} of {layers_text(layers)} by {amounts}% of {their} size"


class UnmetWarning(BlueditWarning):
    """An edit that gives little of what was asked for: `amount` is the share that the written weights leave open at a layer."""

    def __init__(self, *, layer: int, amount: float, origin: str, advice: str) -> None:
        text = f"the written weights leave {amount:.0%} of what the facts ask for at layer {layer} open; {advice}"
        super().__init__(text, layer=layer, amount=amount, origin=origin, advice=advice)

    @classmethod
    def together(cls, several: Sequence[BlueditWarning]) -> str:
        amounts = _range([f"{100 * one.amount:.0f}" for one in sorted(several, key=_amount)])
        layers = layers_text({one.layer for one in several})
        return f"the written weights leave {amounts}% of what the facts ask for at {layers} open"


def told_together(found: Iterable[Warning]) -> list[str]:
    """One line per cause: what kind of warning, about which method, with which advice. Others are told as they are, once."""
    groups: dict[object, list[Warning]] = {}
    for warning in found:
        cause = (type(warning), warning.origin, warning.advice) if isinstance(warning, BlueditWarning) else str(warning)
        groups.setdefault(cause, []).append(warning)
    lines: list[str] = []
    for group in groups.values():
        alike = [warning for warning in group if isinstance(warning, BlueditWarning)]
        if not alike:
            lines.append(str(group[0]))
            continue
        first = alike[0]
        lines.append(f"{first.origin}: {type(first).together(alike)}; {first.advice}")
    return lines


def _amount(warning: BlueditWarning) -> float:
    return warning.amount


def _range(amounts: Sequence[str]) -> str:
    """From the least to the largest of amounts that are sorted and written out."""
    return amounts[0] if amounts[0] == amounts[-1] else f"{amounts[0]} to {amounts[-1]}"
