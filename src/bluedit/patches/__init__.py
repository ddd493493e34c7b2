"""Edits as values: low-rank algebra, the patch format, applying and reverting."""

from bluedit.patches.low_rank import LowRank
from bluedit.patches.patch import Manifest, Patch, applied_patches

__all__ = ["LowRank", "Manifest", "Patch", "applied_patches"]
