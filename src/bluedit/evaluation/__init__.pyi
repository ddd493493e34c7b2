from .intervals import Estimate
from .records import protocol
from .scoring import SCORES, Scores, compare, score_cases

__all__ = ["SCORES", "Estimate", "Scores", "compare", "protocol", "score_cases"]
