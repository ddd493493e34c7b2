"""Writing that loses nothing: to a temporary name first, renamed when it is whole.

*What a kill leaves.* A file or folder is written under a temporary name next to its place, flushed to the disk, and takes its
place in one rename; an older one is exchanged for it in one step where the system can (Linux). What a killed process left
under temporary names is removed by the next one that writes the same output.

*What is replaced.* Only an earlier output of the same kind, and only if nothing else is in it; see :class:`OutputKind`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import zlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from bluedit.errors import InputError

__all__ = [
    "OutputKind",
    "atomic_file",
    "atomic_folder",
    "cache_folder",
    "contents",
    "discard",
    "is_temporary",
    "remove_output",
    "separate",
    "writable_target",
]


@dataclass(frozen=True)
class OutputKind:
    """One kind of output, and how an earlier one is recognised: nothing else is ever replaced.

    - `name`: what messages call it, with its article: `a patch of bluedit's`.
    - `owned`: gives the files that bluedit wrote there, as relative paths; None where the path bears no mark of this kind.
      For an output that is one file any collection says that it bears the mark.
    """

    name: str
    owned: Callable[[Path], Collection[str] | None]

    def check(self, path: Path) -> None:
        """**Raises** :class:`~bluedit.errors.InputError` unless all that is at `path` was written by bluedit as this kind."""
        if path.is_dir() and not any(path.iterdir()):
            return
        owned = self.owned(path)
        if owned is None:
            inside = f" (it holds {_some(contents(path))})" if path.is_dir() else ""
            raise InputError(
                f"{path} is not {self.name}{inside}, and is not replaced; choose another name, or remove it yourself"
            )
        if path.is_dir() and (foreign := [name for name in contents(path) if name not in owned and not is_temporary(name)]):
            raise InputError(
                f"{path} holds files that bluedit did not write ({_some(foreign)}), and is not replaced; move them away, or "
                "choose another name"
            )


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def contents(folder: Path) -> list[str]:
    """Everything in a folder, as sorted relative paths: files, links, and folders that are empty (with a `/` behind)."""
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]  # os.walk does not go into them
        found += [(here / name).relative_to(folder).as_posix() for name in (*files, *links)]
        if not files and not folders and here != folder:
            found.append(f"{here.relative_to(folder).as_posix()}/")
    return sorted(found)


def writable_target(path: Path, *, replace: bool = False, kind: OutputKind | None = None) -> Path:
    """The path, once it is sure that writing there destroys nothing, or with `replace` only an earlier output of `kind`.

    **Raises** :class:`~bluedit.errors.InputError` that says what to do instead.
    """
    if os.path.lexists(path):
        if not replace:
            raise InputError(f"{path} exists already; choose another name, or use --force to replace it")
        (kind or _NOTHING).check(path)
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{path} cannot be written: {parent} is not a writable folder")
    return path


_NOTHING = OutputKind("an empty folder", lambda _: None)


def separate(out: Path, source: Path, *, what: str) -> None:
    """**Raises** :class:`~bluedit.errors.InputError` when an output would lie in the folder it is made from, or around it."""
    there, here = out.resolve(), source.resolve()
    if there == here:
        raise InputError(f"--out is the folder of the {what} itself, which is not overwritten; choose another folder")
    if here in there.parents or there in here.parents:
        raise InputError(f"{out} and the folder of the {what}, {source}, lie in one another; choose a separate folder")


def remove_output(path: Path, kind: OutputKind) -> None:
    """Remove an earlier output, after the check that nothing else is there: in one step, as others see it."""
    kind.check(path)
    aside = _temporary(path.resolve())
    path.resolve().rename(aside)
    _remove(aside)


def discard(path: Path, kind: OutputKind) -> None:
    """Remove what bluedit wrote of an output, and folders that are then empty; what else is in it stays."""
    for name in sorted(kind.owned(path) or (), reverse=True):
        if not name.endswith("/"):
            (path / name).unlink(missing_ok=True)
    for name in [name for name in contents(path) if is_temporary(name)]:
        (path / name).unlink(missing_ok=True)
    for folder, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            Path(folder).rmdir()


@contextlib.contextmanager
def atomic_file(path: Path, *, replace: bool = True) -> Generator[Path]:
    """A temporary path next to `path`; renamed to it when the block ends well, removed when it does not.

    **Raises** :class:`~bluedit.errors.InputError` when something is at `path` at the end, unless `replace` is set.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = _temporary(path)
    # Opened as any other file, so that it has the mode that the user's umask gives; what writes it may change that.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    try:
        with _as_os_error():
            yield temporary
        temporary.chmod(mode)
        _flush(temporary)
        if replace:
            temporary.replace(path)
        else:
            _rename_to_free(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: OutputKind | None = None) -> Generator[Path]:
    """A temporary folder next to `path`; takes its place when the block ends well, is removed when it does not.

    Files in it get the mode of any new file. `replace` is the kind of output that may be at `path`: it is checked again at the
    end, and exchanged for the new one.

    **Raises** :class:`~bluedit.errors.InputError` when something else is at `path` at the end.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = _temporary(path)
    temporary.mkdir()
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        with _as_os_error():
            yield temporary
        for place in (temporary, *temporary.rglob("*")):
            if not place.is_symlink():
                place.chmod(mode if place.is_dir() else mode & 0o666)
                _flush(place)
        if os.path.lexists(path):
            _exchange(temporary, path, replace or _NOTHING)
        else:
            _rename_to_free(temporary, path)
        _flush(path.parent)
    finally:
        _remove(temporary)


# -- renaming --------------------------------------------------------------------------------------------------------


def _exchange(new: Path, path: Path, kind: OutputKind) -> None:
    """Swap `new` with what is at `path`."""
    kind.check(path)
    if _renameat2(new, path, _EXCHANGE):
        return
    # The old one steps aside first: for a moment there is none.
    aside = _temporary(path)
    path.replace(aside)
    try:
        new.replace(path)
    except BaseException:
        aside.replace(path)
        raise
    aside.replace(new)


def _rename_to_free(temporary: Path, path: Path) -> None:
    """Rename to a place where nothing is. What another process put there in the meantime stays."""
    try:
        if _renameat2(temporary, path, _NOREPLACE):
            return
        taken = os.path.lexists(path)
    except FileExistsError:
        taken = True
    if taken:
        raise InputError(f"{path} was written by another process in the meantime, and is not replaced; choose another name")
    temporary.replace(path)


_NOREPLACE, _EXCHANGE = 1, 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Linux' renameat2: rename that replaces nothing, or exchanges two names in one step. False where it does not exist."""
    if sys.platform != "linux":
        return False
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # an old C library
        return False
    here = -100  # AT_FDCWD; the paths are absolute
    if function(here, os.fsencode(source), here, os.fsencode(target), ctypes.c_uint(flag)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:  # a kernel or file system without it
        return False
    raise OSError(number, os.strerror(number), str(target))


# -- temporary names -------------------------------------------------------------------------------------------------

_HOST = f"{zlib.crc32(platform.node().encode()):08x}"
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.tmp")


def is_temporary(name: str) -> bool:
    """Whether a path is, or lies in, what :func:`atomic_file` or :func:`atomic_folder` is writing, or was killed writing."""
    return any(_TEMPORARY.fullmatch(part) for part in name.split("/"))


def _temporary(path: Path) -> Path:
    """A free name next to `path` that tells which process uses it."""
    return path.with_name(f".{path.name[:150]}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _sweep(path: Path) -> None:
    """Remove what killed processes of this machine left of `path` under temporary names."""
    for entry in _entries(path.parent):
        match = _TEMPORARY.fullmatch(entry.name)
        if match and entry.name.startswith(f".{path.name[:150]}.{_HOST}-") and not _alive(int(match[2])):
            _remove(Path(entry.path))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from entries


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the disk hold what was written, so that a rename never comes before what it names."""
    if os.name == "nt":  # where folders cannot be opened, and files only for writing
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # file systems without it
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _as_os_error() -> Generator[None]:
    """safetensors reports a full disk as an error of its own; to everyone else it is the operating system's."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


def cache_folder() -> Path:
    """Where computed statistics are stored: `$BLUEDIT_CACHE`, else `bluedit` in the user's cache folder."""
    chosen = os.environ.get("BLUEDIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bluedit"
