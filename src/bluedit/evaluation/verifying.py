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
    model: EditableModel | Respondent, facts: Sequence[Fact], *, progress: Callable[[int, int], object] | None = None
) -> tuple[Verdict, ...]:
    """Ask a model, as it is now, for every fact.

    **Arguments**

    - `progress`: called as `progress(done, total)` in facts.

    **Raises** what :meth:`~bluedit.models.respondent.Respondent.answer` does.
    """
    respondent = as_respondent(model)
    queries = [(fact.text, fact.target) for fact in facts]
    total = len(set(queries))
    report = None if progress is None else lambda done: progress(done, total)
    answers = respondent.answer(queries, progress=report, names={fact.text: f"fact {fact.id}" for fact in facts})
    failing = [fact for fact in facts if not all(answers[fact.text, fact.target].correct)]
    texts = respondent.generate([fact.text for fact in failing], max_new_tokens=_TOKENS) if failing else []
    said = {fact.id: text.removeprefix(fact.text).strip() for fact, text in zip(failing, texts, strict=True)}
    return tuple(
        Verdict(fact, fact.id not in said, answers[fact.text, fact.target].log_prob, said.get(fact.id)) for fact in facts
    )
