"""Restraints on a finished change, for the sake of what the model knew before.

A constraint is a frozen value that says when it acts: on each batch's change once all its layers are solved, or once on the
whole sequence's. :class:`~bluedit.methods.Method` takes any object with these members.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor

from bluedit.editors.closed_form.constraints.prune import PRUNING, Pruning
from bluedit.editors.closed_form.constraints.rect import RELATIVE_CHANGE, RelativeChange
from bluedit.edits.changes import Change

if TYPE_CHECKING:
    from bluedit.methods import Settings

__all__ = ["PRUNING", "RELATIVE_CHANGE", "Constraint", "Pruning", "RelativeChange"]


class Constraint(Protocol):
    """What is done to a finished change."""

    @property
    def when(self) -> Literal["batch", "sequence"]:
        """After every batch, or once at the end of the sequence."""
        ...

    @property
    def uses(self) -> tuple[str, ...]:
        """The settings it reads, by the names users write."""
        ...

    def constrain(self, change: Change, weight_DF: Tensor, settings: Settings) -> Change:
        """The restrained change; `weight_DF` is W before the batch, or before the sequence."""
        ...
