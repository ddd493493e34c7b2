"""A question to a model: one analysis with all its options, which the command line and recipes both ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bluedit.analysis.hidden_states import check_installed
from bluedit.analysis.running import ANALYSES, analyse
from bluedit.analysis.study import Study
from bluedit.datasets import Case, read_dataset
from bluedit.editing import prepare
from bluedit.editors.base import Editor
from bluedit.errors import SettingsError, did_you_mean
from bluedit.evaluation.language import HeldOutText, draw_rows
from bluedit.methods import find_method
from bluedit.models import EditableModel
from bluedit.progress import Progress, silent
from bluedit.results.analysis import AnalysisResult
from bluedit.statistics import Statistics, read_corpus

__all__ = ["Question"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """An analysis by name, the facts it is made with, and how they are edited; see docs/analysis.md.

    - `facts`: the first so many records of the data set.
    - `batch_size`: of `bounds` and `hidden-states`. `prompts`, `layer`: of `hidden-states`.
    - `text`, `text_skip`, `text_tokens`: held-out text, of `pairs`.

    **Raises** :class:`~bluedit.errors.SettingsError` for an analysis that does not exist, or that needs a library that is
    missing.
    """

    analysis: str
    dataset: str
    facts: int = 20
    method: Editor | str = "memit"
    layers: Sequence[int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    corpus: str | None = None
    samples: int | None = None
    templates: Sequence[str] | None = None
    seed: int = 0
    batch_size: int | None = None
    prompts: int = 1000
    layer: int | None = None
    text: str | None = None
    text_skip: int = 0
    text_tokens: int = 4000

    def __post_init__(self) -> None:
        if self.analysis not in ANALYSES:
            raise SettingsError(did_you_mean(self.analysis, ANALYSES, what="analysis"))
        if self.analysis == "hidden-states":
            check_installed()

    def cases(self) -> tuple[tuple[Case, ...], list[Case]]:
        """The facts to edit, and other cases that are about none of their subjects (`hidden-states`)."""
        more = self.prompts if self.analysis == "hidden-states" else 0
        cases = read_dataset(self.dataset, self.facts + more, on_conflict="keep" if more else "error")
        facts = tuple(cases[: self.facts])
        subjects = {case.fact.subject for case in facts}
        return facts, [case for case in cases[self.facts :] if case.fact.subject not in subjects]

    def answer(
        self,
        model: EditableModel,
        folder: Path | None = None,
        *,
        values: Path | None = None,
        replace: bool = False,
        progress: Progress = silent,
    ) -> AnalysisResult:
        """Carry it out, see :func:`~bluedit.analysis.running.analyse`. The model is left as it was."""
        facts, others = self.cases()
        progress("writing context templates", 0, None)
        corpus: Any = self.corpus
        if corpus and self.samples:
            corpus = Statistics(read_corpus(corpus), self.samples)
        setup = prepare(
            model, method=find_method(self.method), layers=self.layers, settings=self.settings, corpus=corpus,
            templates=self.templates, seed=self.seed,
        )  # fmt: skip
        study = Study(model, facts, setup, self.dataset)
        claim, options = self._own(model, others, progress)
        return analyse(self.analysis, study, folder, values=values, claim=claim, replace=replace, progress=progress, **options)

    def _own(self, model: EditableModel, others: list[Case], progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
        """What this analysis takes besides the facts: in JSON, and for its measurement."""
        if self.analysis == "bounds":
            return {"batch_size": self.batch_size}, {"batch_size": self.batch_size}
        if self.analysis == "hidden-states":
            claim = {"prompts": self.prompts, "batch_size": self.batch_size, "layer": self.layer}
            return claim, {"prompts": others, "batch_size": self.batch_size, "layer": self.layer, "seed": self.seed}
        if self.analysis == "pairs" and self.text:
            corpus = read_corpus(self.text)
            progress("reading held-out text", 0, None)
            rows = draw_rows(model, islice(corpus.documents(), self.text_skip, None), self.text_tokens)
            claim = {"text": corpus.identity, "text_skip": self.text_skip, "text_tokens": self.text_tokens}
            return claim, {"text": HeldOutText(model, rows)}
        return {}, {}
