"""Files: what is written appears whole or not at all, and nothing is destroyed that nobody gave up."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from bluedit.errors import InputError
from bluedit.files import atomic_file, atomic_folder, cache_folder, writable_target


class Stopped(BaseException):
    """Neither an Exception nor caught by anything: as Ctrl-C."""


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- one file --------------------------------------------------------------------------------------------------------


def test_file_appears_with_its_folders(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "out.json"
    with atomic_file(target) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert _names(target.parent) == ["out.json"]


def test_file_replaces_the_old_one_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert _names(tmp_path) == ["out.json"]


@pytest.mark.parametrize("error", [ValueError, OSError, Stopped])
@pytest.mark.parametrize("old", [None, "old"])
def test_file_that_fails_leaves_things_as_they_were(tmp_path: Path, error: type[BaseException], old: str | None) -> None:
    target = tmp_path / "out.json"
    if old is not None:
        target.write_text(old)
    with pytest.raises(error), atomic_file(target) as temporary:
        temporary.write_text("half of i")
        raise error
    assert _names(tmp_path) == ([] if old is None else ["out.json"])
    assert old is None or target.read_text() == old


def test_file_and_folder_have_the_permissions_of_any_other(tmp_path: Path) -> None:
    """Temporary files are private; what becomes of them is not."""
    (tmp_path / "plain").write_text("x")
    (tmp_path / "plain folder").mkdir()
    with atomic_file(tmp_path / "ours") as temporary:
        temporary.write_text("x")
    with atomic_folder(tmp_path / "our folder"):
        pass
    for ours, plain in (("ours", "plain"), ("our folder", "plain folder")):
        assert stat.S_IMODE((tmp_path / ours).stat().st_mode) == stat.S_IMODE((tmp_path / plain).stat().st_mode)


# -- a folder --------------------------------------------------------------------------------------------------------


def test_folder_appears_with_what_is_in_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "out"
    with atomic_folder(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("whole")
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "whole"
    assert _names(target.parent) == ["out"]


def test_folder_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "stale").write_text("old")
    with atomic_folder(target) as temporary:
        (temporary / "fresh").write_text("new")
        assert _names(target) == ["stale"]
    assert _names(target) == ["fresh"]
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, OSError, Stopped])
@pytest.mark.parametrize("old", [False, True])
def test_folder_that_fails_leaves_things_as_they_were(tmp_path: Path, error: type[BaseException], old: bool) -> None:
    target = tmp_path / "out"
    if old:
        target.mkdir()
        (target / "kept").write_text("old")
    with pytest.raises(error), atomic_folder(target) as temporary:
        (temporary / "half").write_text("half")
        raise error
    assert _names(tmp_path) == (["out"] if old else [])
    assert not old or _names(target) == ["kept"]


def test_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old folder has stepped aside when the last rename fails: it comes back."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "kept").write_text("old")
    rename = os.replace

    def failing(source: os.PathLike[str], destination: os.PathLike[str]) -> None:
        if Path(destination) == target and ".old." not in str(source):
            raise OSError("no")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no"), atomic_folder(target) as temporary:
        (temporary / "fresh").write_text("new")
    assert _names(tmp_path) == ["out"]
    assert _names(target) == ["kept"]


def test_folder_takes_the_place_of_a_file(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("a patch as one file, perhaps")
    with atomic_folder(target) as temporary:
        (temporary / "fresh").write_text("new")
    assert _names(target) == ["fresh"]
    assert _names(tmp_path) == ["out"]


# -- where to write --------------------------------------------------------------------------------------------------


def test_target_that_exists_needs_to_be_given_up(tmp_path: Path) -> None:
    path = tmp_path / "out"
    assert writable_target(path) == path
    path.mkdir()
    with pytest.raises(InputError, match=r"out exists already; choose another name, or say --force"):
        writable_target(path)
    assert writable_target(path, replace=True) == path


def test_target_in_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "out"
    assert writable_target(path) == path
    assert not (tmp_path / "not").exists()


def test_target_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is not a writable folder"):
        writable_target(tmp_path / "file" / "out")


def test_target_in_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, whom no mode stops
    with pytest.raises(InputError, match="is not a writable folder"):
        writable_target(tmp_path / "out")


def test_relative_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_folder(writable_target(Path("out"))) as temporary:
        (temporary / "file").write_text("x")
    with atomic_file(writable_target(Path("single"))) as temporary:
        temporary.write_text("y")
    assert _names(tmp_path) == ["out", "single"]


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path / "ours"))
    assert cache_folder() == tmp_path / "ours"
    monkeypatch.delenv("BLUEDIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "bluedit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "bluedit"
