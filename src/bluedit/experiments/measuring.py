"""What an experiment measures of a model as it is: scores, held-out text, and what it says after the edited prompts."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from itertools import islice
from typing import Any

from bluedit.datasets import Case
from bluedit.edits import Edit
from bluedit.evaluation import Scores, protocol, score_cases
from bluedit.evaluation.language import HeldOutText, TextScores, draw_rows
from bluedit.experiments.recipes import Recipe
from bluedit.models import EditableModel
from bluedit.models.respondent import Respondent, as_respondent
from bluedit.progress import Progress
from bluedit.results import CaseRecord, ProtocolTag
from bluedit.statistics import read_corpus

__all__ = ["SAID_TOKENS", "Measurement", "case_record", "continuations", "told", "versions"]

SAID_TOKENS = 10
"""How much of what a model says after a prompt is recorded."""
_TEXT_TOKENS = 10_000


@dataclass
class Measurement:
    """Measures a model as a recipe says."""

    recipe: Recipe
    model: EditableModel
    fingerprint: str
    """Of the unedited weights."""

    def scores(self, cases: Sequence[Case], of: str, progress: Progress) -> Scores:
        """The scores of cases; `of` says in the progress what is scored."""
        return score_cases(self.model, cases, progress=lambda done, total: progress(f"scoring {of}", done, total))

    def says(self, cases: Sequence[Case], progress: Progress) -> list[str]:
        """What the model says after the prompt of each case's fact."""
        progress("continuing prompts", 0, None)
        return continuations(self.model, [case.fact.text for case in cases])

    @cached_property
    def text(self) -> HeldOutText | None:
        """The held-out text, with what the unedited model makes of it: look at it before anything is edited."""
        recipe = self.recipe
        if recipe.text is None:
            return None
        documents = islice(read_corpus(recipe.text).documents(), recipe.text_skip or 0, None)
        return HeldOutText(self.model, draw_rows(self.model, documents, recipe.text_tokens or _TEXT_TOKENS))

    def read_text(self, progress: Progress) -> dict[str, Any]:
        """The entry of a result on held-out text, for the model as it is; none where the recipe names no text."""
        text = self.text
        if text is None:
            return {}
        progress("reading held-out text", 0, len(text.rows))
        scores: TextScores = text.scores(self.model, progress=lambda rows: progress("reading held-out text", rows, None))
        return {"text": scores.as_dict()}

    def tag(self, cases: Sequence[Case], patch: Edit | None = None) -> ProtocolTag:
        """The protocol tag of what is measured on these cases."""
        recipe = self.recipe
        tag = protocol(self.model, cases, dataset=recipe.dataset, patch=patch, seed=recipe.seed, fingerprint=self.fingerprint)
        # The name that was asked for, and not the folder that it was found in.
        return tag.model_copy(update={"model": recipe.model})


def continuations(model: EditableModel | Respondent, prompts: Sequence[str], tokens: int = SAID_TOKENS) -> list[str]:
    """What a model says after each prompt: its greedy continuation, without the prompt, at most `tokens` tokens."""
    texts = as_respondent(model).generate(prompts, max_new_tokens=tokens)
    # In a chat the answer comes alone.
    return [text.removeprefix(prompt).strip() for prompt, text in zip(prompts, texts, strict=True)]


def told(outcomes: Mapping[str, Sequence[float]], says: str | None) -> dict[str, Any]:
    """What a model made of a case, for its record."""
    return {"outcomes": {name: list(values) for name, values in outcomes.items()}, "says": says}


def case_record(case: Case, batch: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `records.jsonl`; `before` and `after` are what :func:`told` gives."""
    record = {
        "id": case.fact.id,
        "batch": batch,
        "subject": case.fact.subject,
        "prompt": case.fact.text,
        "target": case.fact.target,
        "true_target": case.true_target,
        "paraphrases": list(case.paraphrases),
        "neighborhood": list(case.neighborhood),
        "neighborhood_target": case.neighborhood_target,
        "before": dict(before),
        "after": dict(after),
    }
    return CaseRecord.of(record).as_dict()


def versions() -> dict[str, str]:
    """Of the software that results depend on, and of the platform."""
    found = {name: metadata.version(name) for name in ("bluedit", "torch", "transformers")}
    return {**found, "python": platform.python_version(), "platform": platform.platform()}
