"""Facts to try settings on, and what to ask after they were edited: what should change, and what should stay.

A file may hold requested edits, or facts that the model may know, of which those that are not its greedy answer are left out.
It need not say what to score by; what it lacks is made up for:

| lacking | stands for it |
|---|---|
| a new target, where the model says the row's already | the object of another known fact, of the same relation if possible |
| a true target | the first token that the model says now |
| paraphrases | the prompt behind two contexts that values are not optimised in |
| a neighborhood | prompts of other facts that are not edited, of the same relation first, and what holds there now |
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bluedit.datasets.cases import Case
from bluedit.errors import DatasetError, FactError
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.models.generation import generate
from bluedit.models.inputs.templates import context_templates
from bluedit.models.likelihood import answer_queries

__all__ = ["HeldOut", "Material", "Question", "hold_out"]

_FEWEST = 10
"""Edits without which there is nothing to choose by."""
_SEARCHED = 0.6
"""Of the edits, used by the search; the others check what it found."""
_BYSTANDERS = 0.2
"""The fraction of facts that is not edited where prompts are needed for what should stay."""
_NEIGHBORS = 5
_CONTEXTS = 2


class Question(NamedTuple):
    """After the edit, `wanted` should be likelier than `other`; `score` is the one it counts in, ES, PS or NS."""

    score: str
    prompt: str
    wanted: str
    other: str


@dataclass(frozen=True)
class HeldOut:
    """One edit to try settings on."""

    fact: Fact
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Material:
    """What settings are tried on: edits for the search, others to check its outcome, and why rows were left out."""

    search: tuple[HeldOut, ...]
    check: tuple[HeldOut, ...]
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class _Row:
    case: Case
    truth: str
    target: str

    @property
    def has_neighborhood(self) -> bool:
        return bool(self.case.neighborhood and self.case.neighborhood_target)


def _kind(case: Case) -> str:
    """What a case asks: its relation, or else its prompt."""
    return case.fact.relation or case.fact.prompt


def hold_out(model: EditableModel, cases: Sequence[Case], *, count: int = 100, seed: int = 0) -> Material:
    """Draw edits to search with and to check with; see the module's table.

    **Arguments**

    - `count`: at most this many edits, 60 % of them for the search.
    - `seed`: of the draw.

    **Raises** :class:`~bluedit.errors.DatasetError` when fewer than ten edits remain, or nothing is known that should stay.
    """
    left_out: Counter[str] = Counter()
    rng = random.Random(seed)
    rows = _rows(model, cases, rng, left_out)
    rng.shuffle(rows)
    lacking = any(not row.has_neighborhood for row in rows)
    kept = max(2, math.ceil(_BYSTANDERS * len(rows))) if lacking else 0
    bystanders, edits = rows[:kept], rows[kept:][:count]
    if len(edits) < _FEWEST:
        reasons = "; ".join(f"{number} {reason}" for reason, number in left_out.items())
        aside = f", {kept} held out to see that they stay" if kept else ""
        raise DatasetError(
            "tune",
            [
                f"{len(edits)} of {len(cases)} facts are left to edit{aside}{f' ({reasons})' if reasons else ''}; a search "
                f"needs at least {_FEWEST}, better 100: give more edits, or more facts that the model knows"
            ],
        )
    half = math.ceil(_SEARCHED * len(edits))
    # Prompts that the search watched should not be those that its outcome is checked by.
    parts = ((edits[:half], bystanders[::2]), (edits[half:], bystanders[1::2]))
    contexts = context_templates(model, seed + 1)[1 : 1 + _CONTEXTS]
    made = [[_held_out(row, contexts, others, rng) for row in part] for part, others in parts]
    searched, checked = (_standing(model, part) for part in made)
    for part in (searched, checked):
        if not any(question.score == "NS" for one in part for question in one.questions):
            raise DatasetError(
                "tune",
                ["nothing in it tells what should stay; give rows neighborhood prompts, or more facts that the model knows"],
            )
    return Material(searched, checked, dict(left_out))


def _rows(model: EditableModel, cases: Sequence[Case], rng: random.Random, left_out: Counter[str]) -> list[_Row]:
    """The rows with their new and old answers, those left out counted by reason."""
    usable: list[Case] = []
    seen: set[tuple[str, str]] = set()
    for position, case in enumerate(cases):
        fact = replace(case.fact, id=case.fact.id or str(position))
        try:
            model.text.row(fact, with_target=True)
            model.text.target(case.true_target or fact.target, fact.text)
        except FactError:
            left_out["too long, or without tokens for subject or target"] += 1
            continue
        # Asked twice, a question would be given two objects, which no edit can hold.
        asked = {(question, fact.subject) for question in (fact.relation, fact.prompt) if question}
        if asked & seen:
            left_out["asked before"] += 1
            continue
        seen |= asked
        usable.append(replace(case, fact=fact))
    answers = answer_queries(model, [(case.fact.text, case.fact.target) for case in usable])
    says = {case.fact.text: all(answers[case.fact.text, case.fact.target].correct) for case in usable}
    unsaid = [case.fact.text for case in usable if case.true_target is None and not says[case.fact.text]]
    own = {text: whole.removeprefix(text).strip() for text, whole in zip(unsaid, _first_words(model, unsaid), strict=True)}

    def known(case: Case) -> bool:
        return case.true_target in (None, case.fact.target) and says[case.fact.text]

    objects: dict[str, set[str]] = {}
    for case in filter(known, usable):
        for kind in (_kind(case), ""):
            objects.setdefault(kind, set()).add(case.fact.target)
    rows: list[_Row] = []
    for case in usable:
        fact, text = case.fact, case.fact.text
        if known(case):
            others = [sorted(objects[kind] - {fact.target}) for kind in (_kind(case), "")]
            if not any(others):
                left_out["known, with no other object to be given"] += 1
                continue
            target = rng.choice(others[0] or others[1])
            rows.append(_Row(replace(case, fact=replace(fact, target=target)), fact.target, target))
        elif case.true_target == fact.target:
            left_out["not known"] += 1
        else:
            rows.append(_Row(case, case.true_target or own[text], fact.target))
    return _unfulfilled(model, rows, left_out)


def _first_words(model: EditableModel, texts: Sequence[str]) -> list[str]:
    return generate(model, texts, max_new_tokens=1) if texts else []


def _unfulfilled(model: EditableModel, rows: Sequence[_Row], left_out: Counter[str]) -> list[_Row]:
    """Those that an edit would change: the old answer can be asked for, and is likelier than the new one."""
    askable: list[_Row] = []
    for row in rows:
        try:
            model.text.target(row.truth, row.case.fact.text)
            askable.append(row)
        except FactError:
            left_out["without an answer of the model's"] += 1
    queries = [(row.case.fact.text, answer) for row in askable for answer in (row.truth, row.target)]
    answers = answer_queries(model, queries)
    kept = [
        row
        for row in askable
        if answers[row.case.fact.text, row.truth].log_prob > answers[row.case.fact.text, row.target].log_prob
    ]
    if len(kept) < len(askable):
        left_out["said already"] += len(askable) - len(kept)
    return kept


def _held_out(row: _Row, contexts: Sequence[str], bystanders: Sequence[_Row], rng: random.Random) -> HeldOut:
    fact, case = row.case.fact, row.case
    again = case.paraphrases or tuple(context.replace("{}", fact.text) for context in contexts)
    questions = [Question("ES", fact.text, row.target, row.truth)]
    questions += [Question("PS", prompt, row.target, row.truth) for prompt in again]
    if row.has_neighborhood:
        assert case.neighborhood_target is not None
        questions += [Question("NS", prompt, case.neighborhood_target, row.target) for prompt in case.neighborhood]
    else:
        others = [other for other in bystanders if other.truth != row.target]
        rng.shuffle(others)
        others.sort(key=lambda other: _kind(other.case) != _kind(case))
        questions += [Question("NS", other.case.fact.text, other.truth, row.target) for other in others[:_NEIGHBORS]]
    return HeldOut(fact, tuple(questions))


def _standing(model: EditableModel, part: Sequence[HeldOut]) -> tuple[HeldOut, ...]:
    """Without the prompts where what should stay does not hold now."""
    answers = answer_queries(
        model, [(one.prompt, answer) for held in part for one in held.questions for answer in (one.wanted, one.other)]
    )

    def holds(question: Question) -> bool:
        return answers[question.prompt, question.wanted].log_prob > answers[question.prompt, question.other].log_prob

    return tuple(
        replace(held, questions=tuple(one for one in held.questions if one.score != "NS" or holds(one))) for held in part
    )
