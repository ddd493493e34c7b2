from .accumulate import Pass, second_moments
from .corpus import Corpus, read_corpus
from .export import SharedStatistics, export_statistics
from .moments import SecondMoment
from .store import Collection, Statistics

__all__ = [
    "Collection",
    "Corpus",
    "Pass",
    "SecondMoment",
    "SharedStatistics",
    "Statistics",
    "export_statistics",
    "read_corpus",
    "second_moments",
]
