"""Files: what is written appears whole or not at all, and nothing is destroyed that nobody gave up."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from bluedit.errors import InputError
from bluedit.storage import files
from bluedit.storage.files import (
    OutputKind,
    atomic_file,
    atomic_folder,
    cache_folder,
    contents,
    discard,
    is_temporary,
    separate,
    writable_target,
)


class Stopped(BaseException):
    """Neither an Exception nor caught by anything: as Ctrl-C."""


def _ours(path: Path) -> tuple[str, ...] | None:
    return ("mark", "kept", "stale") if path.is_file() or (path / "mark").is_file() else None


KIND = OutputKind("an output of ours", _ours)


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
    (target / "mark").write_text("ours")
    (target / "stale").write_text("old")
    with atomic_folder(target, replace=KIND) as temporary:
        (temporary / "fresh").write_text("new")
        assert _names(target) == ["mark", "stale"]
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
    (target / "mark").write_text("ours")
    monkeypatch.setattr(files, "_renameat2", lambda *_: False)  # as on systems that cannot exchange names
    rename, calls = os.replace, []

    def failing(source: os.PathLike[str], destination: os.PathLike[str]) -> None:
        calls.append((source, destination))
        if len(calls) == 2:
            raise OSError("no")
        rename(source, destination)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="no"), atomic_folder(target, replace=KIND) as temporary:
        (temporary / "fresh").write_text("new")
    assert _names(tmp_path) == ["out"]
    assert _names(target) == ["mark"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_folder_takes_the_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_renameat2", lambda *_: False)
    target = tmp_path / "out"
    target.write_text("a patch as one file, perhaps")
    with atomic_folder(target, replace=KIND) as temporary:
        (temporary / "fresh").write_text("new")
    assert _names(target) == ["fresh"]
    assert _names(tmp_path) == ["out"]


# -- where to write --------------------------------------------------------------------------------------------------


def test_target_that_exists_needs_to_be_given_up(tmp_path: Path) -> None:
    path = tmp_path / "out"
    assert writable_target(path) == path
    path.mkdir()
    with pytest.raises(InputError, match=r"out exists already; choose another name, or use --force"):
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


# -- what is ours, and what is not ----------------------------------------------------------------------------------


def test_folder_with_foreign_files_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "mark").write_text("ours")
    (target / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"holds files that bluedit did not write \(thesis\.tex\)"):
        writable_target(target, replace=True, kind=KIND)
    assert _names(target) == ["mark", "thesis.tex"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_foreign_file_that_comes_while_the_folder_is_written_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_renameat2", lambda *_: False)
    target = tmp_path / "out"
    target.mkdir()
    (target / "mark").write_text("ours")
    with pytest.raises(InputError, match="thesis"), atomic_folder(target, replace=KIND) as temporary:
        (temporary / "mark").write_text("new")
        (target / "thesis.tex").write_text("mine")
    assert _names(target) == ["mark", "thesis.tex"]
    assert (target / "mark").read_text() == "ours"


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_another_process_wrote_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "_renameat2", lambda *_: False)
    target = tmp_path / "out"
    if kind == "file":
        with pytest.raises(InputError, match="written by another process"), atomic_file(target, replace=False) as temporary:
            temporary.write_text("loser")
            target.write_text("winner")
        assert target.read_text() == "winner"
    else:
        with pytest.raises(InputError, match="not replaced"), atomic_folder(target) as temporary:
            (temporary / "file").write_text("loser")
            target.mkdir()
            (target / "file").write_text("winner")
        assert (target / "file").read_text() == "winner"
    assert _names(tmp_path) == ["out"]


def test_unmarked_folder_or_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "proj").mkdir()
    (tmp_path / "proj" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("x")
    unmarked = OutputKind("an output of ours", lambda _: None)
    for name in ("proj", "file"):
        with pytest.raises(InputError, match=r"is not an output of ours.*, and is not replaced"):
            writable_target(tmp_path / name, replace=True, kind=unmarked)
    assert contents(tmp_path) == ["file", "proj/config.json"]


def test_link_is_written_through(tmp_path: Path) -> None:
    """What a link points to is replaced, and the link stays."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "mark").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link", replace=KIND) as temporary:
        (temporary / "mark").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "mark").read_text() == "new"


def test_contents_name_links_and_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "empty").mkdir(parents=True)
    (tmp_path / "a" / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert contents(tmp_path) == ["a/empty/", "a/file", "loop"]


@pytest.mark.parametrize(("out", "message"), [("model", "is the folder of the model itself"), ("model/out", "in one another"),
                                              (".", "in one another")])  # fmt: skip
def test_output_in_its_source_or_around_it_is_refused(tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=message):
        separate(tmp_path / out, tmp_path / "model", what="model")
    separate(tmp_path / "other", tmp_path / "model", what="model")


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """A child is killed between writing and renaming; what a living process writes is left alone."""
    for write in (atomic_file, atomic_folder):
        process = os.fork()
        if not process:
            with write(tmp_path / "out"):
                os.kill(os.getpid(), 9)
        os.waitpid(process, 0)
    with atomic_file(tmp_path / "out"):  # of this process, alive
        left = _names(tmp_path)
        assert len(left) == 1, "what the killed ones left is gone, ours is there"
        assert is_temporary(left[0])
        with atomic_file(tmp_path / "out") as second:
            second.write_text("x")
        assert _names(tmp_path) == [left[0], "out"]
    assert _names(tmp_path) == ["out"]


def test_no_write_changes_the_permissions_of_what_safetensors_writes(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (tmp_path / "plain").write_text("x")
    with atomic_file(tmp_path / "one.safetensors") as temporary:
        save_file({"a": torch.zeros(1)}, temporary)
    with atomic_folder(tmp_path / "folder") as folder:
        save_file({"a": torch.zeros(1)}, folder / "two.safetensors")
    plain = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("one.safetensors", "folder/two.safetensors")] == [
        plain
    ] * 2


def test_only_what_is_ours_is_discarded(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "sub").mkdir(parents=True)
    for name in ("mark", "stale", "sub/kept"):
        (target / name).write_text("ours")
    kind = OutputKind("an output of ours", lambda _: ("mark", "stale", "sub/kept"))
    (target / "thesis.tex").write_text("mine")
    discard(target, kind)
    assert contents(tmp_path) == ["out/thesis.tex"]
    (target / "thesis.tex").unlink()
    (target / "mark").write_text("ours")
    discard(target, kind)
    assert not target.exists()
