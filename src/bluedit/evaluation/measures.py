"""A measure: what is asked of a model, kept apart from the scores that are read off its answers.

Some scores compare an edited model with the unedited one. So a measure first observes a model, and then scores what it
observed, beside what it had observed of the unedited model, if that is given: before the edit and after it are two
observations, and the unedited model need not be there any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from bluedit.datasets.cases import Case
from bluedit.errors import DatasetError
from bluedit.evaluation.scoring import Scores, ask_cases, score_answers
from bluedit.models import EditableModel
from bluedit.models.generation import Completion, Stop
from bluedit.models.likelihood import Answer, Query
from bluedit.models.respondent import Respondent, Writer, as_writer

__all__ = ["Count", "Measure", "Standard", "Writings", "write"]

Observed = TypeVar("Observed")
Count = Callable[[int, int], object]
"""Called with how much is done, and of how much."""


class Measure(Protocol[Observed]):
    """One way of scoring: what to observe of a model, and what follows from it."""

    @property
    def name(self) -> str:
        """What its scores are listed under: `standard`, `wild-question`, ..."""
        ...

    @property
    def tag(self) -> Mapping[str, Any]:
        """What the protocol tag says of it, beyond the cases and the model."""
        ...

    def observe(self, model: Any, cases: Sequence[Case], *, progress: Count | None = None) -> Observed:
        """All that its scores need of a model as it is now."""
        ...

    def scores(self, cases: Sequence[Case], now: Observed, unedited: Observed | None = None) -> Scores:
        """Scores from observations; those against the unedited model only with its own."""
        ...

    def texts(self, case: Case, observed: Observed) -> list[tuple[str, Completion]]:
        """What the model wrote for a case, each with what it was asked for."""
        ...


@dataclass(frozen=True)
class Standard:
    """Teacher forced: see :func:`~bluedit.evaluation.scoring.score_answers`."""

    name: str = "standard"

    @property
    def tag(self) -> Mapping[str, Any]:
        return {}

    def observe(
        self, model: EditableModel | Respondent, cases: Sequence[Case], *, progress: Count | None = None
    ) -> Mapping[Query, Answer]:
        return ask_cases(model, cases, progress=progress)

    def scores(
        self, cases: Sequence[Case], now: Mapping[Query, Answer], unedited: Mapping[Query, Answer] | None = None
    ) -> Scores:
        return score_answers(cases, now, unedited)

    def texts(self, case: Case, observed: Mapping[Query, Answer]) -> list[tuple[str, Completion]]:
        return []


Writings = Mapping[tuple[str, int], Completion]
"""What a model wrote after a prompt, by the prompt and which of its occurrences it was."""


def write(
    model: EditableModel | Respondent | Writer,
    prompts: Sequence[str],
    stop: Stop,
    *,
    top_k: int | None = None,
    seed: int = 0,
    form: Callable[[str], str] = lambda prompt: prompt,
    progress: Count | None = None,
) -> dict[tuple[str, int], Completion]:
    """Completions by prompt and occurrence. Greedily an equal prompt is continued once, and is occurrence 0.

    `form`: what the model is given for a prompt.
    """
    if top_k is None:
        prompts = list(dict.fromkeys(prompts))
    if not prompts:
        return {}
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        cast("Count", progress)(done, len(prompts))

    texts = as_writer(model).complete(
        [form(prompt) for prompt in prompts], stop, top_k=top_k, seed=seed, progress=count if progress else None
    )
    if len(texts) != len(prompts):
        raise DatasetError("evaluation", [f"{len(prompts)} prompts were given, and {len(texts)} completions came back"])
    seen: dict[str, int] = {}
    written: dict[tuple[str, int], Completion] = {}
    for prompt, text in zip(prompts, texts, strict=True):
        occurrence = seen.get(prompt, 0)
        seen[prompt] = occurrence + 1
        written[prompt, occurrence] = text
    return written
