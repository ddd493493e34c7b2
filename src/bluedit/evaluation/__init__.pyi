from .intervals import Estimate
from .records import protocol
from .scoring import SCORES, Scores, compare, score_cases
from .verifying import Verdict, verify_facts

__all__ = ["SCORES", "Estimate", "Scores", "Verdict", "compare", "protocol", "score_cases", "verify_facts"]
