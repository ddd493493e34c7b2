"""Efficacy, generalisation, specificity, and their accuracy variants.

A prompt and a target make a query; all queries of all cases are answered together, in batches of like length, each distinct
one once, and targets of one prompt from the same row where they can be. What a case needs of the answers is then read off.

Shapes: T target tokens over a batch's rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from bluedit.datasets.cases import Case
from bluedit.errors import DatasetError, FactError, NumericsError, excerpt
from bluedit.evaluation.intervals import Estimate, bootstrap, share
from bluedit.models import EditableModel
from bluedit.models.forward.prefix_sharing import Remainders, SharedBeginnings
from bluedit.models.generation import no_logits
from bluedit.models.memory.budget import TokenBudget, in_batches, plain_budget

__all__ = ["SCORES", "Answer", "Scores", "answer_queries", "compare", "score_cases", "tally"]

SCORES = ("ES", "PS", "NS", "S", "EA", "PA", "NA")
"""The scores in the order they are reported: efficacy, generalisation (paraphrases), specificity (neighborhood), their
harmonic mean, and the accuracy variants of the first three."""

_CHUNK = 32
"""Batches whose common beginnings are kept at once."""


class Answer(NamedTuple):
    """How a model answers a prompt with a target, teacher forced.

    - `log_prob`: mean log-probability per target token, in nats.
    - `correct`: for each target token, whether it is the argmax.
    """

    log_prob: float
    correct: tuple[bool, ...]


Query = tuple[str, str]


def answer_queries(
    model: EditableModel,
    queries: Sequence[Query],
    *,
    token_budget: int | None = None,
    progress: Callable[[int], object] | None = None,
    names: Mapping[str, str] | None = None,
) -> dict[Query, Answer]:
    """Answer (prompt, target) pairs, each distinct one once.

    **Arguments**

    - `token_budget`: padded tokens in one forward pass, at most; found from the memory there is when left out.
    - `progress`: called with the number of queries answered, after each batch.
    - `names`: what a prompt is called in messages, such as its case.

    **Raises** :class:`~bluedit.errors.DatasetError` for a prompt or target that is too long, and
    :class:`~bluedit.errors.NumericsError` naming the prompt after which the logits are not finite.

    **Cost**: one forward pass over each distinct prompt with all but the last token of a target, which targets of one token
    share, and over common beginnings of prompts once; logits where a target token is predicted, once.
    """
    names = names or {}
    distinct = list(dict.fromkeys(queries))
    for query in distinct:
        for text in query:
            try:
                model.text.check_length(text)
            except FactError as error:
                raise DatasetError("evaluation", [f"{names.get(query[0], 'a query')}: {error}"]) from error
    rows = _shared_rows(model, distinct)
    longest = max(rows, key=lambda row: len(row.ids), default=None)
    if longest is not None and len(longest.ids) > model.context_length:
        prompt = next(iter(longest.answers))[0]
        where = f"{names[prompt]}: " if prompt in names else ""
        raise DatasetError(
            "evaluation",
            [
                f"{where}the prompt {excerpt(prompt)} takes {len(longest.ids)} tokens with its target; "
                f"the model takes {model.context_length}: shorten it"
            ],
        )
    answers: dict[Query, Answer] = {}
    budget = plain_budget(model) if token_budget is None else TokenBudget(token_budget)
    # Rows that begin alike are neighbours then; a chunk of them bounds what is kept of beginnings.
    rows.sort(key=lambda row: row.ids)
    with model.frozen(), torch.no_grad():
        for chunk in _chunks(rows, _CHUNK * budget.tokens):
            beginnings = SharedBeginnings(model, [row.ids for row in chunk], [row.start for row in chunk], budget)
            rests = [len(row.ids) - length for row, length in zip(chunk, beginnings.lengths, strict=True)]

            def run(
                chosen: list[int], chunk: list[_SharedRow] = chunk, shared: SharedBeginnings = beginnings
            ) -> dict[Query, Answer]:
                return _answer(model, [chunk[index] for index in chosen], shared.remainders(chosen))

            for _, found in in_batches(rests, budget, run):
                answers |= found
                if progress is not None:
                    progress(len(found))
    return answers


def _answer(model: EditableModel, rows: Sequence[_SharedRow], remainders: Remainders) -> dict[Query, Answer]:
    """The answers that one batch of rows gives."""
    before = remainders.lengths_B.tolist()
    # Every position that some target needs, once; and of each target's tokens the place among those.
    places = {
        place: index
        for index, place in enumerate(
            dict.fromkeys((number, position) for number, row in enumerate(rows) for position in row.positions)
        )
    }
    asked = [
        (places[number, row.start + offset], token)
        for number, row in enumerate(rows)
        for tokens in row.answers.values()
        for offset, token in enumerate(tokens)
    ]
    rows_P, positions_P = torch.tensor(
        [(number, position - before[number]) for number, position in places], device=model.device
    ).T
    places_T, tokens_T = torch.tensor(asked, device=model.device).T
    with model.head_at(rows_P, positions_P, last_mlp=True):
        log_probs_PV = remainders.run(model).squeeze(0).float().log_softmax(-1)
    log_probs_T = log_probs_PV[places_T, tokens_T].tolist()
    correct_T = (log_probs_PV.argmax(-1)[places_T] == tokens_T).tolist()
    answers: dict[Query, Answer] = {}
    start = 0
    for query, tokens in (pair for row in rows for pair in row.answers.items()):
        end = start + len(tokens)
        if not all(map(math.isfinite, log_probs_T[start:end])):
            raise NumericsError(no_logits(query[0]))
        answers[query] = Answer(sum(log_probs_T[start:end]) / len(tokens), tuple(correct_T[start:end]))
        start = end
    return answers


def _chunks(rows: Sequence[_SharedRow], tokens: int) -> Iterator[list[_SharedRow]]:
    """The rows in order, in lists of at most so many tokens (or one row)."""
    chunk: list[_SharedRow] = []
    size = 0
    for row in rows:
        if chunk and size + len(row.ids) > tokens:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row.ids)
    if chunk:
        yield chunk


class _SharedRow(NamedTuple):
    """One row that answers several targets of one prompt: each but for its last token is a beginning of what follows the
    prompt.

    - `start`: the position whose logits predict a target's first token.
    - `answers`: the queries, with their targets' tokens.
    """

    ids: tuple[int, ...]
    start: int
    answers: dict[Query, tuple[int, ...]]

    @property
    def positions(self) -> range:
        """The positions whose logits are wanted."""
        return range(self.start, len(self.ids))


def _shared_rows(model: EditableModel, queries: Sequence[Query]) -> list[_SharedRow]:
    """As few rows as answer all queries: targets of one token need the prompt alone, whatever they are."""
    prompts = dict(zip(names := list(dict.fromkeys(prompt for prompt, _ in queries)), model.text.prompts(names), strict=True))
    targets = {(prompt, target): model.text.target(target, prompt) for prompt, target in queries}
    by_prompt: dict[str, list[_SharedRow]] = {}
    for prompt, target in sorted(queries, key=lambda query: -len(targets[query])):
        ids = prompts[prompt] + targets[prompt, target][:-1]
        rows = by_prompt.setdefault(prompt, [])
        # The longest targets come first: a row that serves is there already.
        row = next((one for one in rows if one.ids[: len(ids)] == ids), None)
        if row is None:
            row = _SharedRow(ids, len(prompts[prompt]) - 1, {})
            rows.append(row)
        row.answers[prompt, target] = targets[prompt, target]
    return [row for rows in by_prompt.values() for row in rows]


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


def score_cases(model: EditableModel, cases: Sequence[Case], *, progress: Callable[[int, int], object] | None = None) -> Scores:
    """Score a model on cases, as it is now.

    CounterFact and the user's own files (`probability`): ES is the share of rewrite prompts with P(new) > P(true), PS the
    same on paraphrases, NS the share of neighborhood prompts with P(true) > P(new); P is the mean log-probability per
    target token. zsRE (`token_accuracy`): the share of target tokens that are the argmax. EA, PA and NA: the whole target
    is the greedy answer. S is the harmonic mean of ES, PS and NS.

    **Arguments**

    - `progress`: called as `progress(done, total)` in queries.

    **Raises** :class:`~bluedit.errors.DatasetError` when there is no case.
    """
    if not cases:
        raise DatasetError("evaluation", ["there are no cases to score"])
    queries = [query for case in cases for query in _queries(case)]
    total = len(set(queries))
    names = {prompt: f"case {excerpt(case.fact.id)}" for case in reversed(cases) for prompt, _ in _queries(case)}
    report = None if progress is None else lambda done: progress(done, total)
    answers = answer_queries(model, queries, progress=report, names=names)
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
