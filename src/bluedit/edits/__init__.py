"""Edits as values: low-rank algebra, the patch format, applying and reverting."""

from bluedit.edits.changes import Change, Dense, LowRank, Masked
from bluedit.edits.manifest import Manifest
from bluedit.edits.merge import merge
from bluedit.edits.patch import Patch, applied_patches

__all__ = ["Change", "Dense", "LowRank", "Manifest", "Masked", "Patch", "applied_patches", "merge"]
