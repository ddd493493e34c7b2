"""`--layers auto`: the critical layers that a trace shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bluedit.errors import SettingsError

if TYPE_CHECKING:
    from bluedit.cli.console import Bars
    from bluedit.datasets import Case
    from bluedit.editors.base import Editor
    from bluedit.models import EditableModel

__all__ = ["traced_layers"]

_EMBEDDED_FACTS = ("world:counterfact:0:2", 60)
"""What an embedded model's layers are chosen on: a draw of its own, on which nothing is reported."""


def traced_layers(
    editable: EditableModel, name: str, method: Editor, traced: list[Case] | None, seed: int, bars: Bars
) -> tuple[int, ...]:
    """The layers for a method that a trace of `traced` shows, or else the stored trace of this model; printed.

    An embedded model has facts of its own to be traced.
    """
    from bluedit.cli import console
    from bluedit.datasets import read_dataset
    from bluedit.editors.layer_cache import recall
    from bluedit.models.embedded import EMBEDDED
    from bluedit.tracing.choice import layers_by_tracing

    choice = None
    if traced is None:
        try:
            choice = recall(editable)
        except SettingsError:
            if name not in EMBEDDED:
                raise
            traced = read_dataset(*_EMBEDDED_FACTS)
    if choice is None:
        assert traced is not None
        choice = layers_by_tracing(editable, traced, seed=seed, progress=bars)
    layers = choice.layers_for(method.strategy)
    edited = ", ".join(str(step.layer) for step in method.strategy.steps(layers))
    console.say(f"layers {choice} chosen by causal tracing of {choice.facts} facts; edited: {edited}")
    return layers
