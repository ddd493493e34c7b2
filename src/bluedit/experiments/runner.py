"""Running a recipe: one session per run, scored after its last batch, everything saved so that a killed experiment resumes.

An experiment's folder:

| path | holds |
|---|---|
| `recipe.json` | the recipe as it was understood, and the fingerprint of the model's weights |
| `before.json` | the scores of the unedited model |
| `NAME/session/` | the saved session of a run under way |
| `values/` | values that runs share, until all runs are done |
| `NAME/result.json`, `NAME/patch.safetensors` | a finished run: settings, scores, outcomes, drift, seconds; and its edit |
| `table.json`, `table.md` | all runs side by side, once all are done |
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from bluedit.datasets import Case, read_dataset
from bluedit.editing import Progress, prepare, silent
from bluedit.edits import Edit
from bluedit.errors import DamagedFileError, RecipeError
from bluedit.evaluation import Scores, compare, protocol, score_cases
from bluedit.evaluation.language import HeldOutText, TextScores, draw_rows
from bluedit.experiments.recipes import TEXT_KEYS, Recipe, Run
from bluedit.experiments.sharing import SharedValues, edited_layers
from bluedit.models import MODULE_MAPS, EditableModel
from bluedit.reports.tables import markdown
from bluedit.results import Before, Comparison, ProtocolTag, Record, RunResult, Table
from bluedit.sessions import SESSION, SESSION_MARKER, Session
from bluedit.statistics import Statistics, read_corpus
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.files import OutputKind, atomic_file, contents, discard
from bluedit.storage.resumable import earlier_work, workplace
from bluedit.strategies import BOUNDARY

__all__ = ["EXPERIMENT", "RECIPE_MARKER", "Experiment"]

RECIPE_MARKER = "recipe.json"
"""The file that shows a folder to be an experiment's."""
_WRITTEN = re.compile(
    r"(recipe|before|table)\.json|table\.md|[^/]+/(|result\.json|patch\.safetensors|session/(session\.json|[a-z]+-[\d-]+\.safetensors|))"
    r"|values/[0-9a-f]{32}\.safetensors"
)
_TEXT_TOKENS = 10_000
_COMPARED = ("ES", "PS", "NS", "S")

R = TypeVar("R", bound=Record)


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

    def run(self, progress: Progress = silent) -> dict[str, Any]:
        """Do what is not done yet, and write the table. **Returns** what `table.json` holds.

        Can be killed at any moment and started again: finished runs stay as they are, the one under way resumes after its last
        batch, and the scores are those of an undisturbed experiment.

        **Raises** :class:`~bluedit.errors.RecipeError` when the folder holds the results of another recipe or model.
        """
        cases = read_dataset(self.recipe.dataset, self.recipe.facts)
        self._check_text()
        with workplace(self.folder, EXPERIMENT, replace=self.replace):
            return self._go_on(cases, progress)

    def _go_on(self, cases: Sequence[Case], progress: Progress) -> dict[str, Any]:
        """The experiment, from where the folder has it."""
        self._claim()
        before = self._before(cases, progress)
        values = SharedValues(self.folder / "values", self.fingerprint, self._edited_layers())
        runs = list(zip(self.recipe.names, self.recipe.runs, strict=True))
        results: dict[str, RunResult] = {}
        for name, run in runs:
            path = self.folder / name / "result.json"
            results[name] = _read(path, name, RunResult) if path.is_file() else self._run(name, run, cases, values, progress)
        table = Table(
            recipe=self.recipe.model_dump(mode="json", exclude_none=True),
            model_fingerprint=self.fingerprint,
            before=before,
            runs=[result.summary() for result in results.values()],
            blue_against_own=self._compare(list(results.values())),
        )
        document = table.as_dict()
        _write(self.folder / "table.json", document, "table")
        with atomic_file(self.folder / "table.md") as temporary:
            temporary.write_text(markdown(document), encoding="utf-8")
        values.remove()
        return document

    def _claim(self) -> None:
        """Make the folder this experiment's, or see that it is."""
        claim = {
            "recipe": self.recipe.model_dump(mode="json", exclude={"title", *self._without}),
            "model_fingerprint": self.fingerprint,
        }
        if self.model.structure.map not in MODULE_MAPS:
            claim["module_map"] = self.model.structure.map.model_dump()
        path = self.folder / RECIPE_MARKER
        other = RecipeError(
            f"{self.folder} holds results of another recipe, or of another model; choose another folder with --out, or "
            "use --force to discard them"
        )
        if earlier_work(path, claim, read=lambda marker: _document(marker, "recipe"), error=other) is None:
            _write(path, claim, "recipe")

    def _before(self, cases: Sequence[Case], progress: Progress) -> Before:
        path = self.folder / "before.json"
        if not path.is_file():
            scores = score_cases(self.model, cases, progress=lambda done, total: progress("scoring, unedited", done, total))
            tag = self._protocol(cases)
            before = Before.of({"scores": scores.as_dict(), **self._read_text(progress), "protocol": tag})
            _write(path, before.as_dict(), "before")
        return _read(path, "before", Before)

    @property
    def _without(self) -> set[str]:
        """The keys of held-out text where the recipe has none: folders were claimed without them."""
        return set(TEXT_KEYS) if self.recipe.text is None else set()

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

    @cached_property
    def _text(self) -> HeldOutText | None:
        """The held-out text, with what the unedited model makes of it: made before anything is edited."""
        recipe = self.recipe
        if recipe.text is None:
            return None
        documents = islice(read_corpus(recipe.text).documents(), recipe.text_skip or 0, None)
        return HeldOutText(self.model, draw_rows(self.model, documents, recipe.text_tokens or _TEXT_TOKENS))

    def _read_text(self, progress: Progress) -> dict[str, Any]:
        """The entry of a result on held-out text, for the model as it is; none where the recipe names no text."""
        text = self._text
        if text is None:
            return {}
        progress("reading held-out text", 0, len(text.rows))
        scores: TextScores = text.scores(self.model, progress=lambda rows: progress("reading held-out text", rows, None))
        return {"text": scores.as_dict()}

    def _edited_layers(self) -> tuple[int, ...]:
        recipe = self.recipe
        corpus = Statistics(read_corpus(recipe.corpus), recipe.samples) if recipe.corpus else None
        return edited_layers(
            prepare(self.model, method=run.resolve(), layers=run.layers, corpus=corpus, templates=("{}",))
            for run in recipe.runs
        )

    def _run(self, name: str, run: Run, cases: Sequence[Case], values: SharedValues, progress: Progress) -> RunResult:
        """One run from where it was left, to its result."""
        _ = self._text
        saved = self.folder / name / "session"
        session = (
            Session.resume(saved, self.model, method=run.resolve())
            if (saved / SESSION_MARKER).is_file()
            else self._session(run)
        )
        session.values = values
        try:
            size = self.recipe.batch_size or len(cases)
            batches = [cases[start : start + size] for start in range(0, len(cases), size)]
            progress(f"{run.label}, batches", len(session), len(batches))
            for batch in batches[len(session) :]:
                session.apply([case.fact for case in batch], progress=progress)
                session.save(saved)
                progress(f"{run.label}, batches", 1, len(batches))
            patch = session.finish()
            started = time.monotonic()
            scores = score_cases(self.model, cases, progress=lambda done, total: progress(f"scoring {run.label}", done, total))
            seconds: dict[str, Any] = {"editing": patch.manifest.seconds, "scoring": round(time.monotonic() - started, 3)}
            seconds["batches"] = [one.manifest.seconds for one in session.patches]
            text = self._read_text(progress)
        finally:
            session.undo(len(session))
        result = self._result(name, run, patch, scores, seconds, batches, text)
        patch.save(self.folder / name / "patch.safetensors", replace=True)
        _write(self.folder / name / "result.json", result.as_dict(), name)
        discard(saved, SESSION)
        return result

    def _session(self, run: Run) -> Session:
        recipe = self.recipe
        return Session(
            self.model,
            method=run.resolve(),
            layers=run.layers,
            settings=run.settings,
            corpus=Statistics(read_corpus(recipe.corpus), recipe.samples) if recipe.corpus else None,
            seed=recipe.seed,
        )

    def _result(
        self,
        name: str,
        run: Run,
        patch: Edit,
        scores: Scores,
        seconds: dict[str, Any],
        batches: Sequence[Sequence[Case]],
        text: Mapping[str, Any],
    ) -> RunResult:
        manifest = patch.manifest
        ends = {"first": batches[0], "middle": batches[len(batches) // 2], "latest": batches[-1]}
        result = {
            "name": name,
            "label": run.label,
            "note": run.note,
            "method": manifest.method,
            "strategy": manifest.strategy,
            "layers": list(manifest.layers),
            "settings": manifest.settings,
            "scores": scores.as_dict(),
            **text,
            "retention": {end: scores.of([case.fact.id for case in batch]).as_dict() for end, batch in ends.items()},
            "drift": {
                weight: {
                    "relative_norm": record.relative_norm,
                    "norm": record.norm,
                    "largest_singular_value": patch.changes[weight].largest_singular_value(),
                }
                for weight, record in manifest.weights.items()
            },
            "null_space_rank": {
                weight: record.null_space_rank
                for weight, record in manifest.weights.items()
                if record.null_space_rank is not None
            },
            "mean_evaluations": {
                str(record.layer): sum(record.evaluations) / max(1, len(record.evaluations)) for record in manifest.optimisation
            },
            "remaining": {
                str(record.layer): round(record.left_open, 4)
                for record in manifest.optimisation
                if record.left_open is not None
            },
            "seconds": seconds,
            "protocol": self._protocol([case for batch in batches for case in batch], patch),
            "outcomes": [{"id": case, **outcomes} for case, outcomes in scores.cases],
        }
        return RunResult.of(result)

    def _protocol(self, cases: Sequence[Case], patch: Edit | None = None) -> ProtocolTag:
        recipe = self.recipe
        tag = protocol(self.model, cases, dataset=recipe.dataset, patch=patch, seed=recipe.seed, fingerprint=self.fingerprint)
        # The name that was asked for, and not the folder that it was found in.
        return tag.model_copy(update={"model": recipe.model})

    def _compare(self, results: Sequence[RunResult]) -> list[Comparison]:
        """Of every method that was run both with BLUE and with another strategy: by how many points BLUE is above.

        Runs belong together that have the same note.
        """
        compared: list[Comparison] = []
        for blue in (one for one in results if one.strategy == BOUNDARY.name):
            for own in (one for one in results if one.strategy != BOUNDARY.name):
                if (own.method, own.note) != (blue.method, blue.note):
                    continue
                pair = _outcomes(blue), _outcomes(own)
                differences = {name: compare(*pair, name) for name in _COMPARED}
                comparison = {
                    "method": blue.method,
                    "note": blue.note,
                    "blue": blue.name,
                    "own": own.name,
                    "strategy": own.strategy,
                    "difference": {name: value.as_dict() for name, value in differences.items() if value},
                }
                compared.append(Comparison.of(comparison))
        return compared


def _outcomes(result: RunResult) -> Scores:
    """The scores of a stored result, case by case."""
    return Scores({}, tuple((row.id, row.by_score) for row in result.outcomes))


def _read(path: Path, kind: str, record: type[R]) -> R:
    """What a file of the experiment holds. **Raises** :class:`~bluedit.errors.RecipeError` where it is damaged."""
    document = _document(path, kind)
    try:
        return record.read(document, path)
    except DamagedFileError as error:
        raise _damaged(error) from error


def _document(path: Path, kind: str) -> dict[str, Any]:
    try:
        return read_document(path, kind=kind)
    except DamagedFileError as error:
        raise _damaged(error) from error


def _damaged(error: DamagedFileError) -> RecipeError:
    return RecipeError(f"{error}; remove it, and it is computed again")


def _write(path: Path, document: Mapping[str, Any], kind: str) -> None:
    write_document(path, document, kind=kind)


def _owned(path: Path) -> list[str] | None:
    try:
        document = read_document(path / RECIPE_MARKER, kind="recipe")
    except DamagedFileError:
        return None
    ours = "recipe" in document and "model_fingerprint" in document
    return [name for name in contents(path) if _WRITTEN.fullmatch(name)] if ours else None


EXPERIMENT = OutputKind("an experiment that bluedit ran", _owned)
"""What is replaced by an experiment where that is asked for."""
