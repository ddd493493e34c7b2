"""Second moments of keys: computing, shrinking, storing."""

from bluedit.statistics.corpus import Corpus, read_corpus
from bluedit.statistics.moments import SecondMoment, second_moments, shrink
from bluedit.statistics.store import Statistics

__all__ = ["Corpus", "SecondMoment", "Statistics", "read_corpus", "second_moments", "shrink"]
