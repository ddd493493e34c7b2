"""Settings for a model that nobody has tuned, by a short search on held-out facts."""

from bluedit.tuning.file import Check, Trial, Tuning, read_tuning
from bluedit.tuning.tuning import tune

__all__ = ["Check", "Trial", "Tuning", "read_tuning", "tune"]
