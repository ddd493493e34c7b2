from .base import Edit, applied_patches, merge
from .changes import Change, Dense, LowRank, Masked
from .ledger import Ledger
from .loading import load_edit
from .manifest import Manifest
from .patch import Patch

__all__ = [
    "Change",
    "Dense",
    "Edit",
    "Ledger",
    "LowRank",
    "Manifest",
    "Masked",
    "Patch",
    "applied_patches",
    "load_edit",
    "merge",
]
