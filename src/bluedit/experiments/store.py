"""The files of an experiment: read with one clear error, written whole, and recognised when they are to be replaced."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bluedit.errors import DamagedFileError, RecipeError, first_line
from bluedit.results import Record
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.files import OutputKind, atomic_file, contents
from bluedit.storage.hashes import seal
from bluedit.storage.resumable import Journal

__all__ = [
    "EXPERIMENT",
    "MATRIX_MARKER",
    "RECIPE_MARKER",
    "read_lines",
    "read_object",
    "read_record",
    "write_lines",
    "write_object",
]

RECIPE_MARKER = "recipe.json"
"""The file that shows a folder to be an experiment's."""
MATRIX_MARKER = "matrix.json"
"""The file that shows a folder to hold the cells of a matrix."""

_RUN = r"result\.json|records\.jsonl|along\.jsonl|singles\.jsonl|patch\.safetensors"
_SESSION = r"session/(session\.json|[a-z]+-[\d-]+\.safetensors|)"
_REPORTS = r"report\.(html|md)|figures/[^/]+\.svg"
_ANALYSES = (
    r"analyses/(|values/([0-9a-f]{32}\.safetensors)?|[^/]+/(|(analysis|result)\.json|done\.jsonl"
    r"|table-\d\.(md|tex)|[a-z-]+\.(pdf|png|svg)))"
)
_CELL = (
    rf"(recipe|before|table)\.json|table\.md|before\.jsonl|{_REPORTS}|{_ANALYSES}"
    rf"|[^/]+/(|{_RUN}|{_SESSION})|values/[0-9a-f]{{32}}\.safetensors"
)
_WRITTEN = re.compile(_CELL)
_WRITTEN_OF_MATRIX = re.compile(rf"matrix\.json|{_REPORTS}|{_ANALYSES}|cells/(|[^/]+/(|{_CELL}))")

R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: str, record: type[R]) -> R:
    """What a file of the experiment holds. **Raises** :class:`~bluedit.errors.RecipeError` where it is damaged."""
    document = read_object(path, kind)
    try:
        return record.read(document, path)
    except DamagedFileError as error:
        raise _damaged(error) from error


def read_object(path: Path, kind: str) -> dict[str, Any]:
    """The JSON object in a file. **Raises** :class:`~bluedit.errors.RecipeError` where it is damaged."""
    try:
        return read_document(path, kind=kind)
    except DamagedFileError as error:
        raise _damaged(error) from error


def write_object(path: Path, document: Mapping[str, Any], kind: str) -> None:
    """Write a JSON object, whole or not at all."""
    write_document(path, document, kind=kind)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; none where there is no file.

    **Raises** :class:`~bluedit.errors.RecipeError` where it is damaged.
    """
    try:
        return list(Journal(path).records())
    except DamagedFileError as error:
        raise _damaged(error) from error
    except ValueError as error:
        raise _damaged(DamagedFileError(path, f"cannot be read: {first_line(error)}")) from error


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write objects as JSON lines, each with its hash; the file is written whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(seal(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _damaged(error: DamagedFileError) -> RecipeError:
    return RecipeError(f"{error}; remove it, and it is computed again")


def _owned(path: Path) -> list[str] | None:
    for marker, keys, written in (
        (RECIPE_MARKER, {"recipe", "model_fingerprint"}, _WRITTEN),
        (MATRIX_MARKER, {"recipe", "cells"}, _WRITTEN_OF_MATRIX),
    ):
        try:
            document = read_document(path / marker, kind=marker.removesuffix(".json"))
        except DamagedFileError:
            continue
        if keys <= document.keys():
            return [name for name in contents(path) if written.fullmatch(name)]
    return None


EXPERIMENT = OutputKind("an experiment that bluedit ran", _owned)
"""What is replaced by an experiment where that is asked for."""
