"""Strategies: which layer closes which gap.

A strategy turns the critical layers into an ordered list of steps. Each step changes one layer so that it closes a
fraction of the gap between the hidden state and its target at the target layer; keys and gap are measured again before
every step. With residual *distribution* every step targets the last layer; with BLUE the first and the last critical
layer at targets of their own (Li et al. 2025, section 5).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bluedit.errors import SettingsError, did_you_mean

__all__ = [
    "BOUNDARY",
    "EACH_LAYER",
    "EVEN",
    "NO_LAYERS",
    "SINGLE",
    "SQUARE_ROOT",
    "STRATEGIES",
    "Step",
    "Strategy",
    "explicit",
    "find_strategy",
    "single",
]


class Step(NamedTuple):
    """Change `layer` so that it closes `fraction` of the gap that remains at `target_layer`."""

    layer: int
    target_layer: int
    fraction: float


@dataclass(frozen=True)
class Strategy:
    """A named rule from critical layers to steps.

    Calling it with the critical layers, in rising order, gives the steps. A step never aims below the layer it changes.
    """

    name: str
    rule: Callable[[tuple[int, ...]], tuple[Step, ...]]
    fixed_layers: tuple[int, ...] | None = None
    """The layers of a strategy that does not depend on the critical ones."""
    one_layer: bool = False
    """Whether a single layer is changed, whatever it is."""

    def steps(self, layers: Sequence[int]) -> tuple[Step, ...]:
        """The steps over critical layers `layers`.

        **Raises** :class:`~bluedit.errors.SettingsError` when there is no layer.
        """
        critical = tuple(sorted(set(layers)))
        if not critical and self.fixed_layers != ():
            raise SettingsError("no critical layers given; name at least one")
        if critical and critical[0] < 0:
            raise SettingsError(f"layers are counted from 0; got {critical[0]}")
        return self.rule(critical)

    def __repr__(self) -> str:
        return f"<strategy {self.name}>"


def _distributed(fraction: Callable[[int], float]) -> Callable[[tuple[int, ...]], tuple[Step, ...]]:
    """Every layer closes `fraction(layers left, itself included)` of the gap at the last."""

    def rule(layers: tuple[int, ...]) -> tuple[Step, ...]:
        last = layers[-1]
        return tuple(Step(layer, last, fraction(len(layers) - index)) for index, layer in enumerate(layers))

    return rule


def _own(layers: tuple[int, ...]) -> tuple[Step, ...]:
    return tuple(Step(layer, layer, 1.0) for layer in layers)


EVEN = Strategy("even", _distributed(lambda left: 1 / left))
"""MEMIT's: of the k layers left, one closes 1/k of what remains (MEMIT, algorithm 1)."""

SQUARE_ROOT = Strategy("square-root", _distributed(lambda left: 1 / math.sqrt(left)))
"""PMET's: 1/sqrt(k) (PMET, section 4.3)."""

BOUNDARY = Strategy("boundary", lambda layers: _own(tuple(dict.fromkeys((layers[0], layers[-1])))))
"""BLUE's: only the first and the last critical layer, each with a residual computed for it (BLUE, section 5)."""

EACH_LAYER = Strategy("each-layer", _own)
"""A target of its own at every layer in turn (the experiment behind BLUE's table 1)."""


def _only(layers: tuple[int, ...]) -> tuple[Step, ...]:
    if len(layers) > 1:
        raise SettingsError(
            f"one layer is edited, and {len(layers)} are named; name one, as in --layers {layers[-1]}, or use single:LAYER"
        )
    return _own(layers)


SINGLE = Strategy("single", _only, one_layer=True)
"""The one critical layer closes its own gap (ROME, and fine-tuning of one weight)."""

NO_LAYERS = Strategy("none", lambda _: (), fixed_layers=())
"""For editors that change no layer's weight."""

STRATEGIES: dict[str, Strategy] = {known.name: known for known in (EVEN, SQUARE_ROOT, BOUNDARY, EACH_LAYER)}
"""The strategies over any number of layers, by name. :func:`find_strategy` takes `single` and `single:LAYER` as well."""


def single(layer: int) -> Strategy:
    """One layer closes its own gap, whatever the critical layers are."""
    return Strategy(f"single:{layer}", lambda _: (Step(layer, layer, 1.0),), (layer,), one_layer=True)


def explicit(steps: Sequence[Step | tuple[int, int, float]]) -> Strategy:
    """A list of steps, as it is.

    **Raises** :class:`~bluedit.errors.SettingsError` when a step aims below the layer it changes, a layer is
    changed twice, or the list is empty.
    """
    fixed = tuple(Step(*step) for step in steps)
    if not fixed:
        raise SettingsError("an explicit strategy needs at least one step (layer, target_layer, fraction)")
    if len({step.layer for step in fixed}) < len(fixed):
        raise SettingsError("an explicit strategy changes each layer once; combine the changes of a layer in one step")
    for step in fixed:
        if step.target_layer < step.layer:
            raise SettingsError(
                f"step {tuple(step)} aims at layer {step.target_layer}, which a change of layer {step.layer} cannot reach"
            )
    return Strategy("explicit", lambda _: fixed, tuple(sorted({step.layer for step in fixed})))


def find_strategy(name: str | Strategy) -> Strategy:
    """A strategy by name.

    **Raises** :class:`~bluedit.errors.SettingsError` with the nearest known name.
    """
    if isinstance(name, Strategy):
        return name
    kind, separator, layer = name.partition(":")
    if name == SINGLE.name:
        return SINGLE
    if kind == "single" and separator and re.fullmatch("[0-9]{1,5}", layer):
        return single(int(layer))
    if name not in STRATEGIES:
        raise SettingsError(did_you_mean(name, (*STRATEGIES, "single", "single:LAYER"), what="strategy"))
    return STRATEGIES[name]
