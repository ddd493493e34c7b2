"""Scoring: efficacy, generalisation, specificity, with intervals."""

from bluedit.evaluation.intervals import Estimate
from bluedit.evaluation.records import protocol
from bluedit.evaluation.scoring import SCORES, Scores, compare, score_cases
from bluedit.models.respondent import ModelRespondent, Respondent

__all__ = ["SCORES", "Estimate", "ModelRespondent", "Respondent", "Scores", "compare", "protocol", "score_cases"]
