"""What an embedded model must know before it ships, and whether it does."""

from __future__ import annotations

from dataclasses import dataclass

from bluedit.datasets import read_dataset
from bluedit.evaluation.intervals import Estimate, share
from bluedit.models import EditableModel
from bluedit.models.likelihood import answer_queries

__all__ = ["GATES", "Gate", "measure_gates"]


@dataclass(frozen=True)
class Gate:
    """A share of prompts, in percent, that must be answered with the true object: greedy, whole object."""

    name: str
    what: str
    minimum: float


GATES = (
    Gate("rewrite", "rewrite prompts (phrasings seen in training)", 97.0),
    Gate("paraphrase", "phrasings never seen with the subject", 85.0),
    Gate("neighborhood", "neighborhood prompts", 97.0),
)


def measure_gates(model: EditableModel, *, world: int = 0, limit: int | None = None) -> dict[str, Estimate]:
    """The three shares on the world's own cases, all of them or the first `limit`.

    A teacher-forced argmax at every token of the object is the same as greedy generation giving the object.
    """
    cases = read_dataset(f"world:counterfact:{world}", limit)
    prompts = {
        "rewrite": [(case.fact.text,) for case in cases],
        "paraphrase": [case.paraphrases for case in cases],
        "neighborhood": [case.neighborhood for case in cases],
    }
    queries = [
        (prompt, case.true_target)
        for groups in prompts.values()
        for case, group in zip(cases, groups, strict=True)
        for prompt in group
        if case.true_target
    ]
    answers = answer_queries(model, queries)
    return {
        name: share(
            [
                [float(all(answers[prompt, case.true_target].correct)) for prompt in group]
                for case, group in zip(cases, groups, strict=True)
                if case.true_target
            ]
        )
        for name, groups in prompts.items()
    }
