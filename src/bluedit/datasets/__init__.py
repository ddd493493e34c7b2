"""Editing cases: read from files in the published schemas or the user's own, or drawn from the synthetic world."""

from __future__ import annotations

from bluedit.datasets.cases import Case
from bluedit.datasets.reading import read_cases, read_dataset, read_known
from bluedit.datasets.world import World

__all__ = ["Case", "World", "read_cases", "read_dataset", "read_known"]
