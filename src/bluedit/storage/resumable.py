"""Long work that can be stopped and resumed: claim a place for it, save it as it goes, find it again after a kill.

*A place.* :func:`workplace` holds a folder for one process. :func:`earlier_work` compares the document in it that says what the
work is with the work that is wanted, before anything is computed: a folder is never filled with two kinds of results.

*What is done.* Three ways to keep it, each whole or not at all:

- results that stand for themselves are files of their own (:mod:`bluedit.storage.files`): who resumes looks which are there;
- a :class:`Journal` takes one record after the other;
- a :class:`Checkpoint` holds the state of work that has no results until its end.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bluedit.storage.documents import parse_document
from bluedit.storage.files import OutputKind, atomic_file, remove_output, writable_target
from bluedit.storage.hashes import seal
from bluedit.storage.locks import claimed
from bluedit.storage.tensors import TensorFile, read_tensors, write_tensors

__all__ = ["Checkpoint", "Journal", "State", "earlier_work", "workplace"]

_SAVING_FRACTION = 20
"""Saving may take one part in so many of the time: the state of large work is gigabytes."""


@contextlib.contextmanager
def workplace(path: Path | None, kind: OutputKind, *, replace: bool = False) -> Generator[None]:
    """Hold a folder for this process while the block runs; with `replace` an earlier output of its kind is removed first.

    Without a path there is nothing to hold.

    **Raises** :class:`~bluedit.errors.InputError` when another process holds it, and with `replace` when something else is in
    it.
    """
    with claimed(path) if path is not None else contextlib.nullcontext():
        if path is not None and replace and path.exists():
            remove_output(path, kind)
        yield


def earlier_work(
    marker: Path,
    work: Mapping[str, Any],
    *,
    read: Callable[[Path], Mapping[str, Any]],
    error: Exception,
    claim: Callable[[Mapping[str, Any]], Any] = dict,
) -> Mapping[str, Any] | None:
    """The document of this very work in its folder; None where the folder is free.

    **Arguments**

    - `marker`: the file in the folder that holds the document.
    - `work`: everything that determines the results.
    - `read`: reads the document, with an error of its own where it is damaged.
    - `claim`: what the document says of the work; the whole of it by default.
    - `error`: raised where the folder holds other work.

    **Raises** :class:`~bluedit.errors.InputError` for a folder that holds something else, or cannot be written.
    """
    if not marker.is_file():
        writable_target(marker.parent, replace=True)
        return None
    document = read(marker)
    if claim(document) != work:
        raise error
    return document


@dataclass(frozen=True)
class Journal:
    """Records in a file, one line of JSON each with its hash, added as they are done.

    A number of float64 survives JSON bit for bit. A line that a kill cut off is forgotten when the records are read.
    """

    path: Path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(seal(record), ensure_ascii=False) + "\n")

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, in their order; none where there is no file.

        **Raises** :class:`~bluedit.errors.DamagedFileError` for a line that is not what was written, and `ValueError` for one
        that is not text.
        """
        if not self.path.is_file():
            return
        whole, separator, rest = self.path.read_bytes().rpartition(b"\n")
        if rest:
            with atomic_file(self.path) as temporary:
                temporary.write_bytes(whole + separator)
        for line in whole.decode().split("\n") if whole else ():
            yield parse_document(line, self.path)

    def remove(self) -> None:
        """Remove the file, once what it holds is elsewhere."""
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class State:
    """What a checkpoint holds: tensors, and texts by name."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """The state of unfinished work in one tensor file, which is replaced as a whole.

    `every`: seconds between two savings at least; longer where saving takes long.
    """

    path: Path
    every: float = 60.0

    def save(self, state: State) -> None:
        """Replace the file."""
        write_tensors(self.path, state.tensors, state.metadata, key=self.path.name)

    def load(self) -> TensorFile | None:
        """What was saved last; None where nothing was.

        **Raises** :class:`~bluedit.errors.DamagedFileError` when it is not what was written.
        """
        return read_tensors(self.path, key=self.path.name) if self.path.exists() else None

    @contextlib.contextmanager
    def saving(self, state: Callable[[], State | None]) -> Generator[Callable[[], None]]:
        """A function to call whenever there is something to save: it does so now and then.

        A block that is stopped saves what is done; one that comes to its end removes the file. `state` gives None where there
        is nothing to save, or nothing whole.
        """
        last, took = time.monotonic(), 0.0

        def save(*, now: bool = False) -> None:
            nonlocal last, took
            started = time.monotonic()
            if (now or started - last >= max(self.every, _SAVING_FRACTION * took)) and (found := state()) is not None:
                self.save(found)
                last = time.monotonic()
                took = last - started

        try:
            yield save
        except BaseException:
            # Ctrl-C, or a data set that is out of reach all of a sudden: what is done is done.
            save(now=True)
            raise
        self.path.unlink(missing_ok=True)
