"""Where an analysis keeps its work: parts as they are done, the result, its figure.

An analysis's folder:

| path | holds |
|---|---|
| `analysis.json` | what was asked for, and the fingerprint of the model's weights |
| `done.jsonl` | while it is under way: a line for every part that is done, so that a killed analysis resumes |
| `values/` | values that were optimised, while it is under way (elsewhere with `--values`) |
| `result.json` | the result, once it is complete |
| `NAME.pdf`, `NAME.png`, `NAME.svg` | the figure |
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bluedit.errors import DamagedFileError, InputError
from bluedit.progress import Progress, silent
from bluedit.results import Record
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.files import OutputKind, contents
from bluedit.storage.resumable import Journal, earlier_work, workplace

__all__ = ["ANALYSIS", "Place", "at"]

_MARKER, _RESULT, _DONE = "analysis.json", "result.json", "done.jsonl"
_KIND = "analysis"
_WRITTEN = re.compile(
    r"(analysis|result)\.json|done\.jsonl|table-\d\.(md|tex)|[a-z-]+\.(pdf|png|svg)|values/([0-9a-f]{32}\.safetensors)?"
)

R = TypeVar("R", bound=Record)


@dataclass
class Place:
    """A folder that is claimed for one analysis, or nowhere: then nothing is kept."""

    folder: Path | None = None
    _memory: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def each(
        self, keys: Sequence[str], task: str, compute: Callable[[str], Mapping[str, Any]], progress: Progress = silent
    ) -> dict[str, Mapping[str, Any]]:
        """The part of every key: what is done already as it was kept, the others computed now, and kept one by one."""
        journal = Journal(self.folder / _DONE) if self.folder else None
        if journal and not self._memory:
            try:
                self._memory = {record["part"]: record["found"] for record in journal.records()}
            except (DamagedFileError, KeyError, ValueError) as error:
                raise InputError(f"{journal.path} cannot be read ({error}); remove it, and analyse again") from error
        progress(task, sum(key in self._memory for key in keys), len(keys))
        for key in keys:
            if key not in self._memory:
                self._memory[key] = compute(key)
                if journal:
                    journal.append({"part": key, "found": self._memory[key]})
                progress(task, 1, len(keys))
        return {key: self._memory[key] for key in keys}

    def finished(self, kind: type[R]) -> R | None:
        """The complete result that is here; None where there is none yet."""
        if self.folder is None or not (self.folder / _RESULT).is_file():
            return None
        path = self.folder / _RESULT
        try:
            return kind.read(read_document(path, kind=_KIND), path)
        except DamagedFileError as error:
            raise InputError(f"{error}; remove it, and it is computed again") from error

    def finish(self, result: Record) -> None:
        """Keep a complete result, and lose the parts that it is made of."""
        if self.folder is not None:
            write_document(self.folder / _RESULT, result.as_dict(), kind=_KIND)
            Journal(self.folder / _DONE).remove()


@contextlib.contextmanager
def at(folder: Path | None, claim: Mapping[str, Any], *, replace: bool = False) -> Generator[Place]:
    """Hold a folder for an analysis while the block runs.

    **Raises** :class:`~bluedit.errors.InputError` when it holds another analysis, or something else.
    """
    if folder is None:
        yield Place()
        return
    other = InputError(
        f"{folder} holds another analysis, or one of another model, of other facts or settings; choose another folder with "
        "--out, or use --force to discard it"
    )
    with workplace(folder, ANALYSIS, replace=replace):
        marker = folder / _MARKER
        if earlier_work(marker, claim, read=_claim, error=other) is None:
            folder.mkdir(parents=True, exist_ok=True)
            write_document(marker, claim, kind=_KIND)
        yield Place(folder)


def _claim(path: Path) -> dict[str, Any]:
    try:
        return read_document(path, kind=_KIND)
    except DamagedFileError as error:
        raise InputError(f"{error}; remove its folder and analyse again") from error


def _owned(path: Path) -> list[str] | None:
    try:
        document = read_document(path / _MARKER, kind=_KIND)
    except DamagedFileError:
        return None
    return [name for name in contents(path) if _WRITTEN.fullmatch(name)] if "analysis" in document else None


ANALYSIS = OutputKind("an analysis that bluedit wrote", _owned)
"""What is replaced by an analysis where that is asked for."""
