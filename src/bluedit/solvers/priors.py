"""Prior metrics over keys: what a method holds against changing what a layer stores already.

A prior turns what is known of a layer's keys into B, the inverse metric that the recursive solver starts from. A new prior is
a frozen value with these two members; :class:`~bluedit.methods.Method` takes it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from bluedit.solvers.recursive import InverseMetric

if TYPE_CHECKING:
    from bluedit.methods import Settings
    from bluedit.statistics import SecondMoment

__all__ = ["NULL_SPACE", "SECOND_MOMENT", "Prior"]


class Prior(Protocol):
    """How a method weighs changes."""

    @property
    def uses(self) -> tuple[str, ...]:
        """The settings it reads, by the names users write."""
        ...

    def inverse(self, moment: SecondMoment, settings: Settings) -> InverseMetric:
        """B before the first batch."""
        ...


@dataclass(frozen=True)
class _SecondMoment:
    """M = lambda C (MEMIT eq. 14 and 15; also ROME's and EMMET's, where lambda cancels).

    A single key k is met by q / (1 + q) with q = k^T C^-1 k / lambda, and q is F / lambda in the mean over the text: a relative
    lambda counts in F.
    """

    uses = ("lambda", "lambda_scale", "shrinkage", "metric_dtype")

    def inverse(self, moment: SecondMoment, settings: Settings) -> InverseMetric:
        inverse_FF, condition = moment.inverse(settings.shrinkage)
        unit = len(inverse_FF) if settings.lambda_scale == "relative" else 1
        metric = InverseMetric(inverse_FF / (settings.lambda_ * unit), condition)
        return metric.to_dtype(getattr(torch, settings.metric_dtype))


@dataclass(frozen=True)
class _NullSpace:
    """B = P / L2, with P the projector on directions in which C hardly has any energy (AlphaEdit, Fang et al. 2024, section
    3)."""

    uses = ("L2", "nullspace_threshold", "nullspace_scale", "shrinkage", "metric_dtype")

    def inverse(self, moment: SecondMoment, settings: Settings) -> InverseMetric:
        return InverseMetric.from_null_space(
            *moment.eigenbasis,
            settings.L2,
            threshold=settings.nullspace_threshold,
            relative=settings.nullspace_scale == "relative",
            shrinkage=settings.shrinkage,
        ).to_dtype(getattr(torch, settings.metric_dtype))


SECOND_MOMENT = _SecondMoment()
NULL_SPACE = _NullSpace()
