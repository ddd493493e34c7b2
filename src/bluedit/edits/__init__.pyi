from .changes import Change, Dense, LowRank, Masked
from .manifest import Manifest
from .merge import merge
from .patch import Patch, applied_patches

__all__ = ["Change", "Dense", "LowRank", "Manifest", "Masked", "Patch", "applied_patches", "merge"]
