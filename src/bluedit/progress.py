"""What long work tells those who wait for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Protocol

__all__ = ["Progress", "silent", "stage"]


class Progress(Protocol):
    """What a progress display offers: called with what is being done, how much more is done now, and of how much in all.

    Work is nested: what begins while something else is under way is a part of it, and is over when that advances. A task that
    is named again after it was complete begins anew. An advance of 0 begins a task, or corrects its total.
    """

    def __call__(self, task: str, advance: int, total: int | None) -> object: ...


def silent(task: str, advance: int, total: int | None) -> None:
    pass


@contextlib.contextmanager
def stage(progress: Progress, task: str, total: int) -> Generator[Callable[[int], None]]:
    """Work of one name: told when it begins, and when it ends, even if less had to be done than was thought.

    The block gets a function to call with how much more is done.
    """
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(task, more, total)

    progress(task, 0, total)
    yield advance
    if done < total:
        progress(task, 0, done)
