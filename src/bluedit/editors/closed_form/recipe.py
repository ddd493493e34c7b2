"""What a closed-form method is made of: a prior over keys, an objective, a constraint, and how the solver takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, cast

from bluedit.editors.base import Editor, Needs, Part
from bluedit.editors.closed_form.constraints import Constraint
from bluedit.editors.closed_form.objectives import HIDDEN_STATE, Objective, ValueSettings
from bluedit.editors.closed_form.priors import SECOND_MOMENT, Prior
from bluedit.editors.settings import Settings, setting
from bluedit.errors import SettingsError

__all__ = ["ClosedForm", "SolverSettings"]


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
class ClosedForm(Editor):
    """The parts of a locate-then-edit method: all that the loop reads.

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
    caches_keys: bool = False  # pyright: ignore[reportIncompatibleMethodOverride] (chosen here, fixed in other editors)
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

    def value_identity(self, settings: Settings) -> dict[str, Any]:
        """The objective and its settings: methods that differ in anything else optimise the same values."""
        chosen = settings.as_dict()
        return {
            "objective": asdict(self.objective),
            "settings": {name: chosen[name] for name in self.objective.settings.names()},
        }

    def needs(self, settings: Settings) -> Needs:
        """Inverse metrics, and values."""
        solver, values = cast("SolverSettings", settings), cast("ValueSettings", settings)
        return Needs(
            second_moments=True,
            metric_bytes=8 if solver.metric_dtype == "float64" else 4,
            keeps_initial=self.caches_keys,
            evaluations=values.v_num_grad_steps,
        )
