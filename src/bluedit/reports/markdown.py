"""A report as Markdown: for reading in a terminal, a pull request, or a wiki."""

from __future__ import annotations

import json
from collections import Counter

from bluedit.reports.data import CellView, Difference, ReportData
from bluedit.reports.tables import line, markdown
from bluedit.reports.text import visible

__all__ = ["markdown_report"]

_SHOWN = 20
"""Failed edits of a run that are listed; all are in its records."""


def markdown_report(data: ReportData) -> str:
    """The tables of all experiments, what failed, the differences between experiments, the recipes."""
    parts = [f"# {data.title}", ""]
    if problems := [cell for cell in data.cells if cell.problem]:
        parts += [
            "Not all is done:",
            "",
            *(f"- {cell.label}: {' '.join((cell.problem or '').split())}" for cell in problems),
            "",
        ]
    for cell in data.finished:
        text = markdown(cell.table or {})
        parts += [f"#{text}" if len(data.cells) > 1 else text.partition("\n")[2].strip("\n") + "\n", *_failures(cell)]
    if data.differences:
        parts += ["## Differences between experiments", "", *map(_difference, data.differences), ""]
    if data.analyses:
        parts += ["## Analyses", "", *(f"- `analyses/{one.name}`: {one.caption}" for one in data.analyses), ""]
    parts += ["## Recipe", ""]
    for folder, recipe in data.recipes.items():
        parts += [f"`{folder}`:", "", "```json", json.dumps(recipe, indent=1, ensure_ascii=False, default=str), "```", ""]
    parts.append(", ".join(f"{name} {version}" for name, version in data.versions.items()) + ".")
    return visible("\n".join(parts) + "\n")


def _failures(cell: CellView) -> list[str]:
    """The first failed edits of each run, with what the model says instead."""
    if not cell.failures:
        return []
    names = ("run", "case", "prompt", "should say", "says")
    rows = ["Failed edits (the first of each run; all are in `records.jsonl`):", "", line(names), line(("---",) * len(names))]
    count: Counter[str] = Counter()
    for one in cell.failures:
        count[one.run] += 1
        if count[one.run] <= _SHOWN:
            cells = (one.run, one.case, one.prompt, one.target, one.says or "")
            rows.append(line([" ".join(text.split()) for text in cells]))
    return [*rows, ""]


def _difference(one: Difference) -> str:
    parts = [
        f"{name} {change['value']:+.1f} [{change['low']:+.1f}, {change['high']:+.1f}]" for name, change in one.scores.items()
    ]
    count = max((int(change["n"]) for change in one.scores.values()), default=0)
    return f"- {one.label}, {one.one} against {one.other} ({count} cases): {'; '.join(parts)}"
