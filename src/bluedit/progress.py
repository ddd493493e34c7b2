"""What long work tells those who wait for it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Protocol

__all__ = ["Advance", "Progress", "silent", "stage"]


class Progress(Protocol):
    """What a progress display offers: called with what is being done, how much more is done now, and of how much in all.

    Work is nested: what begins while something else is under way is a part of it, and is over when that advances. A task that
    is named again after it was complete starts again. An advance of 0 begins a task, or corrects its total.
    """

    def __call__(self, task: str, advance: int, total: int | None) -> object: ...


def silent(task: str, advance: int, total: int | None) -> None:
    pass


class Advance(Protocol):
    """What a stage counts with: how much more is done, and of how much, where that was not known before."""

    def __call__(self, more: int, of: int | None = None) -> object: ...


@contextlib.contextmanager
def stage(progress: Progress, task: str, total: int | None = None) -> Generator[Advance]:
    """Work of one name: told when it begins, and when it ends, even if less had to be done than was thought.

    Without a total it begins with the first advance: there may be nothing to do.
    """
    done = 0

    def advance(more: int, of: int | None = None) -> None:
        nonlocal done, total
        done += more
        total = of if of is not None else total
        progress(task, more, total)

    if total is not None:
        progress(task, 0, total)
    yield advance
    if total is not None and done < total:
        progress(task, 0, done)
