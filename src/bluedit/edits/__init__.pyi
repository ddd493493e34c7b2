from .base import Edit, applied_patches, merge
from .changes import Change, Dense, LowRank, Masked
from .loading import load_edit
from .manifest import Manifest
from .patch import Patch

__all__ = ["Change", "Dense", "Edit", "LowRank", "Manifest", "Masked", "Patch", "applied_patches", "load_edit", "merge"]
