"""What all analyses of a model share: its facts, how they are edited, and residuals of the model as it is now.

*Names.* L is the last critical layer. The *computed* residual of layer l is optimised there; the *distributed* one is l's share
of the residual that was optimised at L, delta_L / (i_L - i + 1) for the i-th critical layer (MEMIT, algorithm 1).

Shapes: D d_model, N facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from torch import Tensor

from bluedit.datasets import Case
from bluedit.editing import Plan, Setup
from bluedit.editors.base import ValueStore
from bluedit.editors.closed_form.loop import values_at
from bluedit.editors.closed_form.optimizer import Values
from bluedit.editors.closed_form.recipe import ClosedForm
from bluedit.errors import SettingsError
from bluedit.models import EditableModel
from bluedit.models.editable import Component
from bluedit.progress import Progress, silent
from bluedit.strategies import EVEN, SQUARE_ROOT, Step, Strategy, explicit, single

__all__ = ["Study", "check_method"]


def check_method(setup: Setup) -> ClosedForm:
    """The method of a setup, if it has residuals.

    **Raises** :class:`~bluedit.errors.SettingsError` where it has none.
    """
    if not isinstance(setup.method, ClosedForm) or setup.method.strategy.one_layer:
        raise SettingsError(
            f"{setup.method.name} distributes no residual over layers; analyse a method that does, such as memit or alphaedit"
        )
    return setup.method


@dataclass
class Study:
    """A model, cases, and a setup to edit them with.

    - `setup`: its strategy says how residuals are distributed: even, square-root.
    - `dataset`: what the cases are called.
    - `values`: where values are kept that were optimised once; see :mod:`bluedit.experiments.sharing`.
    """

    model: EditableModel
    cases: tuple[Case, ...]
    setup: Setup
    dataset: str
    values: ValueStore | None = None

    def __post_init__(self) -> None:
        method = check_method(self.setup)
        if method.strategy not in (EVEN, SQUARE_ROOT):
            self.setup = replace(self.setup, method=method.with_strategy(EVEN))

    @cached_property
    def fingerprint(self) -> str:
        """Of the unedited weights."""
        return self.model.fingerprint()

    @property
    def layers(self) -> tuple[int, ...]:
        """The critical layers, rising."""
        return self.setup.layers

    @property
    def component(self) -> Component:
        """Where residuals stand: `layer`, or `mlp` for methods whose target is the MLP's output."""
        return cast("ClosedForm", self.setup.method).objective.components[0]

    @cached_property
    def plan(self) -> Plan:
        """The plan of all facts in one batch, residuals distributed."""
        return self.setup.plan(self.model, [case.fact for case in self.cases])

    def planned(self, strategy: Strategy) -> Plan:
        """The same facts with another strategy."""
        return replace(self.plan, method=self.setup.method.with_strategy(strategy))

    def share(self, layer: int) -> float:
        """What part of the last layer's residual a critical layer is given."""
        steps = self.setup.method.strategy.steps(self.layers)
        return next(step.fraction for step in steps if step.layer == layer)

    def alone(self, layer: int, *, computed: bool) -> Strategy:
        """One layer edited alone, with its computed residual, or with the distributed one."""
        if computed:
            return single(layer)
        return explicit([Step(layer, self.layers[-1], self.share(layer))])

    def residuals(self, layer: int, progress: Progress = silent) -> Tensor:
        """Computed residuals of all facts at `layer` of the model as it is now, (D, N): one column a fact."""
        values = self.optimised(layer, progress)
        return values.targets_DN - values.initial_DN

    def distributed(self, layer: int, progress: Progress = silent) -> Tensor:
        """Residuals that `layer` is given of those at the last critical layer, (D, N)."""
        return self.share(layer) * self.residuals(self.layers[-1], progress)

    def optimised(self, layer: int, progress: Progress = silent, plan: Plan | None = None) -> Values:
        """Values of all facts, or of a plan's, at `layer` of the model as it is now."""
        return values_at(self.model, plan or self.plan, layer, progress, self.values)[0]

    def batches(self, size: int) -> list[Sequence[Case]]:
        """The cases in batches."""
        return [self.cases[start : start + size] for start in range(0, len(self.cases), size)]
