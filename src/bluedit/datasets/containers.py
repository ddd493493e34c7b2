"""How rows are cut out of a file: a JSON list, JSON Lines or CSV. Each row knows its place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bluedit.datasets.schemas import PRESETS, fault
from bluedit.errors import DatasetError
from bluedit.storage.parsing import parse_json

__all__ = ["CONTAINERS", "SEPARATORS", "Row", "container_of", "read_text"]


_LARGEST = 2**30
"""Bytes of a file that is read whole; CounterFact with all its texts is 50 millions."""


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


def _jsonl_rows(text: str) -> Iterator[Row]:
    # Not splitlines(): JSON strings may hold the rarer line separators of Unicode.
    lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    for count, (number, line) in enumerate(lines, start=1):
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


SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
CONTAINERS: dict[str, Callable[[str], Iterator[Row]]] = {"json": _json_rows, "jsonl": _jsonl_rows, "csv": _csv_rows}


def container_of(source: str, text: str) -> str:
    """The container a file's suffix names, or else the one its first character opens."""
    suffix = Path(source).suffix.lower().removeprefix(".").replace("ndjson", "jsonl")
    if suffix in CONTAINERS:
        return suffix
    return {"[": "json", "{": "jsonl"}.get(text.lstrip()[0], "csv")


def read_text(source: str) -> str:
    path = Path(source)
    try:
        if "\0" in source:
            raise DatasetError(source, ["is not a file name: it contains a NUL character"])
        if path.is_dir():
            raise DatasetError(source, ["is a folder; name a file in it"])
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)  # not its size: that of a pipe or a device is 0
        if len(content) > _LARGEST:
            raise DatasetError(source, [f"is larger than {_LARGEST >> 20:,} MiB; cut it into several files"])
    except FileNotFoundError:
        raise DatasetError(source, ["there is no such file; check the path"]) from None
    except OSError as error:
        raise DatasetError(source, [f"cannot be read: {error.strerror}"]) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(source, [f"line {line}: is not UTF-8 text; save the file in that encoding"]) from error
    if not text.strip():
        raise DatasetError(source, ["is empty; it should hold one record per edit"])
    return text
