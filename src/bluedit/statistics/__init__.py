"""Second moments of keys: taking, storing, and sharing them."""

from bluedit.statistics.accumulate import Pass, second_moments
from bluedit.statistics.corpus import Corpus, read_corpus
from bluedit.statistics.export import SharedStatistics, export_statistics
from bluedit.statistics.moments import SecondMoment
from bluedit.statistics.store import Collection, Statistics

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
