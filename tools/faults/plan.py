"""The list of faults, and a copy of the source to plant them in."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LIST", "ROOT", "Copy", "Fault", "problem", "read_faults"]

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("faults.toml")
PACKAGE = Path("src") / "bluedit"


@dataclass(frozen=True)
class Fault:
    """One small change of the source that makes it wrong.

    - `name`: what is wrong then, in words.
    - `file`: relative to the package.
    - `text`, `instead`: what is replaced, and by what. The text occurs in the file exactly once.
    - `tests`: what should notice: files or single tests, relative to `tests/`.
    """

    name: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]


def read_faults(path: Path = LIST) -> list[Fault]:
    """The faults of a list, in its order. **Raises** `ValueError` or `TypeError` where an entry is not a fault."""
    with path.open("rb") as file:
        entries = tomllib.load(file)["fault"]
    return [Fault(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def problem(fault: Fault, package: Path = ROOT / PACKAGE) -> str | None:
    """Why a fault cannot be planted in a package; None where it can."""
    path = package / fault.file
    if not path.is_file():
        return f"there is no file {fault.file}"
    count = path.read_text(encoding="utf-8").count(fault.text)
    if count != 1:
        return f"its text occurs {count} times in {fault.file}"
    if fault.text == fault.instead:
        return "it changes nothing"
    return None


class Copy:
    """A copy of the source in a folder, and the recipes beside it, that faults are planted in one at a time."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "src"
        self._package = folder / PACKAGE
        # With the times of the files, so that what was compiled before counts.
        shutil.copytree(ROOT / "src", self.source)
        shutil.copytree(ROOT / "recipes", folder / "recipes")

    def plant(self, fault: Fault) -> None:
        """Make the source wrong. :meth:`fix` makes it right again."""
        path = self._package / fault.file
        path.write_text(path.read_text(encoding="utf-8").replace(fault.text, fault.instead), encoding="utf-8")

    def fix(self, faults: Sequence[Fault]) -> None:
        """Put the files of these faults back."""
        for file in {fault.file for fault in faults}:
            shutil.copy2(ROOT / PACKAGE / file, self._package / file)
