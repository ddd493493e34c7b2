"""Locks between processes: one output is written by one of them at a time, and one computation is done once.

Locks are files in the cache folder, held through the operating system: a killed process holds none. Where the cache folder
cannot be written, or another machine writes the same output, there is no lock; the renames in
:mod:`bluedit.storage.files` then still leave one whole result.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator
from pathlib import Path

from filelock import FileLock, Timeout

from bluedit.errors import InputError
from bluedit.storage.files import cache_folder

__all__ = ["claimed", "taking_turns"]


@contextlib.contextmanager
def claimed(path: Path) -> Generator[None]:
    """Hold an output for this process while the block runs.

    **Raises** :class:`~bluedit.errors.InputError` at once when another process holds it.
    """
    lock, holder = _lock(path)
    if lock is None:
        yield
        return
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = f" (process {holder})" if holder else ""
        raise InputError(
            f"{path} is being written by another bluedit command{who}; wait until that has ended, or choose another path"
        ) from None
    try:
        Path(lock.lock_file).write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def taking_turns(path: Path, waiting: Callable[[], object] = lambda: None) -> Generator[None]:
    """Let one process after the other run the block for `path`; `waiting` is called when another one is in it."""
    lock, _ = _lock(path)
    if lock is None:
        yield
        return
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock(path: Path) -> tuple[FileLock | None, str]:
    """The lock of a path, and what its holder wrote into it; None where locks are not available."""
    name = hashlib.sha256(os.fsencode(path.expanduser().resolve())).hexdigest()[:32]
    file = cache_folder() / "locks" / f"{name}.lock"
    holder = ""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            holder = file.read_text()
        with file.open("a"):
            pass
    except (OSError, UnicodeDecodeError):
        return None, ""
    return FileLock(file), holder
