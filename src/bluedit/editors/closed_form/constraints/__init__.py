"""Constraints on a finished change, for the sake of what the model knew before.

A constraint is a frozen value that says when it acts: on each batch's change once all its layers are solved, or once on the
whole sequence's. :class:`~bluedit.editors.closed_form.method.Method` takes any object with these members.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from bluedit.editors.closed_form.constraints.prune import PRUNING, PruneSettings, Pruning
from bluedit.editors.closed_form.constraints.rect import RELATIVE_CHANGE, RectSettings, RelativeChange
from bluedit.editors.settings import Settings
from bluedit.edits.changes import Change

__all__ = ["PRUNING", "RELATIVE_CHANGE", "Constraint", "PruneSettings", "Pruning", "RectSettings", "RelativeChange"]


class Constraint(Protocol):
    """What is done to a finished change.

    - `name`: what files call it.
    - `settings`: the class of its settings.
    - `when`: after every batch, or once at the end of the sequence.
    """

    name: ClassVar[str]
    settings: ClassVar[type[Settings]]

    @property
    def when(self) -> Literal["batch", "sequence"]: ...

    def constrain(self, change: Change, weight_DF: Tensor, settings: Any) -> Change:
        """The constrained change; `weight_DF` is W before the batch, or before the sequence. `settings` are the method's, an
        instance of the constraint's class too."""
        ...
