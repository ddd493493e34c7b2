"""The paper's tables as Markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path

from bluedit.reports.tables import line
from bluedit.reports.text import visible
from bluedit.results import Interval
from bluedit.results.analysis import GainRow, PaperTable, TablesResult
from bluedit.storage.files import atomic_file

__all__ = ["latex", "markdown", "said", "write_tables"]

_SCORES = ("ES", "PS", "NS", "S")
_ESCAPED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    letter: f"\\{letter}" for letter in "&%$#_{}"
}


def write_tables(result: TablesResult, folder: Path) -> list[Path]:
    """Write every table to the folder as `table-NUMBER.md` and `.tex`; their paths."""
    paths: list[Path] = []
    for table in result.tables:
        for suffix, text in ((".md", markdown(table)), (".tex", latex(table))):
            paths.append(folder / f"table-{table.number}{suffix}")
            with atomic_file(paths[-1]) as temporary:
                temporary.write_text(text, encoding="utf-8")
    return paths


def said(table: PaperTable) -> str:
    """The count and the mean gains in a sentence."""
    tally = table.tally
    gains = ", ".join(f"{name} {_signed(gain)}" for name, gain in table.mean_gain.items())
    equal = f", {tally.equal} equal" if tally.equal else ""
    return (
        f"BLUE better in {tally.better} of {tally.cells} cells{equal} (clearly better in {tally.clearly}, clearly worse in "
        f"{tally.clearly_worse}); mean gain in points: {gains}"
    )


def markdown(table: PaperTable) -> str:
    """The table in Markdown: values of both strategies, or the gains (table 3), with 95 % intervals."""
    names = [name for name in _SCORES if any(name in row.own for row in table.rows)]
    head = ("model", "data", "facts", "method", *names)
    rows: list[str] = []
    for row in table.rows:
        about = (row.model, row.dataset, f"{row.edits:,} by {row.batch_size:,}")
        if table.number == 3:
            rows.append(line((*about, _method(row), *(_signed(row.gain.get(name)) for name in names))))
            continue
        rows.append(line((*about, _method(row), *(_value(row.own.get(name)) for name in names))))
        blue = (f"{_value(row.blue.get(name))} ({_difference(row.gain.get(name))})" for name in names)
        rows.append(line(("", "", "", "+ BLUE", *blue)))
    notes = [said(table) + ".", "Brackets: 95 % intervals. Gains are paired over cases; bold: the interval leaves out 0."]
    text = [
        f"# Table {table.number}. {table.title}",
        "",
        line(head),
        line(("---",) * len(head)),
        *rows,
        "",
        "\n".join(notes),
        "",
    ]
    return visible("\n".join(text))


def latex(table: PaperTable) -> str:
    """The table in LaTeX (package booktabs), as wide as a page."""
    names = [name for name in _SCORES if any(name in row.own for row in table.rows)]
    rows: list[str] = []
    for row in table.rows:
        about = f"{_tex(row.model)} & {_tex(row.dataset)} & {_tex(_method(row))}"
        if table.number == 3:
            rows.append(" & ".join([about, *(_tex_gain(row.gain.get(name)) for name in names)]) + r" \\")
            continue
        rows.append(" & ".join([about, *(_tex_value(row.own.get(name)) for name in names)]) + r" \\")
        cells = (f"{_tex_value(row.blue.get(name))} ({_tex_gain(row.gain.get(name), plain=True)})" for name in names)
        rows.append(" & ".join([r" & & \quad + BLUE", *cells]) + r" \\")
    caption = f"{_tex(table.title)}. {_tex(said(table))}. Gains in points, with 95\\,\\% intervals over cases."
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\small",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{lll{'r' * len(names)}}}",
            r"\toprule",
            " & ".join(["model", "data", "method", *names]) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def _method(row: GainRow) -> str:
    return f"{row.method} ({row.note})" if row.note else row.method


def _value(one: Interval | None) -> str:
    return "-" if one is None else f"{one.value:.1f} [{one.low:.1f}, {one.high:.1f}]"


def _signed(one: Interval | None) -> str:
    return "-" if one is None else f"{one.value:+.1f} [{one.low:+.1f}, {one.high:+.1f}]"


def _difference(one: Interval | None) -> str:
    if one is None:
        return "-"
    return f"**{one.value:+.1f}**" if one.low > 0 or one.high < 0 else f"{one.value:+.1f}"


def _tex(text: str) -> str:
    return "".join(_ESCAPED.get(letter, letter) for letter in visible(text))


def _tex_value(one: Interval | None) -> str:
    return "--" if one is None else f"{one.value:.1f} {{\\scriptsize[{one.low:.1f}, {one.high:.1f}]}}"


def _tex_gain(one: Interval | None, *, plain: bool = False) -> str:
    if one is None:
        return "--"
    value = f"{one.value:+.1f}" if plain else f"{one.value:+.1f}\\,[{one.low:+.1f}, {one.high:+.1f}]"
    return rf"$\mathbf{{{value}}}$" if one.low > 0 or one.high < 0 else f"${value}$"
