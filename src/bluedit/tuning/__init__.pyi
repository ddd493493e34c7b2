from .file import Check, Trial, Tuning, read_tuning
from .tuning import tune

__all__ = ["Check", "Trial", "Tuning", "read_tuning", "tune"]
