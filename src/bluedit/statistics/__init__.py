"""Second moments of keys: computing and storing."""

from bluedit.statistics.corpus import Corpus, read_corpus
from bluedit.statistics.moments import SecondMoment, second_moments
from bluedit.statistics.store import Statistics

__all__ = ["Corpus", "SecondMoment", "Statistics", "read_corpus", "second_moments"]
