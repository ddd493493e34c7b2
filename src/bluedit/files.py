"""Writing that loses nothing: to a temporary name first, renamed when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

from safetensors import SafetensorError

from bluedit.errors import InputError

__all__ = ["atomic_file", "atomic_folder", "cache_folder", "writable_target"]


def writable_target(path: Path, *, replace: bool = False, marker: str | None = None) -> Path:
    """The path, once it is sure that writing there destroys nothing unless `replace` says so.

    A folder is replaced only when it is empty or holds `marker`, the file that shows it to be an earlier output: a slip
    of the pen after `--force` should not cost a home folder.

    **Raises** :class:`~bluedit.errors.InputError` naming the mend.
    """
    if path.exists() and not replace:
        raise InputError(f"{path} exists already; choose another name, or say --force to replace it")
    if path.is_dir() and not (marker and (path / marker).is_file()) and any(path.iterdir()):
        raise InputError(f"{path} is a folder with other things in it, and is not replaced; choose another name")
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{path} cannot be written: {parent} is not a writable folder")
    return path


@contextlib.contextmanager
def atomic_file(path: Path) -> Generator[Path]:
    """A temporary path beside `path`; renamed to it when the block ends well, removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _as_os_error():
            yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """A temporary folder beside `path`; takes its place when the block ends well, is removed when it does not."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with _as_os_error():
            yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            # A folder cannot be replaced in one step: the old one steps aside first and goes last.
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            try:
                path.replace(old / path.name)
                temporary.replace(path)
            except BaseException:
                if not path.exists() and (old / path.name).exists():
                    (old / path.name).replace(path)
                raise
            finally:
                if path.exists():
                    shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _as_os_error() -> Generator[None]:
    """safetensors reports a full disk as an error of its own; to everyone else it is the operating system's."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def cache_folder() -> Path:
    """Where computed statistics are kept: `$BLUEDIT_CACHE`, else `bluedit` in the user's cache folder."""
    chosen = os.environ.get("BLUEDIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bluedit"
