"""Edits as values: what can be applied to a model, taken back, saved and loaded."""

from bluedit.edits.base import Edit, applied_patches, load_edit, merge
from bluedit.edits.changes import Change, Dense, LowRank, Masked
from bluedit.edits.manifest import Manifest
from bluedit.edits.patch import Patch

__all__ = ["Change", "Dense", "Edit", "LowRank", "Manifest", "Masked", "Patch", "applied_patches", "load_edit", "merge"]
