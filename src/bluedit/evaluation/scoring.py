"""Teacher-forced scores: efficacy, generalisation, specificity, their accuracy variants, portability, locality.

A prompt and a target make a query. A respondent answers all queries of all cases together; what a case needs of the answers is
then read off.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bluedit.datasets.cases import Case, FollowUp, Question
from bluedit.errors import DatasetError, excerpt
from bluedit.evaluation.intervals import Estimate, bootstrap, share
from bluedit.models import EditableModel
from bluedit.models.likelihood import Answer, Query
from bluedit.models.respondent import Respondent, as_respondent

__all__ = ["SCORES", "Scores", "ask_cases", "compare", "score_answers", "score_cases", "tally"]

SCORES = ("ES", "PS", "NS", "S", "EA", "PA", "NA")
"""The scores in the order they are reported: efficacy, generalisation (paraphrases), specificity (neighborhood), their
harmonic mean, and the accuracy variants of the first three."""


BOOTSTRAPPED = frozenset({"fluency", "consistency"})
"""Scores that are no shares of anything: their intervals are a bootstrap over cases. So are those of BLEU and ROUGE."""


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
    model: EditableModel | Respondent,
    cases: Sequence[Case],
    *,
    unedited: Mapping[Query, Answer] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Scores:
    """Score a model, or another respondent, on cases, as it is now: :func:`ask_cases`, then :func:`score_answers`.

    **Arguments**

    - `model`: a model, or whatever can answer: see :class:`~bluedit.models.respondent.Respondent`.
    - `unedited`: what :func:`ask_cases` gave for the unedited model; locality is measured against it.
    - `progress`: called as `progress(done, total)` in queries.

    **Raises** :class:`~bluedit.errors.DatasetError` when there is no case, or one does not fit into the context;
    :class:`~bluedit.errors.NumericsError` when logits are not finite.
    """
    return score_answers(cases, ask_cases(model, cases, progress=progress), unedited)


def ask_cases(
    model: EditableModel | Respondent, cases: Sequence[Case], *, progress: Callable[[int, int], object] | None = None
) -> Mapping[Query, Answer]:
    """The answers, teacher forced, to all that cases ask; arguments and errors as for :func:`score_cases`."""
    respondent = as_respondent(model)
    if not cases:
        raise DatasetError("evaluation", ["there are no cases to score"])
    queries = [query for case in cases for query in _queries(case)]
    total = len(set(queries))
    names = {prompt: f"case {excerpt(case.fact.id)}" for case in reversed(cases) for prompt, _ in _queries(case)}
    report = None if progress is None else lambda done: progress(done, total)
    return respondent.answer(queries, progress=report, names=names)


def score_answers(
    cases: Sequence[Case], answers: Mapping[Query, Answer], unedited: Mapping[Query, Answer] | None = None
) -> Scores:
    """Teacher-forced scores from answers.

    CounterFact and the user's own files (`probability`): ES is the fraction of rewrite prompts with P(new) > P(true), PS the
    same on paraphrases, NS the fraction of neighborhood prompts with P(true) > P(new); P is the mean log-probability per
    target token. zsRE (`token_accuracy`): the fraction of target tokens that are the argmax. EA, PA and NA: the whole target
    is the greedy answer. S is the harmonic mean of ES, PS and NS.

    `portability`, and that of each group: the fraction of the answer's tokens that are the argmax; of several names of an
    answer the best counts. `specificity` of a group: the same on what should be as it was, against the data's answer.

    `locality`, with answers of the `unedited` model: on neighborhood prompts, and on what else should be as it was, the
    fraction of the answer's tokens at which the argmax is the one that the unedited model has there.
    """
    return tally([(case.fact.id, _outcomes(case, answers, unedited)) for case in cases])


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
    """Scores from the outcomes of each case, by its id: those of :data:`SCORES` first, others as they come.

    Every outcome is in [0, 1], but for fluency, which counts bits; scores without data are left out.
    """
    estimates: dict[str, Estimate] = {}
    for name in dict.fromkeys([*SCORES, *(name for _, values in outcomes for name in values)]):
        if name == "S":
            if harmonic := _harmonic([values for _, values in outcomes]):
                estimates[name] = harmonic
        elif have := [values[name] for _, values in outcomes if name in values]:
            graded = name in BOOTSTRAPPED or "BLEU" in name or "ROUGE" in name
            estimates[name] = _mean(have) if graded else share(have)
    return Scores(estimates, tuple(outcomes))


def _mean(cases: Sequence[Sequence[float]]) -> Estimate:
    """The mean over cases of each case's mean, bootstrapped over cases."""
    means = np.array([np.mean(values) for values in cases])
    return bootstrap(len(means), lambda chosen: float(means[chosen].mean()))


def _queries(case: Case) -> list[Query]:
    compared = [case.fact.target, *([case.true_target] if case.true_target else [])]
    queries = [(prompt, target) for prompt in (case.fact.text, *case.paraphrases) for target in compared]
    if case.neighborhood_target:
        kept = [case.neighborhood_target, *([case.fact.target] if case.scoring == "probability" else [])]
        queries += [(prompt, target) for prompt in case.neighborhood for target in kept]
    return [*queries, *(query for _, question in _forced(case) for query in _named(question))]


def _forced(case: Case) -> Iterator[tuple[FollowUp, Question]]:
    """What is asked teacher forced beyond the fact."""
    for follow_up in case.follow_ups:
        if follow_up.scoring in ("tokens", "kept"):
            yield from ((follow_up, question) for question in follow_up.questions)


def _named(question: Question) -> list[Query]:
    """A query for every name of the answer."""
    return [(question.prompt, name) for names in question.answers for name in names]


def _outcomes(
    case: Case, answers: Mapping[Query, Answer], unedited: Mapping[Query, Answer] | None
) -> dict[str, tuple[float, ...]]:
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
    found |= _follow_up_outcomes(case, answers, unedited)
    return {name: outcomes for name, outcomes in found.items() if outcomes}


def _follow_up_outcomes(
    case: Case, answers: Mapping[Query, Answer], unedited: Mapping[Query, Answer] | None
) -> dict[str, tuple[float, ...]]:
    """Portability, specificity of groups, and locality against the unedited model."""
    found: dict[str, list[float]] = {"portability": [], "locality": []}
    kept = case.neighborhood_target
    local = [(prompt, kept) for prompt in case.neighborhood] if kept else []
    if unedited is not None:
        found["locality"] = [one for query in local for one in _unchanged(answers[query], unedited[query])]
    for follow_up, question in _forced(case):
        # A query holds one thing to be named; its best name counts.
        best = max(float(np.mean(answers[query].correct)) for query in _named(question))
        group = follow_up.name.partition("_")[2]
        if follow_up.scoring == "tokens":
            names = ("portability", follow_up.name) if group else ("portability",)
            for name in names:
                found.setdefault(name, []).append(best)
            continue
        found.setdefault(f"specificity_{group}", []).append(best)
        if unedited is not None:
            query = _named(question)[0]
            for name in ("locality", follow_up.name):
                found.setdefault(name, []).extend(_unchanged(answers[query], unedited[query]))
    return {name: tuple(values) for name, values in found.items()}


def _unchanged(now: Answer, before: Answer) -> list[float]:
    """The fraction of an answer's tokens at which the argmax is what it was; nothing where a respondent does not tell it."""
    if not (now.argmax and before.argmax):
        return []
    return [float(np.mean([one == other for one, other in zip(now.argmax, before.argmax, strict=True)]))]


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
