"""How rows are cut out of a file: a JSON list, JSON Lines or CSV. Each row knows its place.

JSON Lines are streamed: of a large file no more is read than is asked for. A JSON list and CSV are read whole.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from bluedit.datasets.registry import PRESETS
from bluedit.datasets.schemas import fault
from bluedit.errors import DatasetError
from bluedit.storage.parsing import parse_json

__all__ = ["SEPARATORS", "Row", "open_rows"]

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


_LARGEST = 2**30
"""Bytes of a file or a line that is read whole; CounterFact with all its texts is 50 millions."""
_BEGINNING = 2**16
"""Bytes that are looked at to tell what a file is."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row and where it stands, or why it could not be cut out."""

    place: str
    record: Any = None
    problem: str = ""


def _json_rows(text: str) -> Iterator[Row]:
    try:
        records = parse_json(text, surrogates=True)  # a row is told of those in its texts
    except json.JSONDecodeError as error:
        fix = "name the file .jsonl if it holds one record per line" if error.msg == "Extra data" else "fix it there"
        yield Row(place=f"line {error.lineno}", problem=f"is not JSON: {fault(error)}; {fix}")
        return
    if not isinstance(records, list):
        yield Row(place="line 1", problem="does not open a list; put `[` and `]` around the records")
        return
    for number, record in enumerate(cast("Iterable[Any]", records), start=1):
        yield Row(place=f"record {number}", record=record)


def _jsonl_rows(lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    filled = ((number, line) for number, line in lines if line.strip())
    for count, (number, line) in enumerate(filled, start=1):
        place = f"row {count} (line {number})"
        try:
            row = Row(place=place, record=parse_json(line, surrogates=True))
        except json.JSONDecodeError as error:
            row = Row(place=place, problem=f"is not JSON: {fault(error)}; write one record per line")
        yield row


def _separator(text: str) -> str:
    """What separates the columns of a CSV: a comma, or what its header tells beyond doubt (a spreadsheet's own export)."""
    header = text.lstrip("\r\n").partition("\n")[0]
    if _header(header, ",") & {key for schema in PRESETS.values() for key in schema.required()}:
        return ","
    fitting = (one for one in (";", "\t") if any(_header(header, one).issuperset(row.required()) for row in PRESETS.values()))
    return next(fitting, ",")


def _header(line: str, separator: str) -> set[str]:
    try:
        return {cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])}
    except csv.Error:
        return set()


def _csv_rows(text: str) -> Iterator[Row]:
    separator = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    header: list[str] = []
    count = 0
    while True:
        line = reader.line_num + 1  # A row may span lines; it is named by its first.
        try:
            cells = [cell if cell.strip() else None for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(place=f"line {line}", problem=f"is not CSV: {error}; close its quotes, double those inside")
            return
        if not any(cells):
            continue
        if not header:
            header = [(cell or "").strip() for cell in cells]
            repeated = sorted({name for name in header if name and header.count(name) > 1})
            if repeated:
                yield Row(place=f"line {line}", problem=f"names {', '.join(repeated)} twice; keep one column of each")
                return
            continue
        count += 1
        place = f"row {count} (line {line})"
        if len(cells) > len(header):
            excess = f"has {len(cells)} cells under {len(header)} columns"
            yield Row(place=place, problem=f"{excess}; put quotes around a text that holds {SEPARATORS[separator]}")
        else:
            yield Row(place=place, record=dict(zip(header, cells, strict=False)))


_WHOLE: dict[str, Callable[[str], Iterator[Row]]] = {"json": _json_rows, "csv": _csv_rows}


def open_rows(source: str) -> tuple[str, Iterator[Row]]:
    """The container of a file (`json`, `jsonl` or `csv`), and its rows.

    The suffix names the container, or else the first character that is there. The file is opened once: it may be a pipe.

    **Raises** :class:`~bluedit.errors.DatasetError` for a file that cannot be read, at once or when its rows are.
    """
    rows = _rows(source)
    # The first thing that comes is the container.
    return str(next(rows)), cast("Iterator[Row]", rows)


def _rows(source: str) -> Iterator[str | Row]:
    with _opened(source) as file:
        beginning = file.read(_BEGINNING)
        container = _container(source, beginning)
        if container == "jsonl":
            yield container
            yield from _jsonl_rows(_lines(source, file, beginning))
            return
        content = beginning + file.read(_LARGEST + 1 - len(beginning))  # not its size: that of a pipe or a device is 0
        if len(content) > _LARGEST:
            fix = "write it as JSON Lines, which may be of any size" if container == "json" else "cut it into several files"
            raise DatasetError(source, [f"is larger than {_LARGEST >> 20:,} MiB; {fix}"])
        text = _decoded(source, content)
        if not text.strip():
            raise DatasetError(source, [_EMPTY])
        yield container
        yield from _WHOLE[container](text)


_EMPTY = "is empty; it should hold one record per edit"


@contextmanager
def _opened(source: str) -> Generator[IO[bytes]]:
    path = Path(source)
    try:
        if "\0" in source:
            raise DatasetError(source, ["is not a file name: it contains a NUL character"])
        if path.is_dir():
            raise DatasetError(source, ["is a folder; name a file in it"])
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise DatasetError(source, ["there is no such file; check the path"]) from None
    except OSError as error:
        raise DatasetError(source, [f"cannot be read: {error.strerror}"]) from error


def _container(source: str, beginning: bytes) -> str:
    """The container that a file's suffix names, or else the one that its first character opens."""
    suffix = Path(source).suffix.lower().removeprefix(".").replace("ndjson", "jsonl")
    if suffix in (*_WHOLE, "jsonl"):
        return suffix
    opening = beginning.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    return {b"[": "json", b"{": "jsonl"}.get(opening, "csv")


def _lines(source: str, file: IO[bytes], beginning: bytes) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, one at a time. JSON strings may hold the rarer line separators of Unicode."""
    pending, number, filled = beginning.removeprefix(codecs.BOM_UTF8), 0, False
    while pending:
        *whole, pending = pending.split(b"\n")
        more = file.read(_BEGINNING)
        if not more and pending:
            whole, pending = [*whole, pending], b""
        for line in whole:
            number += 1
            filled |= bool(line.strip())
            yield number, _decoded(source, line, number)
        pending += more
        if len(pending) > _LARGEST:
            raise DatasetError(source, [f"line {number + 1}: is longer than {_LARGEST >> 20:,} MiB; write one record per line"])
    if not filled:
        raise DatasetError(source, [_EMPTY])


def _decoded(source: str, content: bytes, line: int | None = None) -> str:
    try:
        return content.decode("utf-8-sig" if line is None else "utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1 if line is None else line
        raise DatasetError(source, [f"line {line}: is not UTF-8 text; save the file in that encoding"]) from error
