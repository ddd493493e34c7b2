"""Tables: every number whole, on one line, at any width; data shown as it is."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from itertools import islice

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from bluedit.cli import console
from bluedit.cli.tables import Table
from bluedit.reports.text import visible
from bluedit.results.records import Record

WIDTHS = [40, 60, 80, 120, 140]
INTERVALS = {"ES": "96.7 [90.7, 98.9]", "PS": "100.0 [96.3, 100.0]", "NS": "81.25 [70.1, 88.8]", "S": "92.6 [90.4, 94.3]"}


def drawn(renderable: object, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable)
    return file.getvalue().splitlines()


def scores(rows: int, columns: int) -> Table:
    names = [f"{name}{number or ''}" for number in range(columns) for name in INTERVALS][:columns]
    table = Table(["", *names], title="many facts, percent [95 % interval]")
    for row in range(rows):
        cells = (value.replace(".", f".{row}") for value in [*INTERVALS.values()] * columns)
        table.add(f"a label of row {row}, of some length /and/with/a/long/path", *islice(cells, columns))
    return table


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("columns", [1, 2, 4, 7])
@pytest.mark.parametrize("rows", [1, 2, 3, 12])
def test_numbers_are_whole_at_every_width(rows: int, columns: int, width: int) -> None:
    table = scores(rows, columns)
    lines = drawn(table, width)
    assert max(map(cell_len, lines)) <= width
    found = Counter(cell.strip() for line in lines for cell in re.split("[│┃]|  +", line))
    for row in table.rows:
        assert row is not None
        for cell in row[1:]:
            assert found[cell.plain] >= 1, cell.plain
    assert "…" not in "".join(lines)
    text = "".join("".join(lines).split())
    for letters in ("label", "path", "length"):
        assert letters in re.sub("[│┃┏━┳┓┡╇┩└─┴┘]", "", text)


@pytest.mark.parametrize("width", WIDTHS)
def test_text_is_folded_and_the_numbers_in_it_are_not(width: int) -> None:
    table = Table(["setting", "meaning", "more"], text=3)
    table.add("memory", "weights take 13.37 GiB of 141.25 GiB, shrinkage=0.00125, condition 7.6e+03, " * 3, "4096 x 16384")
    lines = drawn(table, width)
    assert max(map(cell_len, lines)) <= width
    for number in ("13.37", "141.25", "shrinkage=0.00125", "7.6e+03", "4096", "16384"):
        assert any(number in line for line in lines)


@pytest.mark.parametrize(("width", "arrangement"), [(140, "rows"), (80, "turned"), (60, "parts")])
def test_the_arrangement_that_fits_is_chosen(width: int, arrangement: str) -> None:
    table = Table(["", *INTERVALS])
    for label in ("before", "MEMIT, residual distributed over layers 0-5", "MEMIT + BLUE, layers 0 and 5"):
        table.add(label, *INTERVALS.values())
    heads = [line for line in drawn(table, width) if line.startswith("┃")]
    assert ("S  " in heads[-1] or " S ┃" in heads[-1]) == (arrangement == "rows")
    assert len([line for line in drawn(table, width) if line.startswith("┏")]) == (2 if arrangement == "parts" else 1)


def test_lines_between_rows_are_kept_where_rows_are() -> None:
    table = Table(["a", "b"], [("one", "1"), None, ("two", "2")])
    assert [line[0] for line in drawn(table, 80)] == list("┏┃┡│├│└")


@pytest.mark.parametrize("width", WIDTHS)
def test_data_are_shown_as_they_are(width: int) -> None:
    hostile = "[/red] [bold]x[/bold] :smile: \x1b]0;title\x07 \x9b31m \u202eabc \udc80 \r\x00"
    for text in (1, 3):
        table = Table([hostile, "b", "c"], title=hostile, text=text)
        table.add(hostile, Text(hostile, style="green"), "3.5")
        file = io.StringIO()
        printed = Console(file=file, width=width, force_terminal=True, color_system=None)
        printed.print(table)
        together = file.getvalue()
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\udc80]", together)
        for part in (
            "[/red]",
            "[bold]x[/bold]",
            ":smile:",
            r"\x1b]0;title\x07",
            r"\x9b31m",
            r"\u202eabc",
            r"\udc80",
            r"\r\x00",
        ):
            assert part in together


def test_visible_leaves_scripts_alone() -> None:
    plain = "naïve 北京 שלום می‌خواهم 👩‍🔬\n\tnext"
    assert visible(plain) == plain


def test_results_remarks_and_documents_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "[/red] :smile: \x1b[2J\x9d \u202e"
    console.show(hostile)
    console.say(hostile)
    console.warn(hostile)
    console.emit(Record.of({"name": hostile, "city": "北京"}))
    out, err = capsys.readouterr()
    for line in (*out.splitlines()[:1], *err.splitlines()):
        assert line.removeprefix("warning: ").rstrip() == r"[/red] :smile: \x1b[2J\x9d \u202e"
    document = out.split("\n", 1)[1]
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", document)
    assert "北京" in document
    assert json.loads(document)["name"] == hostile


def test_a_pipe_is_no_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Piped output is not folded at 80; at a terminal its width counts."""
    monkeypatch.setenv("COLUMNS", "60")
    console.show(Table(["a", "b"], [("a text " * 12, "1")]))
    console.show("words " * 40)
    table, text = capsys.readouterr().out.split("└")
    assert max(map(len, table.splitlines())) > 80
    assert len(text.splitlines()[1]) > 200

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    console.show(Table(["a", "b"], [("a text " * 12, "1")]))
    console.show("words " * 40)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert max(map(len, plain.splitlines())) <= 60
