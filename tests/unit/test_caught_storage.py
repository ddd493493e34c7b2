"""A file takes its place in one step, once the disk holds it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bluedit.storage.files import atomic_file


def test_who_has_the_old_file_open_reads_on_in_it(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with path.open() as reader:
        with atomic_file(path) as temporary:
            temporary.write_text("new")
            written = temporary.stat().st_ino
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_ino == written, "the file that was written took the place, and not a copy of it"


@pytest.mark.parametrize("replace", [True, False])
def test_the_disk_holds_a_file_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool) -> None:
    path = tmp_path / "result.json"
    flushed: list[tuple[int, bool]] = []
    original = os.fsync

    def look(handle: int) -> None:
        flushed.append((os.fstat(handle).st_ino, path.exists()))
        original(handle)

    monkeypatch.setattr(os, "fsync", look)
    with atomic_file(path, replace=replace) as temporary:
        temporary.write_text("new")
    # The file while it had no name yet, then the folder with the name in it.
    assert flushed == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
