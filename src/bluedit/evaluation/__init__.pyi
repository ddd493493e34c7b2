from .beside import Measured, case_records, measure_beside
from .follow_ups import FollowUps, asks_follow_ups
from .intervals import Estimate
from .measures import Measure, Standard
from .records import protocol
from .scoring import SCORES, Scores, compare, score_cases
from .texts import ReferenceTexts, TextQuality, read_references
from .verifying import Verdict, verify_facts
from .wild import FORMS, Wild, wild_forms

__all__ = [
    "FORMS",
    "SCORES",
    "Estimate",
    "FollowUps",
    "Measure",
    "Measured",
    "ReferenceTexts",
    "Scores",
    "Standard",
    "TextQuality",
    "Verdict",
    "Wild",
    "asks_follow_ups",
    "case_records",
    "compare",
    "measure_beside",
    "protocol",
    "read_references",
    "score_cases",
    "verify_facts",
    "wild_forms",
]
