"""A report as one HTML file that opens by itself: style, script and figures are in it, and nothing is fetched.

A content security policy in the page allows this style and the one script (by its hash), and nothing else: no text from data
or models can run or load anything, even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from bluedit.reports.data import CellView, FailedEdit, ReportData
from bluedit.reports.run_figures import drawings
from bluedit.reports.seeds import over_seeds
from bluedit.reports.tables import short
from bluedit.reports.text import visible

__all__ = ["html_report"]

_SCORES = ("ES", "PS", "NS", "S", "EA", "PA", "NA")
"""The scores that come first, in this order; whatever else was measured follows."""
_WHY = {"preferred": "not preferred", "said": "not said"}


@dataclass(frozen=True)
class Column:
    """A column: its heading, and whether it holds numbers."""

    title: str
    numeric: bool = False
    note: str = ""


@dataclass(frozen=True)
class Field:
    """A cell of a table.

    - `below`: in small letters, such as an interval; `band`: low, value and high in percent, drawn as a line.
    - `sort`: what the column is sorted by; the text where it is None.
    - `kind`: of style: `best`, `better`, `worse`.
    """

    text: str
    below: str = ""
    sort: float | None = None
    band: tuple[float, float, float] | None = None
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """A row; `kind` and `data` are for style and filters."""

    cells: Sequence[Field]
    kind: str = ""
    data: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Grid:
    """A table; `choices`: the filters above it."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    choices: Sequence[Mapping[str, Any]] = ()


def html_report(data: ReportData) -> str:
    """The page."""
    import jinja2
    from markupsafe import Markup

    folder = files("bluedit.reports") / "templates"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    cells = [{"label": cell.label, "drawings": drawings(cell.table or {})} for cell in data.finished]
    page = environment.get_template("report.html.j2").render(
        data=data,
        policy=policy,
        # Both are files of this package, and hold nothing of anybody else's.
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        lead=_lead(data),
        tiles=_tiles(data),
        problems=[cell for cell in data.cells if cell.problem],
        with_text=any("text" in run for cell in data.finished for run in cell.runs),
        results=_results(data),
        seeds=_seeds(data),
        comparisons=_comparisons(data),
        differences=_differences(data),
        cells=cells,
        failures=_failures(data),
        recorded=any(cell.cases for cell in data.finished),
        protocols=_protocols(data),
        recipes=[
            {"folder": folder, "text": json.dumps(recipe, indent=2, ensure_ascii=False, default=str)}
            for folder, recipe in data.recipes.items()
        ],
    )
    return page.rstrip() + "\n"


# -- the head --------------------------------------------------------------------------------------------------------


def _lead(data: ReportData) -> str:
    def named(values: Sequence[str], what: str) -> str:
        known = list(dict.fromkeys(values))
        return ", ".join(known) if len(known) <= 3 else f"{len(known)} {what}"

    protocols = [run["protocol"] for cell in data.finished for run in cell.runs]
    methods = named([run["method"] for cell in data.finished for run in cell.runs], "methods")
    models = named([one["model"] for one in protocols], "models")
    sets = named([one["dataset"] for one in protocols], "data sets")
    return f"{methods} on {models}; facts of {sets}. {named([_evaluated(one) for one in protocols], 'protocols')}."


def _evaluated(protocol: Mapping[str, Any]) -> str:
    edit = protocol["edit"]
    by = "at once" if edit["batch_size"] >= edit["edits"] else f"in batches of {edit['batch_size']}"
    return f"{edit['edits']:,} edits {by}, scored {edit['evaluated']}"


def _tiles(data: ReportData) -> list[dict[str, str]]:
    runs = [(cell, run) for cell in data.finished for run in cell.runs]
    tiles = [
        {"name": "runs", "value": str(len(runs)), "below": f"in {len(data.finished)} cells" if len(data.cells) > 1 else ""}
    ]
    edits = sum(run["protocol"]["edit"]["edits"] for _, run in runs)
    tiles.append({"name": "edits", "value": f"{edits:,}", "below": ""})
    scored = [(run["scores"]["S"]["value"], cell, run) for cell, run in runs if "S" in run["scores"]]
    if scored:
        value, cell, run = max(scored, key=lambda one: one[0])
        below = f"{run['label']}, {cell.label}" if len(data.finished) > 1 else run["label"]
        tiles.append({"name": "highest S", "value": f"{value:.1f}", "below": below})
    compared = [pair["difference"] for cell in data.finished for pair in (cell.table or {})["blue_against_own"]]
    pairs = [difference["S"] for difference in compared if "S" in difference]
    if pairs:
        better = sum(pair["low"] > 0 for pair in pairs)
        worse = sum(pair["high"] < 0 for pair in pairs)
        tiles.append(
            {"name": "BLUE against own, S", "value": f"{better} of {len(pairs)}", "below": f"clearly better; {worse} worse"}
        )
    failed = sum(len(cell.failures) for cell in data.finished)
    if any(cell.cases for cell in data.finished):
        tiles.append({"name": "failed edits", "value": f"{failed:,}", "below": "of all runs together"})
    return tiles


# -- tables ----------------------------------------------------------------------------------------------------------


def _results(data: ReportData) -> Grid:
    runs = [run for cell in data.finished for run in cell.runs]
    names = _ordered(name for run in runs for name in run["scores"])
    with_text = any("text" in run for run in runs)
    several = len(data.finished) > 1
    columns = [Column("run"), *([Column("experiment")] if several else []), *(Column(name, numeric=True) for name in names)]
    if with_text:
        columns += [Column("perplexity", True), Column("KL", True), Column("top-1", True)]
    columns += [Column("drift", True, "the largest ||D|| / ||W|| of a weight"), Column("seconds", True, "that editing took")]
    rows: list[Row] = []
    for cell in data.finished:
        where = [Field(cell.label)] if several else []
        before = (cell.table or {})["before"]
        text = [_plain(before.get("text", {}).get("perplexity")), Field("-"), Field("-")] if with_text else []
        cells = [Field("unedited"), *where, *(_score(before["scores"].get(name)) for name in names), *text]
        rows.append(Row([*cells, Field("-"), Field("-")], "unedited"))
        best = {
            name: max((run["scores"][name]["value"] for run in cell.runs if name in run["scores"]), default=None)
            for name in names
        }
        for run in cell.runs:
            scores = [_score(run["scores"].get(name), best[name]) for name in names]
            rows.append(Row([Field(run["label"]), *where, *scores, *(_text(run) if with_text else []), *_costs(run)]))
    return Grid(columns, rows)


def _seeds(data: ReportData) -> Grid | None:
    means = over_seeds(data)
    names = _ordered(name for one in means for name in one.scores)
    columns = [Column(name) for name in ("run", "model", "data", "edits", "seeds")]
    columns += [Column(name, numeric=True) for name in names]
    rows: list[Row] = []
    for one in means:
        head = [Field(text) for text in (one.label, one.model, one.dataset, one.edited, ", ".join(map(str, one.seeds)))]
        rows.append(Row([*head, *(_plain(one.scores.get(name)) for name in names)]))
    return Grid(columns, rows) if rows else None


def _score(score: Mapping[str, float] | None, best: float | None = None) -> Field:
    if score is None:
        return Field("-")
    value, low, high = score["value"], score["low"], score["high"]
    band = (low, value, high) if 0 <= low <= high <= 100 else None
    return Field(f"{value:.1f}", f"{low:.1f} to {high:.1f}", value, band, kind="best" if value == best else "")


def _plain(estimate: Mapping[str, float] | None, digits: int = 1) -> Field:
    if estimate is None:
        return Field("-")
    value, low, high = (estimate[name] for name in ("value", "low", "high"))
    return Field(f"{value:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}", value)


def _text(run: Mapping[str, Any]) -> list[Field]:
    text = run.get("text", {})
    return [_plain(text.get("perplexity")), _plain(text.get("kl"), 4), _plain(text.get("top1"))]


def _costs(run: Mapping[str, Any]) -> list[Field]:
    drift = max((weight["relative_norm"] for weight in run["drift"].values()), default=None)
    seconds = run["seconds"]["editing"]
    return [Field("-") if drift is None else Field(f"{drift:.2f}", sort=drift), Field(f"{seconds:,.0f}", sort=seconds)]


def _comparisons(data: ReportData) -> Grid | None:
    several = len(data.finished) > 1
    pairs = [(cell, pair) for cell in data.finished for pair in (cell.table or {})["blue_against_own"]]
    names = _ordered(name for _, pair in pairs for name in pair["difference"])
    columns = [Column("method"), *([Column("experiment")] if several else []), Column("against")]
    columns += [*(Column(name, numeric=True) for name in names), Column("cases", numeric=True)]
    rows: list[Row] = []
    for cell, pair in pairs:
        note = f" ({pair['note']})" if pair["note"] else ""
        where = [Field(cell.label)] if several else []
        head = [Field(f"{pair['method']} + BLUE{note}"), *where, Field(pair["strategy"])]
        rows.append(Row([*head, *_changes(pair["difference"], names)]))
    return Grid(columns, rows) if rows else None


def _differences(data: ReportData) -> Grid | None:
    names = _ordered(name for one in data.differences for name in one.scores)
    columns = [Column("run"), Column("in"), Column("against")]
    columns += [*(Column(name, numeric=True) for name in names), Column("cases", numeric=True)]
    rows = [Row([Field(one.label), Field(one.one), Field(one.other), *_changes(one.scores, names)]) for one in data.differences]
    return Grid(columns, rows) if rows else None


def _changes(changes: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> list[Field]:
    """Differences by score, in points, and the number of cases that they are over."""
    count = max((int(change["n"]) for change in changes.values()), default=0)
    return [*(_change(changes.get(name)) for name in names), Field(f"{count:,}", sort=count)]


def _change(change: Mapping[str, float] | None) -> Field:
    if change is None:
        return Field("-")
    value, low, high = change["value"], change["low"], change["high"]
    kind, verdict = ("better", " better") if low > 0 else ("worse", " worse") if high < 0 else ("", "")
    return Field(f"{value:+.1f}", f"{low:+.1f} to {high:+.1f}{verdict}", value, kind=kind)


def _ordered(names: Iterable[str]) -> list[str]:
    """Scores without repetition, those that everybody knows first."""
    found = dict.fromkeys(names)
    return [*(name for name in _SCORES if name in found), *(name for name in found if name not in _SCORES)]


def _failures(data: ReportData) -> Grid:
    several = len(data.finished) > 1
    columns = [Column("run"), *([Column("experiment")] if several else []), Column("prompt"), Column("should say")]
    columns += [
        Column("says instead"),
        Column("said before"),
        Column("why"),
        Column("PS", True),
        Column("NS", True),
        Column("case"),
    ]
    rows: list[Row] = []
    for cell in data.finished:
        rows += [_failure(one, cell, several=several) for one in cell.failures]
    names = ("experiment", "run", "why") if several else ("run", "why")
    choices = [{"title": name, "name": name, "options": list(dict.fromkeys(row.data[name] for row in rows))} for name in names]
    return Grid(columns, rows, choices)


def _failure(one: FailedEdit, cell: CellView, *, several: bool) -> Row:
    where = [Field(cell.label)] if several else []
    said = [Field("-" if text is None else _line(text) or "(nothing)") for text in (one.says, one.said_before)]
    scores = [
        Field(f"{100 * one.outcomes[name]:.0f}", sort=one.outcomes[name]) if name in one.outcomes else Field("-")
        for name in ("PS", "NS")
    ]
    cells = [Field(one.run), *where, Field(_line(one.prompt)), Field(_line(one.target)), *said, Field(_WHY[one.why]), *scores]
    return Row([*cells, Field(one.case)], data={"run": one.run, "why": _WHY[one.why], "experiment": cell.label})


def _protocols(data: ReportData) -> Grid:
    several = len(data.finished) > 1
    columns = [Column("run"), *([Column("experiment")] if several else [])]
    columns += [Column(name) for name in ("model", "data", "edits", "layers", "second moments", "settings", "weights")]
    rows: list[Row] = []
    for cell in data.finished:
        for run in cell.runs:
            tag, edit = run["protocol"], run["protocol"]["edit"]
            settings = ", ".join(f"{name} {short(value)}" for name, value in run["settings"].items())
            model = f"{tag['model']} ({tag['dtype']}{', in a chat' if tag.get('chat') else ''}), seed {tag['seed']}"
            values = (model, f"{tag['dataset']}, {', '.join(tag['scoring'])}", f"{_evaluated(tag)}, {edit['order']}")
            more = (", ".join(map(str, run["layers"])) or "-", edit["corpus"] or "-", settings, tag["model_fingerprint"][:16])
            where = [Field(cell.label)] if several else []
            rows.append(Row([Field(run["label"]), *where, *map(Field, (*values, *more))]))
    return Grid(columns, rows)


def _line(text: str) -> str:
    """A text in one line."""
    return " ".join(text.split())
