"""One run over single facts: each is edited, scored and taken back before the next. What is done is kept fact by fact."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bluedit.datasets import Case
from bluedit.evaluation.scoring import tally
from bluedit.experiments.measuring import Measurement, case_record, told
from bluedit.experiments.recipes import Run
from bluedit.experiments.sequence import open_session, weights_entries
from bluedit.experiments.sharing import SharedValues
from bluedit.experiments.store import read_lines, write_lines, write_object
from bluedit.progress import Progress
from bluedit.results import RunResult
from bluedit.sessions import Session
from bluedit.storage.resumable import Journal

__all__ = ["SingleRun"]

Row = dict[str, Any]


@dataclass
class SingleRun:
    """A run of a recipe over single facts (EVALUATION, protocol "single").

    - `before`: by case id what the unedited model made of it, see :func:`~bluedit.experiments.measuring.told`.
    """

    measure: Measurement
    run: Run
    folder: Path
    cases: Sequence[Case]
    before: Mapping[str, Mapping[str, Any]]
    values: SharedValues

    def result(self, progress: Progress) -> RunResult:
        """Do the run from where it was left, and write its result."""
        self.folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(self.folder / "singles.jsonl")
        rows = read_lines(journal.path)
        label = f"{self.run.label}, facts"
        progress(label, len(rows), len(self.cases))
        if len(rows) < len(self.cases):
            session = open_session(self.measure.recipe, self.run, self.measure.model)
            session.values = self.values
            for case in self.cases[len(rows) :]:
                rows.append(self._one(session, case, progress))
                journal.append(rows[-1])
                progress(label, 1, len(self.cases))
        result = RunResult.of(self._result(rows))
        records = [
            case_record(case, number, self.before[case.fact.id], told(row["outcomes"], row["says"]))
            for number, (case, row) in enumerate(zip(self.cases, rows, strict=True), start=1)
        ]
        write_lines(self.folder / "records.jsonl", records)
        write_object(self.folder / "result.json", result.as_dict(), self.folder.name)
        journal.remove()
        return result

    def _one(self, session: Session, case: Case, progress: Progress) -> Row:
        """Edit one fact, score it, and take it back."""
        try:
            session.apply([case.fact], progress=progress)
            patch = session.finish()
            started = time.monotonic()
            ((_, outcomes),) = self.measure.scores([case], self.run.label, progress).cases
            scoring = round(time.monotonic() - started, 3)
            (says,) = self.measure.says([case], progress)
            manifest = patch.manifest
            edited: Row = {"method": manifest.method, "strategy": manifest.strategy}
            edited |= {"layers": list(manifest.layers), "settings": manifest.settings}
            tag = self.measure.tag([case], patch).as_dict()["edit"]
            return {
                "id": case.fact.id,
                **told(outcomes, says),
                **edited,
                **weights_entries(patch),
                "seconds": {"editing": manifest.seconds, "scoring": scoring},
                "edit": tag,
            }
        finally:
            session.undo(len(session))

    def _result(self, rows: Sequence[Row]) -> dict[str, Any]:
        scores = tally([(row["id"], {name: tuple(values) for name, values in row["outcomes"].items()}) for row in rows])
        first = rows[0]
        tag = {"edits": len(rows), "batch_size": 1, "evaluated": "after each edit, which is then undone"}
        seconds: dict[str, Any] = {kind: sum(row["seconds"][kind] for row in rows) for kind in ("editing", "scoring")}
        seconds = {kind: round(value, 3) for kind, value in seconds.items()}
        return {
            "name": self.folder.name,
            "label": self.run.label,
            "note": self.run.note,
            **{key: first[key] for key in ("method", "strategy", "layers", "settings")},
            "scores": scores.as_dict(),
            "retention": {},
            "drift": _mean_by_name([row["drift"] for row in rows]),
            "null_space_rank": first["null_space_rank"],
            "mean_evaluations": _mean([row["mean_evaluations"] for row in rows]),
            "remaining": _mean([row["remaining"] for row in rows], digits=4),
            "seconds": {**seconds, "batches": [row["seconds"]["editing"] for row in rows]},
            "protocol": {**self.measure.tag(self.cases).as_dict(), "edit": {**first["edit"], **tag}},
            "outcomes": [{"id": case, **outcomes} for case, outcomes in scores.cases],
        }


def _mean(rows: Sequence[Mapping[str, float]], digits: int | None = None) -> dict[str, float]:
    """By key the mean over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row[name] for row in rows if name in row] for name in names}
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return means if digits is None else {name: round(value, digits) for name, value in means.items()}


def _mean_by_name(rows: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _mean([row[name] for row in rows if name in row]) for name in names}
