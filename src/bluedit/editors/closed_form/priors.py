"""Prior metrics over keys: what a method holds against changing what a layer stores already.

A prior turns what is known of a layer's keys into B, the inverse metric that the recursive solver starts from. A new prior is
a frozen value with these members; :class:`~bluedit.editors.closed_form.method.Method` takes it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from bluedit.editors.closed_form.inverse_metric import InverseMetric
from bluedit.editors.settings import Search, Settings, setting

if TYPE_CHECKING:
    from bluedit.statistics import SecondMoment

__all__ = ["NULL_SPACE", "SECOND_MOMENT", "NullSpaceSettings", "Prior", "SecondMomentSettings"]


class Prior(Protocol):
    """How a method weighs changes.

    - `name`: what files call it.
    - `settings`: the class of its settings.
    - `scale`: the names of the settings that only scale the metric; they cancel where residuals are met exactly.
    """

    name: ClassVar[str]
    settings: ClassVar[type[Settings]]
    scale: ClassVar[tuple[str, ...]]

    def inverse(self, moment: SecondMoment, settings: Any) -> InverseMetric:
        """B before the first batch, float64; `settings` are the method's, an instance of the prior's class too."""
        ...


_SHRINKAGE = Search(factor=10, lowest=1e-3, highest=0.5, usual=2)
_SHRINKAGE_SENTENCE = "a in (1 - a) C + a tr(C)/F I; 0 as published."


class SecondMomentSettings(Settings):
    """Settings of the prior lambda C."""

    # Published weights of the prior belong to large models; smaller ones want less.
    lambda_: float = setting(
        15000.0,
        "Weight of the second moment against the new facts (MEMIT eq. 15).",
        alias="lambda",
        unit="facts",
        gt=0,
        search=Search(factor=10, lowest=1e-4, highest=1e9, heading=-1, usual=1),
    )
    lambda_scale: Literal["absolute", "relative"] = setting(
        "absolute",
        "What lambda is counted in: absolute, as published; or relative, in d_ff. E[k^T C^-1 k] over the text is d_ff, "
        "whatever the keys' size: at a relative lambda of 1 a key like the text's is met by half, in a model of any width.",
        quiet=True,
    )
    shrinkage: float = setting(0.0, _SHRINKAGE_SENTENCE, ge=0, le=1, search=_SHRINKAGE)


@dataclass(frozen=True)
class _SecondMoment:
    """M = lambda C (MEMIT eq. 14 and 15; also ROME's and EMMET's, where lambda cancels).

    A single key k is met by q / (1 + q) with q = k^T C^-1 k / lambda, and q is F / lambda in the mean over the text: a relative
    lambda counts in F.
    """

    name: ClassVar[str] = "second-moment"
    scale: ClassVar[tuple[str, ...]] = ("lambda", "lambda_scale")
    settings: ClassVar[type[Settings]] = SecondMomentSettings

    def inverse(self, moment: SecondMoment, settings: SecondMomentSettings) -> InverseMetric:
        inverse_FF, condition = moment.inverse(settings.shrinkage)
        unit = len(inverse_FF) if settings.lambda_scale == "relative" else 1
        return InverseMetric(inverse_FF / (settings.lambda_ * unit), condition)


class NullSpaceSettings(Settings):
    """Settings of AlphaEdit's prior."""

    L2: float = setting(
        10.0,
        "AlphaEdit's ridge, used instead of lambda.",
        unit="||k||^2",
        gt=0,
        search=Search(factor=10, lowest=1e-4, highest=1e6, usual=1),
    )
    nullspace_threshold: float = setting(
        2e-2,
        "Directions with an eigenvalue below this count as null space.",
        unit="see nullspace_scale",
        gt=0,
        search=Search(factor=10, lowest=1e-6, highest=1e4, usual=2),
    )
    nullspace_scale: Literal["absolute", "relative"] = setting(
        "absolute", "The unit of the threshold: C's own units (as published), or mean eigenvalues."
    )
    # Directions without energy are what the method edits in: a search leaves shrinkage alone.
    shrinkage: float = setting(0.0, _SHRINKAGE_SENTENCE, ge=0, le=1, search=Search(factor=10, lowest=1e-3, highest=0.5))


@dataclass(frozen=True)
class _NullSpace:
    """B = P / L2, with P the projector on directions in which C hardly has any energy (AlphaEdit, Fang et al. 2024, section
    3)."""

    name: ClassVar[str] = "null-space"
    scale: ClassVar[tuple[str, ...]] = ("L2",)
    settings: ClassVar[type[Settings]] = NullSpaceSettings

    def inverse(self, moment: SecondMoment, settings: NullSpaceSettings) -> InverseMetric:
        return InverseMetric.from_null_space(
            *moment.eigenbasis,
            settings.L2,
            threshold=settings.nullspace_threshold,
            relative=settings.nullspace_scale == "relative",
            shrinkage=settings.shrinkage,
        )


SECOND_MOMENT = _SecondMoment()
NULL_SPACE = _NullSpace()
