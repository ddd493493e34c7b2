"""Does a model still hold its facts? Every fact is asked again, and those that fail come with what the model says instead.

A fact holds where its whole target is the greedy answer to its prompt, teacher forced: EA of
:mod:`bluedit.evaluation.scoring`, fact by fact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.models.respondent import Respondent, as_respondent

__all__ = ["Verdict", "verify_facts"]

_TOKENS = 12


@dataclass(frozen=True)
class Verdict:
    """What a model makes of one fact.

    - `holds`: whether its whole target is the greedy answer.
    - `log_prob`: mean log-probability of a target token, in nats.
    - `says`: how the model continues the prompt; only where the fact does not hold.
    """

    fact: Fact
    holds: bool
    log_prob: float
    says: str | None = None


def verify_facts(
    model: EditableModel | Respondent,
    facts: Sequence[Fact],
    *,
    explain: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Verdict, ...]:
    """Ask a model, as it is now, for every fact.

    **Arguments**

    - `explain`: let the model say what it says instead, where a fact does not hold.
    - `progress`: called as `progress(done, total)` in facts.

    **Raises** what :meth:`~bluedit.models.respondent.Respondent.answer` does.
    """
    respondent = as_respondent(model)
    queries = [(fact.text, fact.target) for fact in facts]
    total = len(set(queries))
    report = None if progress is None else lambda done: progress(done, total)
    answers = respondent.answer(queries, progress=report, names={fact.text: f"fact {fact.id}" for fact in facts})
    holds = [all(answers[query].correct) for query in queries]
    asked = [fact.text for fact, one in zip(facts, holds, strict=True) if explain and not one]
    texts = respondent.generate(asked, max_new_tokens=_TOKENS) if asked else []
    said = {prompt: text.removeprefix(prompt).strip() for prompt, text in zip(asked, texts, strict=True)}
    return tuple(
        Verdict(fact, one, answers[query].log_prob, None if one else said.get(fact.text))
        for fact, query, one in zip(facts, queries, holds, strict=True)
    )
