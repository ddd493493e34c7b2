"""JSON and TOML from files that others wrote: limits on size and nesting, and errors that say where.

A parser of Python's gives up on deep nesting with a RecursionError, and what is nested less deeply breaks whoever copies or
prints it later. Every failure here is a `ValueError` with one line of text, as for any other text that is not JSON.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

__all__ = [
    "DEEPEST",
    "LARGEST",
    "is_file",
    "parse_json",
    "parse_toml",
    "read_json",
    "read_object",
    "read_text",
    "validation_problem",
]

DEEPEST = 100
"""Lists and objects within one another, at most: transformers copies a configuration by recursion."""
LARGEST = 256 * 2**20
"""Bytes of a file that is read whole, at most; data sets and traces of thousands of facts are tens of millions."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_TOO_DEEP = f"lists or objects are nested more than {DEEPEST} deep"


def is_file(name: str) -> bool:
    """Whether there is a file of this name; a text that cannot be a name of one is none."""
    try:
        return Path(name).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL in it, of a user without a home
        return False


def parse_json(text: str | bytes, *, surrogates: bool = False) -> Any:
    """The value that a JSON text holds.

    **Raises** `json.JSONDecodeError`, a `ValueError`, which knows the line: also for a text that is not UTF-8, nested deeper
    than :data:`DEEPEST`, with a number too long to be read, or, unless `surrogates`, with half a character (a lone surrogate,
    which no file or tokenizer takes).
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise json.JSONDecodeError(f"Not UTF-8 text ({error.reason})", "", 0) from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError(_sentence(_TOO_DEEP), text, 0) from None
    except ValueError as error:  # more digits than an int is read from
        raise json.JSONDecodeError("A number too long to be read", text, 0) from error
    half = None if surrogates else _SURROGATE.search(text)
    if problem := _problem(value, whole=half is None):
        raise json.JSONDecodeError(_sentence(problem), text, half.start() if half and problem != _TOO_DEEP else 0)
    return value


def parse_toml(text: str) -> dict[str, Any]:
    """The table that a TOML text holds.

    **Raises** `tomllib.TOMLDecodeError`, a `ValueError`, also for a text nested deeper than :data:`DEEPEST`.
    """
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise tomllib.TOMLDecodeError(_TOO_DEEP) from None
    except ValueError as error:  # more digits than an int is read from
        raise tomllib.TOMLDecodeError("a number is too long to be read") from error
    if problem := _problem(value, whole=True):
        raise tomllib.TOMLDecodeError(problem)
    return value


def read_text(path: Path, limit: int = LARGEST) -> str:
    """The text of a file.

    **Raises** `OSError`, and `ValueError` for a file larger than `limit` bytes or not in UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)  # not its size: that of a pipe or a device is 0
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit / 2**20:,.0f} MiB; it cannot be what it should be")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text ({error.reason} at byte {error.start})") from error


def read_json(path: Path, limit: int = LARGEST) -> Any:
    """The value in a JSON file. **Raises** what :func:`read_text` and :func:`parse_json` do."""
    return parse_json(read_text(path, limit))


def read_object(path: Path, limit: int = LARGEST) -> dict[str, Any]:
    """The object in a JSON file. **Raises** what :func:`read_json` does, and `ValueError` for any other value."""
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object, {...}")
    return cast("dict[str, Any]", value)


def validation_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a document, and where in it, in one line."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


def _sentence(problem: str) -> str:
    return problem[0].upper() + problem[1:]


def _problem(value: Any, *, whole: bool) -> str | None:
    """What makes a parsed value unusable. `whole`: the text had no escapes that can leave half a character."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                members = cast("dict[str, Any]", one)
                inner += members.values()
                if not whole:
                    inner += members
            elif isinstance(one, list):
                inner += cast("list[Any]", one)
            elif not whole and isinstance(one, str) and not _encodable(one):
                return "half of a character (a lone surrogate) is in a text"
        if not inner:
            return None
        level = inner
    return _TOO_DEEP


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
