"""Closed-form solutions: from keys and residuals to weight changes."""

from bluedit.solvers.recursive import InverseMetric

__all__ = ["InverseMetric"]
