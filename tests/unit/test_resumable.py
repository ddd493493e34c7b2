"""Long work: a place is claimed for it before anything is computed, what is done is kept, and a kill costs little."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from bluedit.errors import DamagedFileError, InputError
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.files import OutputKind
from bluedit.storage.resumable import Checkpoint, Journal, State, earlier_work, workplace

WORK = {"model": "a", "facts": 3}


def owned(path: Path) -> list[str] | None:
    return ["work.json", "result"] if (path / "work.json").exists() else None


KIND = OutputKind("work of a test", owned)


def find(folder: Path, work: Mapping[str, Any] = WORK) -> Mapping[str, Any] | None:
    return earlier_work(folder / "work.json", work, read=read_document, error=InputError("other work"))


def test_a_free_place_is_anyones_and_a_taken_one_its_owners(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    assert find(folder) is None
    write_document(folder / "work.json", WORK)
    assert find(folder) == WORK
    with pytest.raises(InputError, match="other work"):
        find(folder, WORK | {"facts": 4})


def test_a_document_that_says_more_than_what_the_work_is(tmp_path: Path) -> None:
    write_document(tmp_path / "work.json", {"complete": True, "claim": WORK})
    for work, same in ((WORK, True), (WORK | {"facts": 4}, False)):
        error = InputError("other work")

        def look(work: Mapping[str, Any] = work, error: InputError = error) -> Mapping[str, Any] | None:
            return earlier_work(tmp_path / "work.json", work, read=read_document, error=error, claim=lambda one: one["claim"])

        if same:
            found = look()
            assert found is not None
            assert found["complete"]
        else:
            with pytest.raises(InputError, match="other work"):
                look()


def test_what_is_foreign_is_no_free_place(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(InputError, match="letter"):
        find(tmp_path)


def test_a_workplace_is_held_and_cleared_only_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    write_document(folder / "work.json", WORK)
    with workplace(folder, KIND), pytest.raises(InputError, match="being written by another"), workplace(folder, KIND):
        pytest.fail("two at once")
    with workplace(folder, KIND):
        assert find(folder) == WORK
    (folder / "letter").write_text("dear")
    with pytest.raises(InputError, match="letter"), workplace(folder, KIND, replace=True):
        pytest.fail("a letter was lost")
    (folder / "letter").unlink()
    with workplace(folder, KIND, replace=True):
        assert not folder.exists()
    with workplace(None, KIND, replace=True):
        pass


def test_a_journal_forgets_the_line_that_a_kill_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "done.jsonl")
    assert list(journal.records()) == []
    records = [{"name": "é", "values": [0.1, 1e-300]}, {"name": "b", "values": []}]
    for record in records:
        journal.append(record)
    assert list(journal.records()) == records
    with journal.path.open("a") as file:
        file.write('{"name": "c", "val')
    assert list(journal.records()) == records
    assert journal.path.read_text().endswith("}\n")
    text = journal.path.read_text()
    journal.path.write_text(text.replace("0.1", "0.2"))
    with pytest.raises(DamagedFileError):
        list(journal.records())
    journal.remove()
    journal.remove()
    assert list(journal.records()) == []


def test_a_checkpoint_is_saved_when_it_is_due_and_when_work_is_stopped(tmp_path: Path) -> None:
    checkpoint, done = Checkpoint(tmp_path / "state.safetensors", every=3600), 0

    def state() -> State | None:
        return State({"sum": torch.tensor(float(done))}, {"done": json.dumps(done)}) if done else None

    assert checkpoint.load() is None
    with pytest.raises(KeyboardInterrupt), checkpoint.saving(state):
        raise KeyboardInterrupt
    assert checkpoint.load() is None, "there was nothing to save"
    with pytest.raises(KeyboardInterrupt), checkpoint.saving(state) as save:
        for done in (1, 2, 3):  # noqa: B007 (read by state)
            save()
            assert not checkpoint.path.exists(), "an hour has not passed"
        raise KeyboardInterrupt
    stored = checkpoint.load()
    assert stored is not None
    assert stored.metadata == {"done": "3"}
    assert stored.tensors["sum"].item() == 3
    with Checkpoint(checkpoint.path, every=0).saving(state) as save:
        done = 4
        save()
        again = checkpoint.load()
        assert again is not None
        assert again.metadata == {"done": "4"}
    assert checkpoint.load() is None, "what is done needs no checkpoint"


def test_a_checkpoint_in_the_place_of_another_is_noticed(tmp_path: Path) -> None:
    one = Checkpoint(tmp_path / "one.safetensors")
    one.save(State({"x": torch.zeros(2)}, {}))
    one.path.rename(tmp_path / "two.safetensors")
    with pytest.raises(DamagedFileError, match="put in its place"):
        Checkpoint(tmp_path / "two.safetensors").load()
