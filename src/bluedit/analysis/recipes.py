"""The analyses that a recipe asks for, after its runs: each in `analyses/NAME`, resumed where it was left.

Values that analyses of one model share are optimised once: they lie in `analyses/values` until all are done.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bluedit.analysis.figures import save_figure
from bluedit.analysis.place import at
from bluedit.analysis.questions import Question
from bluedit.analysis.running import ANALYSES
from bluedit.analysis.table_text import write_tables
from bluedit.analysis.tables import paper_tables
from bluedit.errors import BlueditError, RecipeError, did_you_mean
from bluedit.experiments.matrix import AnalysisTask, Plan
from bluedit.experiments.worker import Options
from bluedit.models import EditableModel, load_model
from bluedit.progress import Progress, silent

__all__ = ["Analysed", "carry_out", "check_analyses"]

_TEXT_TOKENS = 4000
TABLES = "tables"
"""The analysis that is made of the recipe's own runs."""


@dataclass(frozen=True)
class Analysed:
    """What became of an analysis: `problem` says why it failed, None where it did not."""

    task: AnalysisTask
    problem: str | None = None


def check_analyses(plan: Plan) -> None:
    """**Raises** :class:`~bluedit.errors.InputError` for analyses that cannot be carried out, before anything is computed."""
    for task in plan.analyses:
        if task.entry.analysis not in (*ANALYSES, TABLES):
            raise RecipeError(
                f"the recipe {plan.name}: {did_you_mean(task.entry.analysis, (*ANALYSES, TABLES), what='analysis')}"
            )
        if task.entry.analysis != TABLES:
            _question(task).cases()


def carry_out(
    plan: Plan,
    folder: Path,
    options: Options = Options(),  # noqa: B008 (frozen)
    *,
    progress: Progress = silent,
    ended: Callable[[AnalysisTask, str | None], object] = lambda *_: None,
) -> list[Analysed]:
    """Carry out the analyses of a plan whose runs are done. One that fails does not stop the others.

    **Arguments**

    - `folder`: that of the plan's results. Complete analyses are read, not made again.
    - `ended`: called after each, with why it failed, or None.
    """
    found: list[Analysed] = []
    loaded: dict[str, EditableModel] = {}
    values = folder / "analyses" / "values"
    for task in plan.analyses:
        problem = None
        try:
            place = folder / "analyses" / task.name
            if task.entry.analysis == TABLES:
                _tables(plan, folder, place)
            else:
                model = _model(task, options, loaded, progress)
                result = _question(task).answer(model, place, values=values, progress=progress)
                save_figure(result, place, task.entry.analysis)
        except OSError as error:
            if not isinstance(error, BlueditError):
                raise  # a disk that is full is full for all
            problem = str(error)
        except BlueditError as error:
            problem = str(error)
        found.append(Analysed(task, problem))
        ended(task, problem)
    if all(one.problem is None for one in found) and values.is_dir():
        for path in values.glob("*.safetensors"):
            path.unlink()
        values.rmdir()
    return found


def _question(task: AnalysisTask) -> Question:
    entry, model = task.entry, task.model
    return Question(
        analysis=entry.analysis,
        dataset=task.dataset,
        facts=entry.facts,
        method=entry.method,
        layers=entry.layers,
        settings=entry.settings,
        corpus=model.corpus,
        samples=model.samples,
        seed=task.seed,
        batch_size=entry.batch_size,
        prompts=entry.prompts,
        layer=entry.layer,
        text=model.text,
        text_skip=model.text_skip or 0,
        text_tokens=model.text_tokens or _TEXT_TOKENS,
    )


def _model(task: AnalysisTask, options: Options, loaded: dict[str, EditableModel], progress: Progress) -> EditableModel:
    """The model of a task; the one before is let go."""
    name = task.model.model
    if name not in loaded:
        loaded.clear()
        gc.collect()
        progress(f"loading {name}", 0, None)
        loaded[name] = load_model(
            name,
            device=options.device,
            dtype=task.model.dtype,
            module_map=options.module_map,
            trust_remote_code=options.trust_remote_code,
            progress=progress,
        )
    return loaded[name]


def _tables(plan: Plan, folder: Path, place: Path) -> None:
    """Tables 2 to 5 from the plan's own cells; made anew, as they cost nothing."""
    cells = [folder / cell.name for cell in plan.cells if (folder / cell.name / "table.json").is_file()]
    result = paper_tables(cells)
    names = [cell.name for cell in plan.cells]
    with at(place, {"analysis": TABLES, "folders": names}) as kept:
        kept.finish(result)
        write_tables(result, place)
    save_figure(result, place, "gains")
