"""A closed-form method as a value: a prior over keys, a strategy, an objective and a constraint, combined.

    Method(name="mine", strategy=BOUNDARY, prior=NULL_SPACE, caches_keys=True, constraint=RELATIVE_CHANGE)

What the loop does with it is in :mod:`bluedit.editors.closed_form.loop`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from bluedit.editors.base import Edited, Plan, Setup, State, ValueStore
from bluedit.editors.closed_form.recipe import ClosedForm

if TYPE_CHECKING:
    from torch import Tensor

    from bluedit.editors.closed_form.optimizer import Values
    from bluedit.editors.closed_form.state import InverseMetrics
    from bluedit.edits.base import Edit
    from bluedit.edits.patch import Patch
    from bluedit.models import EditableModel
    from bluedit.progress import Progress

__all__ = ["Method"]


@dataclass(frozen=True, kw_only=True)
class Method(ClosedForm):
    """A locate-then-edit method; :class:`~bluedit.editors.closed_form.recipe.ClosedForm` has its parts.

    What needs a model is imported when it is used: a table of methods costs nothing.
    """

    def prepare(self, model: EditableModel, setup: Setup, progress: Progress) -> Setup:
        """The setup with the second moments of its layers in memory."""
        from bluedit.editors.closed_form.state import with_moments

        return with_moments(model, setup, progress)

    def begin(self, setup: Setup) -> State:
        """Inverse metrics, none made yet."""
        from bluedit.editors.closed_form.state import InverseMetrics

        return InverseMetrics(setup)

    def edit(
        self, model: EditableModel, plan: Plan, state: State, progress: Progress, store: ValueStore | None = None
    ) -> Edited:
        """One batch, see :func:`~bluedit.editors.closed_form.loop.edit_batch`."""
        from bluedit.editors.closed_form.loop import edit_batch

        return edit_batch(model, plan, cast("InverseMetrics", state), progress, store)

    def restore_values(
        self, model: EditableModel, layer: int, record: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Values:
        """Targets and initial states, on the device of the layer."""
        from bluedit.editors.closed_form.optimizer import Values

        return Values.restored(layer, record, tensors, model.weight(layer).device)

    def stored_values(self, edit: Edit, columns: Sequence[int]) -> ValueStore:
        """The targets in a patch, see :class:`~bluedit.editors.closed_form.stored.StoredTargets`."""
        from bluedit.editors.closed_form.stored import stored_targets

        return stored_targets(cast("Patch", edit), columns)

    @property
    def ends_sequence(self) -> bool:
        """Whether its constraint acts on the whole change."""
        return self.constraint is not None and self.constraint.when == "sequence"

    def finish(self, edit: Edit, setup: Setup, originals: Mapping[str, Tensor]) -> Edit:
        """The patch of the whole sequence after the constraint that acts at its end, if there is one (PRUNE)."""
        from bluedit.editors.closed_form.loop import constrain_sequence

        return constrain_sequence(cast("Patch", edit), setup, originals) if self.ends_sequence else edit

    def restore(
        self, setup: Setup, record: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], model: EditableModel
    ) -> State:
        """The inverse metrics of a saved session."""
        from bluedit.editors.closed_form.state import InverseMetrics

        return InverseMetrics.restored(setup, record, tensors, model)

    def check_memory(self, memory: Mapping[str, Tensor], edit: Edit, model: EditableModel) -> None:
        """Past keys are (d_ff, N) for N facts, one set for each layer that the batch changed."""
        from bluedit.editors.closed_form.state import check_keys

        check_keys(memory if self.caches_keys else None, cast("Patch", edit), model)
