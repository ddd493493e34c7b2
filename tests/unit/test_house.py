"""The house: imports point down, without circles; files and functions are short; every file says what it is.

The imports are read from the source, those inside functions and under `TYPE_CHECKING` included. A name that a package offers
counts as an import of the file it is from, as the package's `__init__.pyi` says.
"""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import bluedit

SOURCE = Path(bluedit.__file__).parent
FILES = {path.relative_to(SOURCE).with_suffix("").as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}

FLOORS = (
    "errors", "renamed", "version", "precision", "progress", "strategies", "facts", "storage", "datasets", "models",
    "statistics", "edits", "editors", "methods", "editing", "sessions", "results", "reports", "evaluation", "tracing", "tuning",
    "doctor", "experiments", "analysis", "cli", "__main__",
)  # fmt: skip
"""From the ground up: a file imports from its own floor and those below."""

LINES, FUNCTION_LINES = 450, 60


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def file_of(module: str) -> str | None:
    """The file of a module by its dotted name, as a key of `FILES`; None where there is no such module."""
    inside = "/".join(module.split(".")[1:])
    return next((name for name in (inside, f"{inside}/__init__".lstrip("/")) if name in FILES), None)


@cache
def offered(package: str) -> dict[str, str]:
    """Which module each name of a package is from, by its stub."""
    file = file_of(package)
    stub = FILES[file].with_suffix(".pyi") if file and file.endswith("__init__") else None
    if stub is None or not stub.exists():
        return {}
    return {
        alias.name: f"{package}.{node.module}"
        for node in ast.walk(tree(stub))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def home(module: str, name: str) -> str:
    """The file that `from module import name` is about."""
    while name in offered(module):
        module = offered(module)[name]
    found = file_of(f"{module}.{name}") or file_of(module)
    assert found is not None, f"nothing is at {module}"
    return found


def imports(path: Path) -> set[str]:
    """The files of bluedit that a file imports from."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bluedit":
            found |= {home(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {file_of(alias.name) or alias.name for alias in node.names if alias.name.split(".")[0] == "bluedit"}
    return found


IMPORTS = {name: imports(path) for name, path in FILES.items()}


def floor(file: str) -> str:
    return file.split("/")[0]


def test_every_room_has_its_floor() -> None:
    assert {floor(file) for file in FILES} - {"__init__"} <= set(FLOORS)


def test_imports_point_down() -> None:
    """Nobody imports the package's front door, either: that holds names of every floor."""
    height = {name: number for number, name in enumerate(FLOORS)}
    upward: list[str] = []
    for file, found in IMPORTS.items():
        for other in found:
            assert other != "__init__", f"{file} imports bluedit itself; import from the module that holds the name"
            if file != "__init__" and height[floor(other)] > height[floor(file)]:
                upward.append(f"{file} imports {other}")
    assert not upward


def test_imports_go_in_no_circle() -> None:
    graph = {file: found - {file} for file, found in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("file", FILES)
def test_files_and_functions_are_short_and_say_what_they_are(file: str) -> None:
    module = tree(FILES[file])
    assert len(FILES[file].read_text(encoding="utf-8").splitlines()) <= LINES
    first = (ast.get_docstring(module) or "").partition("\n")[0]
    assert first.endswith((".", ":")), "the first line says in a sentence what the file is"
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # What stands before the body declares: a command's options are as many as it has.
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"
