"""`bluedit run`: an experiment from a recipe, or a matrix of them, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluedit.cli.options import AsJson, Device, Force, ModuleMap, Quiet, TrustRemoteCode
from bluedit.errors import SettingsError, excerpt

if TYPE_CHECKING:
    from bluedit.cli.console import Bars, Lane
    from bluedit.experiments import Plan
    from bluedit.experiments.matrix import AnalysisTask
    from bluedit.experiments.worker import Options
    from bluedit.progress import Progress
    from bluedit.results import MatrixTable, Table

__all__ = ["run"]


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe: mini/sequential.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder of results; runs/NAME by default.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="NAME", help="Overrides the recipe's models.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Overrides the recipe's data sets.")] = None,
    corpus: Annotated[str | None, typer.Option("--corpus", help="Overrides the recipe's corpus: text:FILE.")] = None,
    facts: Annotated[int | None, typer.Option("--facts", min=1, help="Edit only the first N facts.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Overrides the recipe's batch size.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="METHOD", help="Run only this method; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Overrides the recipe's seeds.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Let the recipe's table [quick] count: less of everything.")] = False,
    jobs: Annotated[
        str,
        typer.Option(
            "--jobs", "-j", metavar="N", help="Cells of a matrix that run at a time, each in a process. auto: as memory allows."
        ),
    ] = "1",
    device: Device = None,
    force: Force = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Edit and score as a recipe says. If the command is interrupted, run it again: it resumes.

    Writes tables, records, and report.html. Exit code 1 if a run failed; the others are done nevertheless.
    """
    at_a_time = _jobs(jobs)
    from bluedit.cli import console

    console.load()
    from bluedit.experiments import find_recipe, read_plan
    from bluedit.experiments.campaign import Campaign
    from bluedit.experiments.gathering import write_reports
    from bluedit.experiments.jobs import automatic_jobs, cores
    from bluedit.experiments.worker import Options

    changes: dict[str, Any] = {
        "model": model, "dataset": dataset, "corpus": corpus, "facts": facts, "batch_size": batch_size, "seed": seed
    }  # fmt: skip
    plan = read_plan(find_recipe(recipe), {name: value for name, value in changes.items() if value is not None}, quick=quick)
    plan = plan.only(only) if only else plan
    if plan.analyses:
        from bluedit.analysis.recipes import check_analyses

        check_analyses(plan)
    if plan.flat and jobs != "1":
        console.say("the recipe is one cell, whose runs share values: it runs in one process")
    threads = max([cell.recipe.threads or 1 for cell in plan.cells])
    count = 1 if plan.flat else at_a_time or automatic_jobs(plan.cells, threads, device)
    count = min(count, len(plan.cells))
    options = Options(
        device=device,
        module_map=module_map,
        trust_remote_code=trust_remote_code,
        threads=max(1, cores() // count) if count > 1 else None,
    )
    folder = out or Path("runs") / plan.name
    with console.bars() as bars:
        display = _Board(bars, matrix=not plan.flat, parallel=count > 1)
        document = Campaign(plan, folder, options, count, display, force).run()
        analysed = _analyse(plan, folder, options, bars)
        bars("writing reports", 0, None)
        written = write_reports(folder)
    _show(plan, document, as_json)
    console.say(f"written to {folder}; the report: {written[0]}")
    if failed := _failed(document) + analysed:
        for line in failed:
            console.say(f"failed: {line}")
        raise typer.Exit(1)


def _analyse(plan: Plan, folder: Path, options: Options, bars: Bars) -> list[str]:
    """Carry out the analyses of a recipe. Returns a line for each that failed."""
    if not plan.analyses:
        return []
    from bluedit.analysis.recipes import carry_out
    from bluedit.cli import console

    def ended(task: AnalysisTask, problem: str | None) -> None:
        console.say(f"{task.label}: {'done' if problem is None else 'failed'}")

    found = carry_out(plan, folder, options, progress=bars, ended=ended)
    return [f"{one.task.label}: {one.problem}" for one in found if one.problem is not None]


def _jobs(text: str) -> int | None:
    """How many cells at a time; None for as many as fit. **Raises** :class:`~bluedit.errors.SettingsError`."""
    if text == "auto":
        return None
    if not (text.isdecimal() and len(text) < 5 and int(text)):
        raise SettingsError(f"--jobs {excerpt(text)} is not a number of processes; write --jobs 2, or --jobs auto")
    return int(text)


class _Board:
    """Shows a campaign: one bar for all runs, and what is under way, cell by cell where several are."""

    def __init__(self, bars: Bars, *, matrix: bool, parallel: bool) -> None:
        self._bars, self._matrix, self._parallel = bars, matrix, parallel
        self._lanes: dict[str, Lane] = {}
        self._state = ""

    def lane(self, name: str) -> Progress:
        if not self._parallel:
            return self._bars
        return self._lanes.setdefault(name, self._bars.lane(name))

    def overall(self, over: int, total: int, left: float | None) -> None:
        from bluedit.experiments.timing import duration

        remaining = "" if left is None or over == total else f"{duration(left)} left"
        self._state = f"{over} of {total} runs{f', {remaining}' if remaining else ''}"
        self._bars.whole("runs", over, total, remaining)

    def ended(self, name: str, problem: str | None) -> None:
        from bluedit.cli import console

        if name in self._lanes:
            self._lanes.pop(name).end()
        if self._matrix:
            console.say(f"{name}: {'done' if problem is None else 'failed'} ({self._state})")

    def warn(self, text: str) -> None:
        from bluedit.cli import console

        console.warn(text)


def _show(plan: Plan, document: Table | MatrixTable, as_json: bool) -> None:
    from bluedit.cli import console
    from bluedit.reports.tables import columns, comparisons, rows
    from bluedit.results import Table

    if as_json:
        console.emit(document)
        return
    tables = [document] if isinstance(document, Table) else [cell.table for cell in document.cells if cell.table]
    for table in tables:
        content = table.as_dict()
        title = f"{content['recipe'].get('title') or plan.name}: percent [95 % interval]"
        console.show(console.Table(columns(content), rows(content), title=title))
        for line in comparisons(content):
            console.show(line)


def _failed(document: Table | MatrixTable) -> list[str]:
    """A line for each run, or cell of a matrix, that failed."""
    from bluedit.results import Table

    if isinstance(document, Table):
        return [f"{one.label}: {one.message}" for one in document.failed]
    return [f"{cell.label}: {cell.message}" for cell in document.cells if cell.status == "failed"]
