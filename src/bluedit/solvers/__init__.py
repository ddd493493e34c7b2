"""Closed-form solutions: from keys and residuals to weight changes. Linear algebra only; no model is seen here."""

from bluedit.solvers.priors import NULL_SPACE, SECOND_MOMENT, Prior
from bluedit.solvers.recursive import InverseMetric
from bluedit.solvers.shrinkage import shrink

__all__ = ["NULL_SPACE", "SECOND_MOMENT", "InverseMetric", "Prior", "shrink"]
