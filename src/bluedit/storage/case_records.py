"""The file that `bluedit evaluate --records` writes: JSON Lines, one case each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bluedit.storage.files import OutputKind, atomic_file
from bluedit.storage.parsing import parse_json

__all__ = ["CASE_RECORDS", "write_case_records"]

_LONGEST = 2**24
"""Characters of a line that is looked at to recognise a file."""


def _owned(path: Path) -> list[str] | None:
    try:
        with path.open(encoding="utf-8") as file:
            record: Any = parse_json(file.readline(_LONGEST))
    except (OSError, ValueError):
        return None
    return [""] if isinstance(record, dict) and {"id", "prompt", "target", "after"} <= set(record) else None


CASE_RECORDS = OutputKind("a file of case records that bluedit wrote", _owned)


def write_case_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON line for every record; the file appears whole or not at all."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
