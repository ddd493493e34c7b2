"""Edits as values: low-rank algebra, the patch format, applying and reverting."""

from bluedit.patches.changes import Change, Dense, LowRank, Masked
from bluedit.patches.patch import Manifest, Patch, applied_patches, merge

__all__ = ["Change", "Dense", "LowRank", "Manifest", "Masked", "Patch", "applied_patches", "merge"]
