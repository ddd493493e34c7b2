"""95 % intervals. Cases, not prompts, are the sampling unit: prompts of one case share their fate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["Estimate", "bootstrap", "pooled_share", "share"]

_Z = 1.959963984540054
_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A score in percent with its 95 % interval, over `n` cases."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self, digits: int = 2) -> dict[str, float]:
        return {name: round(value, digits) if name != "n" else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


def share(cases: Sequence[Sequence[float]]) -> Estimate:
    """The mean over cases of each case's mean, a fraction, with a Wilson interval.

    `cases` holds every case's outcomes, each in [0, 1]. The interval is Wilson's at the effective sample size
    p (1 - p) / Var(mean), with the variance taken between cases: as many as there are outcomes when the outcomes of a case
    are independent, as many as there are cases when they always agree. Where nothing varies, cases are what is counted,
    so 100 % of 100 cases reads [96.3, 100] whatever the number of prompts.
    """
    means = [sum(outcomes) / len(outcomes) for outcomes in cases]
    count = len(means)
    mean = sum(means) / count
    size = float(count)
    if 0 < mean < 1 and count > 1:
        variance = sum((value - mean) ** 2 for value in means) / (count - 1) / count
        if variance > 0:
            size = min(max(mean * (1 - mean) / variance, 1.0), float(sum(map(len, cases))))
    low, high = _wilson(mean, size)
    return Estimate(100 * mean, 100 * low, 100 * high, count)


def pooled_share(hits: Sequence[float], counts: Sequence[int]) -> Estimate:
    """The fraction of hits among all outcomes of all clusters, sum(hits) / sum(counts), with a Wilson interval.

    As :func:`share`, but that every outcome counts alike, and not every cluster. The effective sample size is
    p (1 - p) / Var(p), with the variance of a ratio over clusters; where nothing varies, clusters are what is counted.
    """
    clusters, total = len(counts), float(sum(counts))
    mean = sum(hits) / total
    size = float(clusters)
    if 0 < mean < 1 and clusters > 1:
        squares = sum((hit - mean * count) ** 2 for hit, count in zip(hits, counts, strict=True))
        variance = squares * clusters / (clusters - 1) / total**2
        if variance > 0:
            size = min(max(mean * (1 - mean) / variance, 1.0), total)
    low, high = _wilson(mean, size)
    return Estimate(100 * mean, 100 * low, 100 * high, clusters)


def _wilson(mean: float, size: float) -> tuple[float, float]:
    centre = (mean + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    half = _Z / (1 + _Z**2 / size) * math.sqrt(mean * (1 - mean) / size + _Z**2 / (4 * size**2))
    # At the ends the interval reaches the fraction exactly; rounding must not push it past.
    return min(max(centre - half, 0.0), mean), max(min(centre + half, 1.0), mean)


def bootstrap(count: int, statistic: Callable[[np.ndarray], float], seed: int = 0) -> Estimate:
    """A percentile bootstrap over `count` cases of a statistic of their indices, in percent."""
    rng = np.random.default_rng(seed)
    samples = [statistic(rng.integers(0, count, count)) for _ in range(_RESAMPLES)]
    low, high = np.percentile(samples, [2.5, 97.5])
    return Estimate(100 * statistic(np.arange(count)), 100 * float(low), 100 * float(high), count)
