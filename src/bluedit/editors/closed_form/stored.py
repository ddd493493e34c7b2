"""The targets that a patch stores, so that its facts can be solved for again: no value is optimised a second time.

*Concept.* A closed form takes each fact's target z at a target layer, and measures keys and gaps on the model as it is. Facts
do not interact until they are solved for together. So a fact leaves a batch when the others are solved for without it, with
the targets they have: z stays, keys, gaps and changes are computed anew.

*Mechanism.* A patch stores z by target layer. The store hands it to the loop in place of the optimiser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from bluedit.editors.base import Plan
from bluedit.editors.closed_form.keys import fact_states
from bluedit.editors.closed_form.optimizer import Values
from bluedit.editors.closed_form.recipe import ClosedForm
from bluedit.edits.patch import Patch
from bluedit.errors import PatchError
from bluedit.models import EditableModel

__all__ = ["StoredTargets", "stored_targets"]


def stored_targets(patch: Patch, columns: Sequence[int]) -> StoredTargets:
    """What a patch stores of some of its facts, by their places in it.

    **Raises** :class:`~bluedit.errors.PatchError` for patches before version 3 of their format, which hold no targets.
    """
    if patch.facts and not patch.targets:
        raise PatchError(
            "the patch holds no targets: it was made by an earlier version of bluedit. Make the edit again, with the facts "
            "that shall stay"
        )
    return StoredTargets(patch, tuple(columns))


@dataclass(frozen=True)
class StoredTargets:
    """The values of some facts of a patch; `columns` are their places in it, in the order in which a plan has them."""

    patch: Patch
    columns: tuple[int, ...]

    def recall(self, model: EditableModel, plan: Plan, layer: int) -> tuple[Values, float]:
        """The targets at `layer`, and the states of the model as it is now."""
        columns = list(self.columns)
        targets_DN = self.patch.targets[layer].to(model.weight(layer).device)[:, columns]
        initial_DN = fact_states(model, plan.facts, layer, cast("ClosedForm", plan.method).objective.components[0])
        record = next(one for one in self.patch.manifest.optimisation if one.layer == layer)
        evaluations = tuple(record.evaluations[place] for place in columns)
        losses = tuple(record.losses[place] for place in columns)
        return Values(layer, targets_DN, initial_DN, evaluations, losses), 0.0

    def keep(self, model: EditableModel, plan: Plan, layer: int, values: Any, seconds: float) -> None:
        """Nothing is optimised, and nothing is new."""
