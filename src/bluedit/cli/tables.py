"""Tables that fit into a terminal without losing a number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from bluedit.reports.text import visible

__all__ = ["Table"]

_READABLE = 20
"""The width from which on text can be read in a column; longer words may be broken."""
_KEY = 0.4
"""Of a width: what the first column may take where it is repeated."""
_BORDERS = 3
"""The width of a column in addition to its cells: a space on either side, and a line."""


class Table:
    """Rows and columns for people: as many columns as fit, or else another arrangement of the same cells.

    Text may be folded. A number is never cut or folded: a table that is too wide is turned on its side, or becomes several
    tables that repeat the first column, or a paragraph per row, whichever is the first that fits.

    **Arguments**

    - `columns`: their names.
    - `rows`: their cells, printed as they are, markup and control characters included; None is a line between rows.
    - `title`: stands above.
    - `text`: how many of the first columns hold text; the others hold numbers, never cut.
    """

    def __init__(
        self, columns: Sequence[str], rows: Iterable[Sequence[str | Text] | None] = (), *, title: str = "", text: int = 1
    ) -> None:
        self.columns = [_literal(name) for name in columns]
        self.rows: list[list[Text] | None] = []
        self.title = _literal(title)
        self.text = text
        for row in rows:
            self.add(*row) if row is not None else self.rows.append(None)

    def add(self, *cells: str | Text) -> None:
        """One more row."""
        assert len(cells) == len(self.columns)
        self.rows.append([_literal(cell) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if self.title.plain:
            yield Text(self.title.plain, style="table.title")
        everything = range(len(self.columns))
        if widths := self._widths(everything, width):
            yield self._grid(everything, widths)
            return
        arrangements = [self, self._turned()] if self.text <= 1 else [self]
        parts = [(table, found) for table in arrangements if (found := table._parts(width))]
        if self.text < len(self.columns) and parts:
            table, columns = min(parts, key=lambda part: len(part[1]))
            for part in columns:
                yield table._grid(part, table._widths(part, width) or [])
        else:
            yield from self._paragraphs(width)

    # -- widths ----------------------------------------------------------------------------------------------

    def _limits(self, column: int) -> tuple[int, int]:
        """The least width that a column can have, and the one at which nothing in it is folded."""
        lines = [line for row in self.rows if row for line in row[column].plain.split("\n")]
        name, widest = self.columns[column].plain, max(map(cell_len, lines), default=0)
        natural = max(widest, cell_len(name), 1)
        least = max(map(_unbroken, name.split()), default=1)
        if column >= self.text:
            return max(least, widest), natural
        words = max((_unbroken(word) for line in lines for word in line.split()), default=1)
        return max(least, words, min(natural, _READABLE)), natural

    def _widths(self, columns: Sequence[int], width: int) -> list[int] | None:
        """The width of these columns side by side; None where they do not fit."""
        limits = [self._limits(column) for column in columns]
        room = width - _BORDERS * len(columns) - 1
        if sum(least for least, _ in limits) > room:
            return None
        widths = [natural for _, natural in limits]
        while sum(widths) > room:
            foldable = [place for place, (least, _) in enumerate(limits) if widths[place] > least]
            widths[max(foldable, key=lambda place: widths[place])] -= 1
        return widths

    def _parts(self, width: int) -> list[list[int]]:
        """Which columns stand side by side, the first one always among them; none where that leaves one too wide."""
        least, natural = self._limits(0)
        key = min(natural, max(least, int(_KEY * width)))
        parts: list[list[int]] = []
        room = 0
        for column in range(1, len(self.columns)):
            needed = self._limits(column)[0] + _BORDERS
            if not parts or needed > room:
                parts.append([0])
                room = width - 1 - key - _BORDERS
                if needed > room:
                    return []
            parts[-1].append(column)
            room -= needed
        return parts

    # -- arrangements ----------------------------------------------------------------------------------------

    def _grid(self, columns: Sequence[int], widths: Sequence[int]) -> RichTable:
        grid = RichTable(header_style="bold")
        for column, width in zip(columns, widths, strict=True):
            justify = "right" if column >= self.text else "left"
            grid.add_column(self.columns[column], width=width, justify=justify, overflow="fold")
        for row in self.rows:
            if row is None:
                grid.add_section()
            else:
                grid.add_row(*(row[column] for column in columns))
        return grid

    def _turned(self) -> Table:
        """The same with a column for each row."""
        rows = [row for row in self.rows if row]
        turned = Table([self.columns[0].plain, *(row[0].plain for row in rows)])
        for column in range(1, len(self.columns)):
            turned.add(self.columns[column], *(row[column] for row in rows))
        return turned

    def _paragraphs(self, width: int) -> Iterable[Text | RichTable]:
        """Every row as its first cell, and below it a line for each of the others."""
        names = min(max(cell_len(name.plain) for name in self.columns[1:]), width // 3) if self.columns[1:] else 0
        for number, row in enumerate(row for row in self.rows if row):
            if number:
                yield Text()
            yield Text(row[0].plain, style="bold")
            grid = RichTable.grid(padding=(0, 1))
            grid.add_column(width=2)
            grid.add_column(width=names, overflow="fold")
            grid.add_column(width=max(width - names - 5, 1), overflow="fold")
            for name, cell in zip(self.columns[1:], row[1:], strict=True):
                grid.add_row("", Text(name.plain, style="dim"), cell)
            yield grid


def _literal(cell: str | Text) -> Text:
    plain, style = (cell, "") if isinstance(cell, str) else (cell.plain, cell.style)
    return Text(visible(plain).replace("\t", " "), style=style)


def _unbroken(word: str) -> int:
    """The width that a word needs: all of it where it is or holds a number, unless it is very long, as paths are."""
    size = cell_len(word)
    number = size <= 2 * _READABLE and "/" not in word and any(letter.isdigit() for letter in word)
    return size if number else min(size, _READABLE)
