"""Collects what folders of experiments hold, and writes their reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bluedit.errors import RecipeError
from bluedit.experiments.campaign import read_matrix
from bluedit.experiments.runner import paired
from bluedit.experiments.store import MATRIX_MARKER, RECIPE_MARKER, read_lines, read_object, read_record
from bluedit.reports.data import ANALYSES, AnalysisView, CellView, Difference, FailedEdit, ReportData, failed_edits
from bluedit.reports.html import html_report
from bluedit.reports.markdown import markdown_report
from bluedit.reports.run_figures import drawings
from bluedit.results import RunResult, Table
from bluedit.storage.files import atomic_file

__all__ = ["gather", "report_text", "write_reports"]

_COMPARED = ("ES", "PS", "NS", "S", "EA", "PA", "NA")


def write_reports(folder: Path) -> list[Path]:
    """Write `report.html`, `report.md` and the figures of an experiment or a matrix into its folder. Returns their paths."""
    data = gather([folder])
    paths = [folder / "report.html", folder / "report.md"]
    for path, kind in zip(paths, ("html", "markdown"), strict=True):
        _write(path, report_text(data, kind))
    for number, cell in enumerate(data.finished, start=1):
        for drawing in drawings(cell.table or {}):
            name = drawing.name if len(data.finished) == 1 else f"{number:02}-{drawing.name}"
            paths.append(folder / "figures" / f"{name}.svg")
            _write(paths[-1], drawing.svg)
    return paths


def report_text(data: ReportData, kind: str) -> str:
    """A report as text, `html` or `markdown`."""
    return html_report(data) if kind == "html" else markdown_report(data)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def gather(folders: Sequence[Path]) -> ReportData:
    """What a report of these folders shows. Of several, runs of one name are compared with those in the first folder.

    **Raises** :class:`~bluedit.errors.RecipeError` where a folder holds no experiment, or none that has an end.
    """
    several = len(folders) > 1
    cells: list[CellView] = []
    recipes: dict[str, Mapping[str, Any]] = {}
    titles: list[str] = []
    versions: dict[str, str] = {}
    for folder in folders:
        title, recipe, found, made_with = _read(folder)
        recipes[str(folder)] = recipe
        titles.append(title)
        versions |= {name: value for name, value in made_with.items() if name not in versions}
        prefix = f"{folder.name}: " if several else ""
        cells += [CellView(one.folder, prefix + one.label, one.table, one.failures, one.cases, one.problem) for one in found]
    if not any(cell.table for cell in cells):
        raise RecipeError(f"{folders[0]} holds no results yet; finish it with bluedit run")
    title = titles[0] if not several else f"{len(folders)} experiments"
    analyses = [one for folder in folders for one in _analyses(folder, f"{folder.name}: " if several else "")]
    return ReportData(title, cells, recipes, versions, _differences(cells) if several else (), analyses)


def _analyses(folder: Path, prefix: str) -> list[AnalysisView]:
    """The complete analyses in a folder, in the order of :data:`~bluedit.reports.data.ANALYSES`."""
    found: list[tuple[int, AnalysisView]] = []
    for path in sorted((folder / "analyses").glob("*/result.json")):
        kind = str(read_object(path, "analysis").get("analysis", "tables"))
        drawn = sorted(path.parent.glob("*.svg"))
        if kind in ANALYSES and drawn:
            text = drawn[0].read_text(encoding="utf-8")
            view = AnalysisView(prefix + path.parent.name, ANALYSES[kind], text[text.index("<svg") :])
            found.append((list(ANALYSES).index(kind), view))
    return [view for _, view in sorted(found, key=lambda one: (one[0], one[1].name))]


def _read(folder: Path) -> tuple[str, Mapping[str, Any], list[CellView], Mapping[str, str]]:
    if (folder / MATRIX_MARKER).is_file():
        matrix = read_matrix(folder)
        views = [
            _cell(folder / cell.name, cell.label, cell.table, _problem(cell.status, cell.message)) for cell in matrix.cells
        ]
        return matrix.title or matrix.name, matrix.recipe, views, matrix.versions
    if not (folder / RECIPE_MARKER).is_file():
        raise RecipeError(f"{folder} is not the folder of an experiment; give one that bluedit run has written")
    path = folder / "table.json"
    if not path.is_file():
        raise RecipeError(f"{folder} holds no results yet; finish it with bluedit run")
    table = Table.read(read_object(path, "table"), path)
    recipe = dict(table.recipe)
    title = str(recipe.get("title") or recipe["name"])
    problem = "; ".join(f"{one.label}: {one.message}" for one in table.failed) or None
    protocol = table.before.protocol
    return title, recipe, [_cell(folder, title, table, problem)], table.versions or protocol.versions


def _problem(status: str, message: str | None) -> str | None:
    return message if status == "failed" else "not run yet" if status == "open" else None


def _cell(folder: Path, label: str, table: Table | None, problem: str | None) -> CellView:
    if table is None:
        return CellView(str(folder), label, None, problem=problem)
    failures: list[FailedEdit] = []
    cases = 0
    for run in table.runs:
        document = run.as_dict()
        records = read_lines(folder / run.name / "records.jsonl") or _from_result(folder, run.name)
        cases += len(records)
        failures += failed_edits(document, records)
    return CellView(str(folder), label, table.as_dict(), failures, cases, problem)


def _from_result(folder: Path, name: str) -> list[dict[str, Any]]:
    """What an earlier version wrote of the cases: outcomes alone."""
    path = folder / name / "result.json"
    if not path.is_file():
        return []
    rows = read_record(path, name, RunResult).outcomes
    unknown = {"batch": None, "prompt": "", "target": "", "true_target": None, "before": {}}
    return [{**unknown, "id": row.id, "after": {"outcomes": row.by_score}} for row in rows]


def _differences(cells: Sequence[CellView]) -> list[Difference]:
    """Every run against the one of the same label that was found first, where both have cases in common."""
    first: dict[tuple[str, ...], tuple[CellView, RunResult]] = {}
    found: list[Difference] = []
    for cell in cells:
        for run in cell.runs:
            protocol, edit = run["protocol"], run["protocol"]["edit"]
            key = (run["label"], protocol["dataset"], str(edit["batch_size"]), str(protocol["seed"]))
            path = Path(cell.folder) / run["name"] / "result.json"
            if not path.is_file():
                continue
            result = read_record(path, run["name"], RunResult)
            if key not in first:
                first[key] = cell, result
            elif first[key][0].folder != cell.folder and (scores := paired(result, first[key][1], _COMPARED)):
                found.append(Difference(run["label"], cell.label, first[key][0].label, scores))
    return found
