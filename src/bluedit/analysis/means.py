"""Means with 95 % intervals over facts, as records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bluedit.evaluation.intervals import Estimate, bootstrap
from bluedit.results import Interval

__all__ = ["interval", "mean"]


def mean(values: Sequence[float] | np.ndarray | Any, *, percent: bool = False) -> Interval:
    """The mean of one value per fact with a percentile bootstrap; in percent where asked for."""
    array = np.asarray(values, dtype=float)
    return interval(bootstrap(len(array), lambda chosen: float(array[chosen].mean())), scale=1.0 if percent else 0.01)


def interval(estimate: Estimate, *, scale: float = 1.0) -> Interval:
    """An estimate as a record, to five digits."""
    value, low, high = (float(f"{scale * one:.5g}") for one in (estimate.value, estimate.low, estimate.high))
    return Interval(value=value, low=low, high=high, n=estimate.n)
