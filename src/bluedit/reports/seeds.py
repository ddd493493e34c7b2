"""Runs that differ in their seed alone: the mean of each score over seeds, with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bluedit.reports.data import ReportData

__all__ = ["SeedMeans", "mean_interval", "over_seeds"]

_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
    2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Quantiles 0.975 of Student's t distribution for 1, 2, ... degrees of freedom; beyond, the normal distribution's."""


@dataclass(frozen=True)
class SeedMeans:
    """One run over several seeds.

    - `scores`: by score its mean over seeds, with the interval of :func:`mean_interval`.
    """

    label: str
    model: str
    dataset: str
    edited: str
    seeds: Sequence[int]
    scores: Mapping[str, Mapping[str, float]]


def mean_interval(values: Sequence[float]) -> dict[str, float]:
    """The mean of two values or more with the 95 % interval mean +- t s / sqrt(n); t is Student's, with n - 1 degrees."""
    count = len(values)
    mean = sum(values) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = (_T[count - 2] if count - 2 < len(_T) else 1.960) * deviation / math.sqrt(count)
    return {"value": mean, "low": mean - half, "high": mean + half, "n": count}


def over_seeds(data: ReportData) -> list[SeedMeans]:
    """The runs that were done with several seeds: same label, model, data and protocol."""
    groups: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = {}
    for cell in data.finished:
        for run in cell.runs:
            tag, edit = run["protocol"], run["protocol"]["edit"]
            edited = f"{edit['edits']:,} by {edit['batch_size']:,}, scored {edit['evaluated']}"
            groups.setdefault((run["label"], tag["model"], tag["dataset"], edited), []).append(run)
    means: list[SeedMeans] = []
    for key, runs in groups.items():
        seeds = [run["protocol"]["seed"] for run in runs]
        if len(set(seeds)) == len(runs) > 1:
            names = [name for name in runs[0]["scores"] if all(name in run["scores"] for run in runs)]
            scores = {name: mean_interval([run["scores"][name]["value"] for run in runs]) for name in names}
            means.append(SeedMeans(*key, seeds, scores))
    return means
