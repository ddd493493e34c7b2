"""JSON documents of ours: written whole, with a hash of their content, which is checked when they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bluedit.errors import DamagedFileError, first_line
from bluedit.storage.files import atomic_file
from bluedit.storage.hashes import check_seal, seal
from bluedit.storage.parsing import parse_json, read_text

__all__ = ["document_text", "parse_document", "parse_object", "read_document", "write_document"]


_KIND = "document"


def write_document(path: Path, document: Mapping[str, Any], *, kind: str | None = None) -> None:
    """Write a document with its hash, whole or not at all.

    `kind` says what it is, so that a swapped file is noticed.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(document_text(document if kind is None else {_KIND: kind, **document}), encoding="utf-8")


def document_text(document: Mapping[str, Any]) -> str:
    """The text of a document with its hash."""
    return json.dumps(seal(document), indent=1, ensure_ascii=False) + "\n"


def read_document(path: Path, *, sealed: bool = False, kind: str | None = None) -> dict[str, Any]:
    """Read a document of :func:`write_document`, with the `kind` it was written with.

    Unless it has to be `sealed`, it may be one of an earlier version, without a hash and a kind.

    **Raises** :class:`~bluedit.errors.DamagedFileError` when it is missing, cannot be read, or is not what was written.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise DamagedFileError(path, "is missing" if missing else f"cannot be read: {first_line(error)}") from error
    document = parse_document(text, path, sealed=sealed)
    if document.pop(_KIND, kind) != kind:
        raise DamagedFileError(path, "is another document, put in its place")
    return document


def parse_document(text: str, source: Path, *, sealed: bool = False) -> dict[str, Any]:
    """What :func:`read_document` does, of a text that was read already."""
    return check_seal(parse_object(text, source), source, required=sealed)


def parse_object(text: str, source: Path) -> dict[str, Any]:
    """The JSON object that a text holds.

    **Raises** :class:`~bluedit.errors.DamagedFileError` when it holds none.
    """
    try:
        document = parse_json(text)
    except ValueError as error:
        raise DamagedFileError(source, f"is not JSON: {first_line(error)}") from error
    if not isinstance(document, dict):
        raise DamagedFileError(source, "does not hold a JSON object")
    return document
