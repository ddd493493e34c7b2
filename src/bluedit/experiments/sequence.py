"""One run over batches: a session, saved after every batch, scored after the last and, where asked for, on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bluedit.datasets import Case
from bluedit.edits import Edit
from bluedit.evaluation import Scores
from bluedit.experiments.measuring import Measurement, case_record, told
from bluedit.experiments.recipes import Recipe, Run
from bluedit.experiments.sharing import SharedValues
from bluedit.experiments.store import read_lines, write_lines, write_object
from bluedit.models import EditableModel
from bluedit.progress import Progress
from bluedit.results import Along, RunResult
from bluedit.sessions import SESSION, SESSION_MARKER, Session
from bluedit.statistics import Statistics, read_corpus
from bluedit.storage.files import discard
from bluedit.storage.resumable import Journal

__all__ = ["SequenceRun", "open_session", "weights_entries"]


def open_session(recipe: Recipe, run: Run, model: EditableModel) -> Session:
    """A session that edits as a run says."""
    return Session(
        model,
        method=run.resolve(),
        layers=run.layers,
        settings=run.settings,
        corpus=Statistics(read_corpus(recipe.corpus), recipe.samples) if recipe.corpus else None,
        seed=recipe.seed,
    )


@dataclass
class SequenceRun:
    """A run of a recipe over batches, or over all facts at once.

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
        _ = self.measure.text
        model, saved = self.measure.model, self.folder / "session"
        session = (
            Session.resume(saved, model, method=self.run.resolve())
            if (saved / SESSION_MARKER).is_file()
            else open_session(self.measure.recipe, self.run, model)
        )
        session.values = self.values
        try:
            batches = self._batches
            progress(f"{self.run.label}, batches", len(session), len(batches))
            self._look(session, progress)
            for batch in batches[len(session) :]:
                session.apply([case.fact for case in batch], progress=progress)
                session.save(saved)
                self._look(session, progress)
                progress(f"{self.run.label}, batches", 1, len(batches))
            patch = session.finish()
            started = time.monotonic()
            scores = self.measure.scores(self.cases, self.run.label, progress)
            seconds: dict[str, Any] = {"editing": patch.manifest.seconds, "scoring": round(time.monotonic() - started, 3)}
            seconds["batches"] = [one.manifest.seconds for one in session.patches]
            text = self.measure.read_text(progress)
            says = self.measure.says(self.cases, progress)
        finally:
            session.undo(len(session))
        result = self._result(patch, scores, seconds, text)
        patch.save(self.folder / "patch.safetensors", replace=True)
        self._write_records(scores, says)
        write_object(self.folder / "result.json", result.as_dict(), self.folder.name)
        discard(saved, SESSION)
        self._looks.remove()
        return result

    @property
    def _batches(self) -> list[Sequence[Case]]:
        size = self.measure.recipe.batch_size or len(self.cases)
        return [self.cases[start : start + size] for start in range(0, len(self.cases), size)]

    @property
    def _looks(self) -> Journal:
        """The scores on the way, until the run is done."""
        return Journal(self.folder / "along.jsonl")

    def _look(self, session: Session, progress: Progress) -> None:
        """Score the facts so far, where it is time and has not been done: as if the sequence ended here."""
        every, done = self.measure.recipe.evaluate_every, len(session)
        if every is None or not done or done % every or done == len(self._batches):
            return
        if any(one["batches"] == done for one in read_lines(self._looks.path)):
            return
        ending = session.setup.method.ends_sequence
        if ending:
            session.finish()
        cases = self.cases[: len(session.facts)]
        scores = self.measure.scores(cases, f"{self.run.label}, {done} batches", progress)
        self._looks.append(self._along(done, scores, self.measure.read_text(progress)))
        if ending:
            session.reopen()

    def _along(self, done: int, scores: Scores, text: Mapping[str, Any]) -> dict[str, Any]:
        first, latest = ([case.fact.id for case in batch] for batch in (self._batches[0], self._batches[done - 1]))
        along = {
            "batches": done,
            "facts": len(scores.cases),
            "scores": scores.as_dict(),
            "first": scores.of(first).as_dict(),
            "latest": scores.of(latest).as_dict(),
            **text,
        }
        return Along.of(along).as_dict()

    def _write_records(self, scores: Scores, says: Sequence[str]) -> None:
        outcomes = dict(scores.cases)
        spoken = dict(zip([case.fact.id for case in self.cases], says, strict=True))
        rows = [
            case_record(case, number, self.before[case.fact.id], told(outcomes[case.fact.id], spoken[case.fact.id]))
            for number, batch in enumerate(self._batches, start=1)
            for case in batch
        ]
        write_lines(self.folder / "records.jsonl", rows)

    def _result(self, patch: Edit, scores: Scores, seconds: Mapping[str, Any], text: Mapping[str, Any]) -> RunResult:
        manifest, batches = patch.manifest, self._batches
        ends = {"first": batches[0], "middle": batches[len(batches) // 2], "latest": batches[-1]}
        along = read_lines(self._looks.path)
        if self.measure.recipe.evaluate_every is not None:
            along.append(self._along(len(batches), scores, text))
        result = {
            "name": self.folder.name,
            "label": self.run.label,
            "note": self.run.note,
            "method": manifest.method,
            "strategy": manifest.strategy,
            "layers": list(manifest.layers),
            "settings": manifest.settings,
            "scores": scores.as_dict(),
            **text,
            "retention": {end: scores.of([case.fact.id for case in batch]).as_dict() for end, batch in ends.items()},
            **({"along": along} if along else {}),
            **weights_entries(patch),
            "seconds": seconds,
            "protocol": self.measure.tag(self.cases, patch),
            "outcomes": [{"id": case, **outcomes} for case, outcomes in scores.cases],
        }
        return RunResult.of(result)


def weights_entries(patch: Edit) -> dict[str, Any]:
    """What a result says of an edit's weights and of the optimisation of its values."""
    manifest = patch.manifest
    return {
        "drift": {
            weight: {
                "relative_norm": record.relative_norm,
                "norm": record.norm,
                "largest_singular_value": patch.changes[weight].largest_singular_value(),
            }
            for weight, record in manifest.weights.items()
        },
        "null_space_rank": {
            weight: record.null_space_rank for weight, record in manifest.weights.items() if record.null_space_rank is not None
        },
        "mean_evaluations": {
            str(record.layer): sum(record.evaluations) / max(1, len(record.evaluations)) for record in manifest.optimisation
        },
        "remaining": {
            str(record.layer): round(record.left_open, 4) for record in manifest.optimisation if record.left_open is not None
        },
    }
