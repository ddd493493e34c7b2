"""Running a recipe: run after run, scored before and after, everything saved so that a killed experiment resumes.

An experiment's folder:

| path | holds |
|---|---|
| `recipe.json` | the recipe as it was understood, and the fingerprint of the model's weights |
| `before.json`, `before.jsonl` | the scores of the unedited model; and case by case its outcomes and what it says |
| `NAME/session/`, `NAME/along.jsonl`, `NAME/singles.jsonl` | the state of a run under way |
| `values/` | values that runs share, until all runs are done |
| `NAME/result.json`, `NAME/patch.safetensors` | a finished run: settings, scores, outcomes, drift, seconds; and its edit |
| `NAME/records.jsonl` | its cases, before and after |
| `table.json`, `table.md` | all runs side by side, once all are done |
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bluedit.datasets import Case, read_dataset
from bluedit.editing import Progress, prepare, silent
from bluedit.errors import BlueditError, RecipeError, first_line
from bluedit.evaluation import Scores, compare
from bluedit.experiments.measuring import Measurement, told, versions
from bluedit.experiments.recipes import Recipe, Run
from bluedit.experiments.sequence import SequenceRun
from bluedit.experiments.sharing import SharedValues, edited_layers
from bluedit.experiments.singly import SingleRun
from bluedit.experiments.store import (
    EXPERIMENT,
    RECIPE_MARKER,
    read_lines,
    read_object,
    read_record,
    write_lines,
    write_object,
)
from bluedit.models import MODULE_MAPS, EditableModel
from bluedit.reports.tables import markdown
from bluedit.results import Before, Comparison, Failure, RunResult, Table
from bluedit.statistics import Statistics, read_corpus
from bluedit.storage.files import atomic_file
from bluedit.storage.resumable import earlier_work, workplace
from bluedit.strategies import BOUNDARY

__all__ = ["Experiment", "Watch", "message_of", "paired"]

_COMPARED = ("ES", "PS", "NS", "S")

Told = dict[str, dict[str, Any]]


Watch = Callable[[str, str, float], object]
"""Is told of a run that it is `begun`, `done`, `failed`, or `found` (done earlier), its name, and the seconds that it took."""


def _unwatched(event: str, run: str, seconds: float) -> None:
    pass


@dataclass
class Experiment:
    """A recipe, the model it edits, and the folder its results are stored in."""

    recipe: Recipe
    model: EditableModel
    folder: Path
    replace: bool = False
    """Lose an earlier experiment in the folder, of whatever recipe."""

    @cached_property
    def fingerprint(self) -> str:
        """Of the unedited weights; they are hashed once."""
        return self.model.fingerprint()

    @cached_property
    def measure(self) -> Measurement:
        """What the runs are measured with."""
        return Measurement(self.recipe, self.model, self.fingerprint)

    def run(self, progress: Progress = silent, watch: Watch = _unwatched) -> dict[str, Any]:
        """Do what is not done yet, and write the table. **Returns** what `table.json` holds.

        Can be killed at any moment and started again: finished runs stay as they are, the one under way resumes after its last
        batch, and the scores are those of an undisturbed experiment. A run that fails does not stop the others: it is listed
        under `failed`, and tried again by the next call.

        **Raises** :class:`~bluedit.errors.RecipeError` when the folder holds the results of another recipe or model; the error
        of the first run when all of them fail.
        """
        cases = read_dataset(self.recipe.dataset, self.recipe.facts)
        self._check_text()
        with workplace(self.folder, EXPERIMENT, replace=self.replace), _threads(self.recipe.threads):
            return self._go_on(cases, progress, watch)

    def _go_on(self, cases: Sequence[Case], progress: Progress, watch: Watch) -> dict[str, Any]:
        """The experiment, from where the folder has it."""
        self._claim()
        before = self._before(cases, progress)
        values = SharedValues(self.folder / "values", self.fingerprint, self._edited_layers())
        results: list[RunResult] = []
        failed: dict[str, tuple[Failure, Exception]] = {}
        for name, run in zip(self.recipe.names, self.recipe.runs, strict=True):
            path = self.folder / name / "result.json"
            if path.is_file():
                results.append(read_record(path, name, RunResult))
                watch("found", name, results[-1].seconds.editing + results[-1].seconds.scoring)
                continue
            watch("begun", name, 0.0)
            started = time.monotonic()
            try:
                results.append(self._run(name, run, cases, values, progress))
            except OSError:
                raise  # a disk that is full is full for all
            except Exception as error:
                failed[name] = (_failure(name, run, error), error)
            watch("failed" if name in failed else "done", name, time.monotonic() - started)
        if failed and not results:
            raise next(error for _, error in failed.values())
        document = self._table(before, results, [failure for failure, _ in failed.values()])
        if not failed:
            values.remove()
        return document

    def _table(self, before: Before, results: Sequence[RunResult], failed: Sequence[Failure]) -> dict[str, Any]:
        table = {
            "recipe": self.recipe.model_dump(mode="json", exclude_none=True),
            "model_fingerprint": self.fingerprint,
            "before": before,
            "runs": [result.summary() for result in results],
            "blue_against_own": _compare(results),
            **({"failed": failed} if failed else {}),
            "versions": versions(),
        }
        document = Table.of(table).as_dict()
        write_object(self.folder / "table.json", document, "table")
        with atomic_file(self.folder / "table.md") as temporary:
            temporary.write_text(markdown(document), encoding="utf-8")
        return document

    def _claim(self) -> None:
        """Make the folder this experiment's, or see that it is."""
        claim = {"recipe": self.recipe.claim(), "model_fingerprint": self.fingerprint}
        if self.model.structure.map not in MODULE_MAPS:
            claim["module_map"] = self.model.structure.map.model_dump()
        path = self.folder / RECIPE_MARKER
        other = RecipeError(
            f"{self.folder} holds results of another recipe, or of another model; choose another folder with --out, or "
            "use --force to discard them"
        )
        if earlier_work(path, claim, read=lambda marker: read_object(marker, "recipe"), error=other) is None:
            write_object(path, claim, "recipe")

    def _before(self, cases: Sequence[Case], progress: Progress) -> Before:
        path, lines = self.folder / "before.json", self.folder / "before.jsonl"
        if not path.is_file():
            scores = self._tell_before(cases, progress)
            text = self.measure.read_text(progress)
            before = Before.of({"scores": scores.as_dict(), **text, "protocol": self.measure.tag(cases)})
            write_object(path, before.as_dict(), "before")
        elif not lines.is_file() and not all((self.folder / name / "result.json").is_file() for name in self.recipe.names):
            self._tell_before(cases, progress)  # an earlier version did not
        return read_record(path, "before", Before)

    def _tell_before(self, cases: Sequence[Case], progress: Progress) -> Scores:
        """Write down case by case what the unedited model makes of it."""
        scores = self.measure.scores(cases, "unedited", progress)
        says = self.measure.says(cases, progress)
        rows = [{"id": case, **told(found, said)} for (case, found), said in zip(scores.cases, says, strict=True)]
        write_lines(self.folder / "before.jsonl", rows)
        return scores

    def _check_text(self) -> None:
        """**Raises** :class:`~bluedit.errors.RecipeError` where the corpus uses what should be held out."""
        recipe = self.recipe
        if recipe.text is None:
            if recipe.text_skip is not None or recipe.text_tokens is not None:
                raise RecipeError("text_skip and text_tokens say how much of the held-out text is used; name it: text = ...")
            return
        if recipe.corpus is None or read_corpus(recipe.corpus).identity != read_corpus(recipe.text).identity:
            return
        if recipe.samples is None or recipe.samples > (recipe.text_skip or 0):
            raise RecipeError(
                "corpus and held-out text are the same, and second moments would be taken over what is held out; set samples, "
                "and text_skip to no less"
            )

    def _edited_layers(self) -> tuple[int, ...]:
        """The layers that any run edits; a run that cannot be prepared edits none, and says why when it is its turn."""
        recipe = self.recipe
        corpus = Statistics(read_corpus(recipe.corpus), recipe.samples) if recipe.corpus else None
        setups = []
        for run in recipe.runs:
            with contextlib.suppress(BlueditError):
                method = run.resolve()
                setups.append(prepare(self.model, method=method, layers=run.layers, corpus=corpus, templates=("{}",)))
        return edited_layers(setups)

    def _run(self, name: str, run: Run, cases: Sequence[Case], values: SharedValues, progress: Progress) -> RunResult:
        """One run from where it was left, to its result."""
        before = {row["id"]: told(row["outcomes"], row["says"]) for row in read_lines(self.folder / "before.jsonl")}
        kind = SingleRun if self.recipe.kind == "single" else SequenceRun
        return kind(self.measure, run, self.folder / name, cases, before, values).result(progress)


@contextlib.contextmanager
def _threads(count: int | None) -> Generator[None]:
    """Compute with so many threads within the block."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _failure(name: str, run: Run, error: Exception) -> Failure:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Failure.of({"name": name, "label": run.label, "message": message_of(error), "kind": type(error).__name__})


def message_of(error: Exception) -> str:
    """What went wrong, in words of its own where nobody foresaw it."""
    if isinstance(error, BlueditError):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return f"memory ran out: {first_line(error)}"
    return f"internal error: {type(error).__name__}: {first_line(error)}"


def _compare(results: Sequence[RunResult]) -> list[Comparison]:
    """Of every method that was run both with BLUE and with another strategy: by how many points BLUE is above.

    Runs belong together that have the same note.
    """
    compared: list[Comparison] = []
    for blue in (one for one in results if one.strategy == BOUNDARY.name):
        for own in (one for one in results if one.strategy != BOUNDARY.name):
            if (own.method, own.note) == (blue.method, blue.note):
                comparison = {
                    "method": blue.method,
                    "note": blue.note,
                    "blue": blue.name,
                    "own": own.name,
                    "strategy": own.strategy,
                    "difference": paired(blue, own, _COMPARED),
                }
                compared.append(Comparison.of(comparison))
    return compared


def paired(one: RunResult, other: RunResult, names: Sequence[str]) -> Mapping[str, Any]:
    """By how many points one run is above another in each score, over the cases that both have."""
    differences = {name: compare(_outcomes(one), _outcomes(other), name) for name in names}
    return {name: value.as_dict() for name, value in differences.items() if value}


def _outcomes(result: RunResult) -> Scores:
    """The scores of a stored result, case by case."""
    return Scores({}, tuple((row.id, row.by_score) for row in result.outcomes))
