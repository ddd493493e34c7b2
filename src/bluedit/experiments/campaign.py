"""A whole recipe: its cells one after the other or several at a time, and what becomes of all of them.

A matrix has a folder of its own:

| path | holds |
|---|---|
| `matrix.json` | the recipe as it was written, versions, and by cell its state and its table |
| `cells/NAME/` | a cell: an experiment's folder, see :mod:`bluedit.experiments.runner` |

A cell claims its folder as any experiment does. So a matrix may grow: with one more seed in the list, the same command runs
what is new. A cell that fails does not stop the others; the same command tries it again.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bluedit.datasets import read_dataset
from bluedit.errors import BlueditError, RecipeError
from bluedit.experiments.jobs import Message, run_tasks
from bluedit.experiments.matrix import Cell, Plan
from bluedit.experiments.measuring import versions
from bluedit.experiments.runner import Experiment, message_of
from bluedit.experiments.store import EXPERIMENT, MATRIX_MARKER, RECIPE_MARKER, read_object, write_object
from bluedit.experiments.timing import Clock
from bluedit.experiments.worker import Options, Task
from bluedit.models import EditableModel, load_model
from bluedit.progress import Progress, silent
from bluedit.results import MatrixTable, Table
from bluedit.storage.files import writable_target
from bluedit.storage.resumable import workplace

__all__ = ["Campaign", "Display", "quiet", "read_matrix"]


class Display(Protocol):
    """What shows how far a campaign is."""

    def lane(self, name: str) -> Progress:
        """The progress of one cell, among others that are under way."""
        ...

    def overall(self, over: int, total: int, left: float | None) -> object:
        """How many runs are over, and the seconds until all are, if that is known."""
        ...

    def ended(self, name: str, problem: str | None) -> object:
        """A cell is over, and why it failed if it did."""
        ...

    def warn(self, text: str) -> object:
        """A warning that came from another process."""
        ...


class _Quiet:
    def lane(self, name: str) -> Progress:
        return silent

    def overall(self, over: int, total: int, left: float | None) -> None:
        pass

    def ended(self, name: str, problem: str | None) -> None:
        pass

    def warn(self, text: str) -> None:
        pass


quiet: Display = _Quiet()


@dataclass
class Campaign:
    """A plan and the folder of its results.

    - `jobs`: how many cells run at a time; with more than one each has a process of its own.
    - `replace`: lose earlier results in the folder, of whatever recipe.
    """

    plan: Plan
    folder: Path
    options: Options = field(default_factory=Options)
    jobs: int = 1
    display: Display = quiet
    replace: bool = False
    _failed: dict[str, str] = field(default_factory=dict[str, str])
    _model: tuple[tuple[str, str | None], EditableModel] | None = None

    def run(self) -> Table | MatrixTable:
        """Do what is not done yet. **Returns** what `table.json` holds, or for a matrix `matrix.json`.

        **Raises** what is wrong before anything begins, such as :class:`~bluedit.errors.DatasetError`; in a plan of one cell
        also what :meth:`~bluedit.experiments.runner.Experiment.run` does.
        """
        clock = self._clock()
        self.display.overall(clock.over, clock.total, clock.left)
        if self.replace and self.folder.exists():
            writable_target(self.folder, replace=True, kind=EXPERIMENT)
        if self.plan.flat:
            (cell,) = self.plan.cells
            return Table.of(self._here(cell, self.folder, clock, replace=self.replace))
        with workplace(self.folder, EXPERIMENT, replace=self.replace):
            self._claim()
            self._write()
            if self.jobs == 1:
                self._in_turn(clock)
            else:
                self._side_by_side(clock)
            return self._write()

    def _clock(self) -> Clock:
        """The weight of every run; reads all data sets, which says what is wrong with one before a model is loaded."""
        facts: dict[tuple[str, int | None], int] = {}
        weights: dict[tuple[str, str], int] = {}
        for cell in self.plan.cells:
            recipe = cell.recipe
            key = (recipe.dataset, recipe.facts)
            if key not in facts:
                facts[key] = len(read_dataset(*key))
            weights |= {(cell.name, name): facts[key] for name in recipe.names}
        return Clock(weights, min(self.jobs, len(self.plan.cells)))

    def _claim(self) -> None:
        """**Raises** :class:`~bluedit.errors.RecipeError` where the folder holds the results of another recipe."""
        if (self.folder / MATRIX_MARKER).is_file():
            if read_object(self.folder / MATRIX_MARKER, "matrix").get("name") == self.plan.name:
                return
        elif not (self.folder / RECIPE_MARKER).is_file():
            writable_target(self.folder / MATRIX_MARKER)
            if not self.folder.is_dir() or not any(self.folder.iterdir()):
                return
        raise RecipeError(
            f"{self.folder} holds something else than the matrix {self.plan.name}; choose another folder with --out, or use "
            "--force to discard earlier results"
        )

    # -- running -----------------------------------------------------------------------------------------------------

    def _in_turn(self, clock: Clock) -> None:
        for cell in self.plan.cells:
            try:
                self._here(cell, self.folder / cell.name, clock)
            except OSError as error:
                if not isinstance(error, BlueditError):
                    raise  # a disk that is full is full for all
                self._over(cell, clock, str(error))
            except Exception as error:
                self._over(cell, clock, message_of(error))
            else:
                self._over(cell, clock)

    def _here(self, cell: Cell, folder: Path, clock: Clock, *, replace: bool = False) -> dict[str, Any]:
        """Run a cell in this process. Cells of one model that follow one another share it."""
        lane = self.display.lane(cell.label)
        key = (cell.recipe.model, cell.recipe.dtype)
        if self._model is None or self._model[0] != key:
            self._model = None
            gc.collect()
            lane(f"loading {cell.recipe.model}", 0, None)
            options = self.options
            model = load_model(
                cell.recipe.model,
                device=options.device,
                dtype=cell.recipe.dtype,
                module_map=options.module_map,
                trust_remote_code=options.trust_remote_code,
                progress=lane,
            )
            self._model = key, model
        return Experiment(cell.recipe, self._model[1], folder, replace=replace).run(lane, self._watch(cell, clock))

    def _side_by_side(self, clock: Clock) -> None:
        cells = self.plan.cells
        lanes: dict[int, Progress] = {}
        tasks = [Task(recipe=cell.recipe, folder=self.folder / cell.name, options=self.options) for cell in cells]
        with contextlib.closing(run_tasks(tasks, self.jobs)) as messages:
            for message in messages:
                cell = cells[message.task]
                if message.kind == "progress":
                    if message.task not in lanes:
                        lanes[message.task] = self.display.lane(cell.label)
                    lanes[message.task](*message.content)
                elif message.kind == "watch":
                    self._watch(cell, clock)(*message.content)
                elif message.kind == "warning":
                    self.display.warn(f"{cell.label}: {message.content}")
                else:
                    self._over(cell, clock, _complaint(message))

    def _watch(self, cell: Cell, clock: Clock) -> Callable[[str, str, float], None]:
        def tell(event: str, run: str, seconds: float) -> None:
            clock.tell(event, cell.name, run, seconds)
            self.display.overall(clock.over, clock.total, clock.left)

        return tell

    def _over(self, cell: Cell, clock: Clock, problem: str | None = None) -> None:
        """A cell has ended, well or not."""
        if problem is not None:
            self._failed[cell.name] = problem
            clock.give_up(cell.name)
        self.display.overall(clock.over, clock.total, clock.left)
        self.display.ended(cell.label, problem)
        self._write()

    # -- writing -----------------------------------------------------------------------------------------------------

    def _write(self) -> MatrixTable:
        """Write `matrix.json` as things stand."""
        document = {
            "name": self.plan.name,
            "title": self.plan.title,
            "recipe": dict(self.plan.document),
            "versions": versions(),
            "cells": [self._cell(cell) for cell in self.plan.cells],
        }
        matrix = MatrixTable.of(document)
        write_object(self.folder / MATRIX_MARKER, matrix.as_dict(), "matrix")
        return matrix

    def _cell(self, cell: Cell) -> dict[str, Any]:
        """The entry of a cell, by what its folder holds."""
        entry: dict[str, Any] = {
            "name": cell.name,
            "label": cell.label,
            "status": "open",
            "recipe": cell.recipe.model_dump(mode="json", exclude_none=True),
        }
        if cell.name in self._failed:
            return {**entry, "status": "failed", "message": self._failed[cell.name]}
        path = self.folder / cell.name / "table.json"
        if not path.is_file():
            return entry
        table = Table.read(read_object(path, "table"), path)
        if len(table.runs) + len(table.failed) != len(cell.recipe.runs):
            return entry  # of an earlier call, which ran fewer
        if not table.failed:
            return {**entry, "status": "done", "table": table}
        message = "; ".join(f"{one.label}: {one.message}" for one in table.failed)
        return {**entry, "status": "failed", "message": message, "table": table}


def _complaint(message: Message) -> str | None:
    """Why a task failed; None where it did not."""
    if message.kind == "done":
        return None
    content: Mapping[str, Any] | str = message.content
    return content if isinstance(content, str) else str(content["message"])


def read_matrix(folder: Path) -> MatrixTable:
    """What the folder of a matrix holds. **Raises** :class:`~bluedit.errors.RecipeError` where it is damaged."""
    path = folder / MATRIX_MARKER
    return MatrixTable.read(read_object(path, "matrix"), path)
