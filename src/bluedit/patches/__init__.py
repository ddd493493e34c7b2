"""Edits as values: low-rank algebra, the patch format, applying and reverting."""

from bluedit.patches.changes import Change, Dense, LowRank, Masked
from bluedit.patches.manifest import Manifest
from bluedit.patches.merging import merge
from bluedit.patches.patch import Patch, applied_patches

__all__ = ["Change", "Dense", "LowRank", "Manifest", "Masked", "Patch", "applied_patches", "merge"]
