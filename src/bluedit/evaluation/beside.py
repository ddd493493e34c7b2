"""A model measured as it is, and with an edit beside it: what only the unedited model can say is observed before the edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from bluedit.datasets.cases import Case
from bluedit.edits import Edit
from bluedit.evaluation.language import HeldOutText, TextScores
from bluedit.evaluation.measures import Count, Measure
from bluedit.evaluation.scoring import Scores
from bluedit.models import EditableModel
from bluedit.progress import Progress, silent
from bluedit.results.evaluation import CaseMeasure, EvaluatedCase, GeneratedText

__all__ = ["Measured", "case_records", "measure_beside"]


@dataclass(frozen=True)
class Measured:
    """A measure of a model, and with an edit of the unedited model too.

    - `now`, `unedited`: what was observed; `scores`, `before`: what follows. Without an edit the model is in the first of each.
    """

    measure: Measure[Any]
    now: Any
    unedited: Any | None
    scores: Scores
    before: Scores | None


def measure_beside(
    model: EditableModel,
    cases: Sequence[Case],
    measures: Sequence[Measure[Any]],
    *,
    edit: Edit | None = None,
    check: bool = True,
    held_out: HeldOutText | None = None,
    progress: Progress = silent,
) -> tuple[list[Measured], TextScores | None]:
    """Score a model on cases by several measures, with an edit before and after it; the model is left as it was.

    **Arguments**

    - `edit`, `check`: see :meth:`~bluedit.edits.Edit.applied`.
    - `held_out`: the reference that the model is compared with on held-out text; taken of the unedited model.

    **Raises** as the measures; :class:`~bluedit.errors.PatchError` for an edit that does not fit, before anything is measured.
    """
    unedited: list[Any] = [None] * len(measures)
    if edit is not None:
        with edit.applied(model, check=check):
            pass
        unedited = [_observed(one, model, cases, progress, " before the edit") for one in measures]
    with edit.applied(model, check=check) if edit is not None else nullcontext():
        now = [_observed(one, model, cases, progress) for one in measures]
        text = None if held_out is None else held_out.scores(model)
    results = [
        Measured(
            measure,
            after,
            before,
            measure.scores(cases, after, before),
            None if before is None else measure.scores(cases, before),
        )
        for measure, after, before in zip(measures, now, unedited, strict=True)
    ]
    return results, text


def _observed(measure: Measure[Any], model: EditableModel, cases: Sequence[Case], progress: Progress, when: str = "") -> Any:
    task, counted = f"scoring, {measure.name}{when}", 0

    def count(done: int, total: int) -> None:
        nonlocal counted
        # A part of a measure may start over with a total of its own.
        progress(task, done - counted if done > counted else done, total)
        counted = done

    report: Count = count
    progress(task, 0, None)
    return measure.observe(model, cases, progress=report)


def case_records(cases: Sequence[Case], measured: Sequence[Measured]) -> Iterator[EvaluatedCase]:
    """A record of every case, in order, with its outcomes and texts by measure, before the edit and after it."""
    for number, case in enumerate(cases):
        fields: dict[str, Any] = {
            "id": case.fact.id,
            "prompt": case.fact.text,
            "subject": case.fact.subject,
            "target": case.fact.target,
            "true_target": case.true_target,
        }
        if any(one.before is not None for one in measured):
            fields["before"] = {
                one.measure.name: _case_measure(one.measure, case, number, one.before, one.unedited)
                for one in measured
                if one.before is not None
            }
        fields["after"] = {one.measure.name: _case_measure(one.measure, case, number, one.scores, one.now) for one in measured}
        yield EvaluatedCase.of(fields)


def _case_measure(measure: Measure[Any], case: Case, number: int, scores: Scores, observed: Any) -> CaseMeasure:
    outcomes = {name: list(values) for name, values in scores.cases[number][1].items()}
    texts = [
        GeneratedText(kind=kind, prompt=one.prompt, text=one.text, tokens=len(one.ids), stopped=one.stopped)
        for kind, one in measure.texts(case, observed)
    ]
    return CaseMeasure.of({"outcomes": outcomes, **({"generated": texts} if texts else {})})
