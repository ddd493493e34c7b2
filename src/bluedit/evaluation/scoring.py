"""Efficacy, generalisation, specificity, and their accuracy variants.

A prompt and a target make a query. A respondent answers all queries of all cases together; what a case needs of the answers is
then read off.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bluedit.datasets.cases import Case
from bluedit.errors import DatasetError, excerpt
from bluedit.evaluation.intervals import Estimate, bootstrap, share
from bluedit.models import EditableModel
from bluedit.models.likelihood import Answer, Query
from bluedit.models.respondent import Respondent, as_respondent

__all__ = ["SCORES", "Scores", "compare", "score_cases", "tally"]

SCORES = ("ES", "PS", "NS", "S", "EA", "PA", "NA")
"""The scores in the order they are reported: efficacy, generalisation (paraphrases), specificity (neighborhood), their
harmonic mean, and the accuracy variants of the first three."""


@dataclass(frozen=True)
class Scores:
    """Scores over cases, and what they are made of.

    - `estimates`: per score its value and interval in percent. A score that no case has the data for is absent.
    - `cases`: per case its id and, per score, its outcomes in [0, 1].
    """

    estimates: Mapping[str, Estimate]
    cases: tuple[tuple[str, Mapping[str, tuple[float, ...]]], ...]

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]

    def of(self, ids: Collection[str]) -> Scores:
        """The same scores over some of the cases only."""
        wanted = set(ids)
        return tally([(name, outcomes) for name, outcomes in self.cases if name in wanted])

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The `scores` entry of a JSON result."""
        return {name: estimate.as_dict() for name, estimate in self.estimates.items()}


def score_cases(
    model: EditableModel | Respondent, cases: Sequence[Case], *, progress: Callable[[int, int], object] | None = None
) -> Scores:
    """Score a model, or another respondent, on cases, as it is now.

    CounterFact and the user's own files (`probability`): ES is the fraction of rewrite prompts with P(new) > P(true), PS the
    same on paraphrases, NS the fraction of neighborhood prompts with P(true) > P(new); P is the mean log-probability per
    target token. zsRE (`token_accuracy`): the fraction of target tokens that are the argmax. EA, PA and NA: the whole target
    is the greedy answer. S is the harmonic mean of ES, PS and NS.

    **Arguments**

    - `model`: a model, or whatever can answer: see :class:`~bluedit.models.respondent.Respondent`.
    - `progress`: called as `progress(done, total)` in queries.

    **Raises** :class:`~bluedit.errors.DatasetError` when there is no case, or one does not fit into the context;
    :class:`~bluedit.errors.NumericsError` when logits are not finite.
    """
    respondent = as_respondent(model)
    if not cases:
        raise DatasetError("evaluation", ["there are no cases to score"])
    queries = [query for case in cases for query in _queries(case)]
    total = len(set(queries))
    names = {prompt: f"case {excerpt(case.fact.id)}" for case in reversed(cases) for prompt, _ in _queries(case)}
    report = None if progress is None else lambda done: progress(done, total)
    answers = respondent.answer(queries, progress=report, names=names)
    return tally([(case.fact.id, _outcomes(case, answers)) for case in cases])


def compare(one: Scores, other: Scores, name: str) -> Estimate | None:
    """By how many points `one` is above `other` in a score, with a paired bootstrap over the cases that both have.

    None where no case has the data for the score.
    """
    others = dict(other.cases)
    pairs = [(values, others[case]) for case, values in one.cases if case in others]
    parts = ("ES", "PS", "NS") if name == "S" else (name,)
    means = np.array([[[np.mean(side[part]) if part in side else np.nan for part in parts] for side in pair] for pair in pairs])
    if not len(means) or np.isnan(means).all(axis=0).any():
        return None

    def difference(chosen: Any) -> float:
        sides = [_harmonic_mean(_column_means(means[chosen, side])) for side in (0, 1)]
        return sides[0] - sides[1]

    return bootstrap(len(pairs), difference)


def tally(outcomes: Sequence[tuple[str, Mapping[str, tuple[float, ...]]]]) -> Scores:
    """Scores from the outcomes of each case, by its id: every outcome in [0, 1], by score, scores without data left out."""
    estimates: dict[str, Estimate] = {}
    for name in SCORES:
        if name == "S":
            if harmonic := _harmonic([values for _, values in outcomes]):
                estimates[name] = harmonic
        elif have := [values[name] for _, values in outcomes if name in values]:
            estimates[name] = share(have)
    return Scores(estimates, tuple(outcomes))


def _queries(case: Case) -> list[Query]:
    compared = [case.fact.target, *([case.true_target] if case.true_target else [])]
    queries = [(prompt, target) for prompt in (case.fact.text, *case.paraphrases) for target in compared]
    if case.neighborhood_target:
        kept = [case.neighborhood_target, *([case.fact.target] if case.scoring == "probability" else [])]
        queries += [(prompt, target) for prompt in case.neighborhood for target in kept]
    return queries


def _outcomes(case: Case, answers: Mapping[Query, Answer]) -> dict[str, tuple[float, ...]]:
    """A case's outcomes by score; scores that it has no data for are left out."""
    new, true, kept = case.fact.target, case.true_target, case.neighborhood_target

    def whole(prompts: Sequence[str], target: str) -> tuple[float, ...]:
        return tuple(float(all(answers[prompt, target].correct)) for prompt in prompts)

    def tokens(prompts: Sequence[str], target: str) -> tuple[float, ...]:
        return tuple(float(np.mean(answers[prompt, target].correct)) for prompt in prompts)

    def prefers(prompts: Sequence[str], one: str, other: str) -> tuple[float, ...]:
        return tuple(float(answers[prompt, one].log_prob > answers[prompt, other].log_prob) for prompt in prompts)

    rewrite, paraphrases, neighborhood = (case.fact.text,), case.paraphrases, case.neighborhood
    found = {"EA": whole(rewrite, new), "PA": whole(paraphrases, new)}
    if case.scoring == "token_accuracy":
        found |= {"ES": tokens(rewrite, new), "PS": tokens(paraphrases, new)}
    elif true:
        found |= {"ES": prefers(rewrite, new, true), "PS": prefers(paraphrases, new, true)}
    if kept:
        found["NA"] = whole(neighborhood, kept)
        found["NS"] = tokens(neighborhood, kept) if case.scoring == "token_accuracy" else prefers(neighborhood, kept, new)
    return {name: outcomes for name, outcomes in found.items() if outcomes}


def _harmonic(cases: Sequence[Mapping[str, tuple[float, ...]]]) -> Estimate | None:
    """S, bootstrapped over cases; None where one of its parts is missing."""
    parts = np.array([[np.mean(case[name]) if name in case else np.nan for name in ("ES", "PS", "NS")] for case in cases])
    if np.isnan(parts).all(axis=0).any():
        return None

    return bootstrap(len(cases), lambda chosen: _harmonic_mean(_column_means(parts[chosen])))


def _column_means(values: np.ndarray) -> np.ndarray:
    """The mean of each column over the rows that have it."""
    with np.errstate(invalid="ignore"):
        return np.nansum(values, axis=0) / np.maximum((~np.isnan(values)).sum(axis=0), 1)


def _harmonic_mean(values: np.ndarray) -> float:
    return float(len(values) / np.sum(1 / values)) if (values > 0).all() else 0.0
