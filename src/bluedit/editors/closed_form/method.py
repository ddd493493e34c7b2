"""A closed-form method as a value: a prior over keys, a strategy, an objective and a constraint, combined.

    Method(name="mine", strategy=BOUNDARY, prior=NULL_SPACE, caches_keys=True, constraint=RELATIVE_CHANGE)

What the loop does with it is in :mod:`bluedit.editors.closed_form.loop`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from bluedit.editors.base import Edited, Editor, Needs, Part, State, ValueStore
from bluedit.editors.closed_form.constraints import Constraint
from bluedit.editors.closed_form.objectives import HIDDEN_STATE, Objective, ValueSettings
from bluedit.editors.closed_form.priors import SECOND_MOMENT, Prior
from bluedit.editors.settings import Settings, setting
from bluedit.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor

    from bluedit.editors.plan import Plan, Setup
    from bluedit.edits.base import Edit
    from bluedit.models import EditableModel
    from bluedit.progress import Progress

__all__ = ["Method", "SolverSettings"]


class SolverSettings(Settings):
    """Settings of the solver (:mod:`bluedit.editors.closed_form.inverse_metric`)."""

    metric_dtype: Literal["float64", "float32"] = setting(
        "float64",
        "Precision of the inverse metric. float32 halves its memory, and loses what a condition number above 1e6 leaves.",
    )


@dataclass(frozen=True)
class _Solver:
    """Recursive least squares; see :mod:`bluedit.editors.closed_form.inverse_metric`."""

    name: ClassVar[str] = "recursive-least-squares"
    settings: ClassVar[type[Settings]] = SolverSettings


@dataclass(frozen=True, kw_only=True)
class Method(Editor):
    """A locate-then-edit method: what the loop needs to know, and nothing that it does.

    - `strategy`: which layer closes which gap.
    - `prior`: the metric over keys that changes are weighed by.
    - `noise`: eps of the least-squares form; 1 trades residuals against the prior, 0 meets them exactly.
    - `reads_bare_prompt`: residuals are met at the key of the bare prompt, though written to the mean key over contexts (ROME).
    - `caches_keys`: keys of earlier batches of a session join the prior.
    - `objective`: what is optimised for a fact.
    - `constraint`: what is done to the finished change.
    """

    prior: Prior = SECOND_MOMENT
    noise: Literal[0, 1] | float = 1.0
    reads_bare_prompt: bool = False
    caches_keys: bool = False
    objective: Objective = HIDDEN_STATE
    constraint: Constraint | None = None

    larger_batches: ClassVar[str] = ", or use emmet, which is its form for batches"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise < 0:
            raise SettingsError(
                f"noise={self.noise} of method {self.name!r} is negative; 1 is least squares, 0 meets residuals exactly"
            )
        if self.caches_keys and self.noise != 1:
            raise SettingsError(
                f"method {self.name!r} keeps past keys, which join the prior with noise 1; it has noise {self.noise}"
            )

    @property
    def parts(self) -> Mapping[str, Part]:
        """Prior, solver, objective and, where there is one, constraint."""
        parts: dict[str, Part] = {"prior": self.prior, "solver": _Solver(), "objective": self.objective}
        return parts | ({"constraint": self.constraint} if self.constraint else {})

    @property
    def unused(self) -> frozenset[str]:
        """The scale of the metric cancels where residuals are met exactly."""
        return frozenset() if self.noise else frozenset(self.prior.scale)

    def needs(self, settings: Settings) -> Needs:
        """Inverse metrics, and values."""
        solver, values = cast("SolverSettings", settings), cast("ValueSettings", settings)
        return Needs(
            second_moments=True,
            metric_bytes=8 if solver.metric_dtype == "float64" else 4,
            keeps_initial=self.caches_keys,
            evaluations=values.v_num_grad_steps,
        )

    # -- editing: what needs a model is loaded when it is used -------------------------------------------------

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
        from bluedit.editors.closed_form.state import InverseMetrics

        return edit_batch(model, plan, cast("InverseMetrics", state), progress, store)

    @property
    def ends_sequence(self) -> bool:
        """Whether its constraint acts on the whole change."""
        return self.constraint is not None and self.constraint.when == "sequence"

    def finish(self, edit: Edit, setup: Setup, originals: Mapping[str, Tensor]) -> Edit:
        """The patch of the whole sequence after the constraint that acts at its end, if there is one (PRUNE)."""
        from bluedit.editors.closed_form.loop import constrain_sequence
        from bluedit.edits.patch import Patch

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
        from bluedit.edits.patch import Patch

        check_keys(memory if self.caches_keys else None, cast("Patch", edit), model)
