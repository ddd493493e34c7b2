"""Stored numbers and documents: what was damaged is refused, by the name of its file."""

from __future__ import annotations

import json
import multiprocessing
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bluedit.errors import DamagedFileError, InputError
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.hashes import hash_tensor
from bluedit.storage.locks import claimed, taking_turns
from bluedit.storage.tensors import read_tensors, write_tensors

TENSORS = {
    "weights": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "bits": torch.tensor([1, 255], dtype=torch.uint8),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
}


def test_tensors_come_back_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    digest = write_tensors(path, TENSORS, {"cursor": '{"a": 1}'})
    read = read_tensors(path)
    assert read.digest == digest
    assert read.metadata == {"cursor": '{"a": 1}'}
    assert read.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in TENSORS.items())
    assert all(read.tensors[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


def test_hash_tells_types_shapes_and_bits_apart() -> None:
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.tensor([0.0, 0.0, 0.0, -0.0])]
    assert len({hash_tensor(tensor) for tensor in zeros}) == len(zeros)
    assert hash_tensor(torch.arange(6.0).reshape(2, 3).T) == hash_tensor(torch.arange(6.0).reshape(2, 3).T.contiguous())


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """In the numbers, the hashes, the metadata and the header: read as it was, or not at all."""
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": torch.tensor([1.0, 2.0])}, {"cursor": "7"})
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                read = read_tensors(path)
            except DamagedFileError as error:
                assert str(path) in str(error)
                refused += 1
            else:  # a space in the header's padding, say
                assert read.metadata == {"cursor": "7"}
                assert read.tensors["a"].tolist() == [1.0, 2.0]
    assert refused > 0.9 * 8 * len(whole)


def test_file_without_hashes_is_read_as_such(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "old.safetensors", metadata={"cursor": "7"})
    read = read_tensors(tmp_path / "old.safetensors")
    assert read.digest is None
    assert read.metadata == {"cursor": "7"}


def test_tensor_that_was_left_out_or_added_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, {"a": torch.ones(2), "b": torch.ones(3)})
    size = struct.unpack("<Q", path.read_bytes()[:8])[0]
    metadata = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    for tensors, message in (
        ({"a": torch.ones(2)}, "lacks b"),
        ({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, "holds c"),
    ):
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(DamagedFileError, match=message):
            read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"123", b"\xff" * 64, None])
def test_file_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="is missing" if content is None else "cannot be read"):
        read_tensors(path)


def test_document_comes_back_whatever_its_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    document = {"name": "Ædä 東京", "values": [1, 2.5, 1e-300, None, True], "nested": {"b": 1, "a": 2}}
    write_document(path, document)
    assert read_document(path, sealed=True) == document
    written = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(dict(reversed(written.items()))), encoding="utf-8")
    assert read_document(path, sealed=True) == document


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(seed=8),
        lambda d: d.update(more=1),
        lambda d: d.pop("seed"),
        lambda d: d.update(digest="0" * 32),
        lambda d: d.update(digest=None),
        lambda d: d.update(digest={"a": []}),
        lambda d: d["layers"].append(3),
    ],
)
def test_document_that_was_changed_is_refused(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "a.json"
    write_document(path, {"seed": 7, "layers": [1, 2]})
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(DamagedFileError, match=r"a\.json is damaged: it does not hold what was written"):
        read_document(path, sealed=True)


def test_document_without_seal_is_read_unless_it_has_to_have_one(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"seed": 7}')
    assert read_document(path) == {"seed": 7}
    with pytest.raises(DamagedFileError):
        read_document(path, sealed=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "null", '{"a": 1}{'])
def test_document_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DamagedFileError, match="JSON"):
        read_document(tmp_path / "a.json")


# -- two processes ---------------------------------------------------------------------------------------------------


def _hold(path: Path, holding: Any, release: Any) -> None:
    with claimed(path):
        holding.set()
        release.wait(60)


def test_output_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    holding, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "out", holding, release))
    other.start()
    assert holding.wait(60)
    with (
        pytest.raises(InputError, match=rf"out is being written by another bluedit command \(process {other.pid}\)"),
        claimed(tmp_path / "out"),
    ):
        pytest.fail("both hold it")
    with claimed(tmp_path / "another"):
        pass
    release.set()
    other.join(60)
    with claimed(tmp_path / "out"):
        pass


def test_killed_process_holds_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    holding, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "out", holding, release))
    other.start()
    assert holding.wait(60)
    other.kill()
    other.join(60)
    with claimed(tmp_path / "out"):
        pass


def _append(path: Path, count: int) -> None:
    for _ in range(count):
        with taking_turns(path):
            number = int(path.read_text())
            path.write_text(str(number + 1))


def test_processes_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_append, args=(path, 50)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert path.read_text() == "150"


def test_without_a_place_for_locks_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path / "file" / "cache"))
    with claimed(tmp_path / "out"), taking_turns(tmp_path / "out"):
        pass


def test_document_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    write_document(tmp_path / "before.json", {"scores": {}}, kind="before")
    write_document(tmp_path / "result.json", {"scores": {}}, kind="result")
    assert read_document(tmp_path / "before.json", kind="before") == {"scores": {}}
    (tmp_path / "before.json").replace(tmp_path / "result.json")
    with pytest.raises(DamagedFileError, match="is another document"):
        read_document(tmp_path / "result.json", kind="result")


def test_seal_that_was_emptied_is_refused(tmp_path: Path) -> None:
    """The last of two equal keys counts: a second `digest` would take the first one away."""
    write_document(tmp_path / "a.json", {"seed": 7})
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(text.rstrip().removesuffix("}") + ', "digest": null}')
    with pytest.raises(DamagedFileError, match="its hash differs"):
        read_document(tmp_path / "a.json")


def test_tensor_file_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "one", TENSORS, key="one")
    write_tensors(tmp_path / "two", TENSORS, key="two")
    assert read_tensors(tmp_path / "one", key="one").digest is not None
    (tmp_path / "one").replace(tmp_path / "two")
    with pytest.raises(DamagedFileError, match="is another file"):
        read_tensors(tmp_path / "two", key="two")
