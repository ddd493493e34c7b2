"""Scores and their intervals on cases worked out by hand: what planted faults showed to be untested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bluedit.datasets import Case
from bluedit.evaluation.intervals import share
from bluedit.evaluation.scoring import compare, score_cases, tally
from bluedit.facts import Fact
from bluedit.models.likelihood import Answer, Query


def test_what_is_as_far_apart_in_every_case_has_an_interval_of_no_width() -> None:
    """Cases differ much from one another, the two sides differ by 1/2 in all: only a paired resample sees that."""
    one = tally([("a", {"ES": (1.0,)}), ("b", {"ES": (0.5,)}), ("c", {"ES": (1.0, 0.5, 0.75, 0.75)})])
    other = tally([("a", {"ES": (0.5,)}), ("b", {"ES": (0.0,)}), ("c", {"ES": (0.25,)})])
    found = compare(one, other, "ES")
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((50, 50, 50))


def test_a_case_without_a_score_does_not_count_in_it() -> None:
    """PS is that of `a` alone, 1/2; ES and NS are 1. So S is 3 / (1 + 2 + 1)."""
    scores = tally([("a", {"ES": (1.0,), "PS": (1.0, 0.0), "NS": (1.0,)}), ("b", {"ES": (1.0,), "NS": (1.0,)})])
    assert scores["S"].value == pytest.approx(75)
    assert (scores["PS"].value, scores["PS"].n) == (50, 1)


def test_no_more_is_known_than_there_are_outcomes() -> None:
    """Two cases of five outcomes, 3/5 and 4/5 right: p = 0.7 and Var(mean) = 0.01, so p (1 - p) / Var = 21, and there are 10.

    Wilson's interval at 7 of 10.
    """
    found = share([[1.0, 1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.0]])
    assert found.value == pytest.approx(70)
    assert (found.low, found.high) == pytest.approx((39.68, 89.22), abs=0.01)


class Scripted:
    """Says which of a target's tokens are the likeliest, by the target."""

    def __init__(self, correct: Mapping[str, tuple[bool, ...]]) -> None:
        self.correct = correct

    def answer(self, queries: Sequence[Query], *, progress: Any = None, names: Any = None) -> Mapping[Query, Answer]:
        return {query: Answer(-1.0 if all(self.correct[query[1]]) else -2.0, self.correct[query[1]]) for query in queries}

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, top_k: Any = None, seed: int = 0) -> Sequence[str]:
        raise NotImplementedError


def test_a_whole_answer_has_all_of_its_tokens_right_and_token_accuracy_counts_each() -> None:
    """Three of the new target's four tokens are right: EA 0, and zsRE's ES 75. Both of the old one's are: NA and NS 100."""
    respondent = Scripted({"new": (True, True, False, True), "old": (True, True)})
    fact = Fact("{} lives in", "Anna", "new", id="a")
    case = Case(fact=fact, true_target="old", neighborhood=("Berta lives in",), neighborhood_target="old")
    probability = {name: one.value for name, one in score_cases(respondent, [case]).estimates.items()}
    assert probability == {"ES": 0, "NS": 100, "EA": 0, "NA": 100}
    zsre = Case(fact=fact, neighborhood=("Berta lives in",), neighborhood_target="old", scoring="token_accuracy")
    accuracy = {name: one.value for name, one in score_cases(respondent, [zsre]).estimates.items()}
    assert accuracy == {"ES": 75, "NS": 100, "EA": 0, "NA": 100}
