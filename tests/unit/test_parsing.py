"""JSON and TOML from files of others: every failure is one clear `ValueError`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from bluedit.cli.options import read_templates
from bluedit.errors import BlueditError, ModelError, RecipeError, SessionError, SettingsError, StatisticsError
from bluedit.experiments import read_recipe
from bluedit.models import EditableModel
from bluedit.models.layout.maps import read_module_map
from bluedit.models.loading import resolve_model
from bluedit.models.weight_files import read_weight_files
from bluedit.sessions import Session
from bluedit.statistics import read_corpus
from bluedit.storage.parsing import DEEPEST, is_file, parse_json, parse_toml, read_json, read_object
from bluedit.tracing.trace import Trace
from bluedit.tuning import read_tuning

DEEP = "[" * 100_000
"""More than a parser's recursion takes."""
NESTED = "[" * 500 + "]" * 500
"""Less than that, and more than what copies it takes."""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DEEP, "nested more than 100 deep"),
        (NESTED, "nested more than 100 deep"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nested more than 100 deep"),
        ("9" * 5000, "number too long"),
        ('["a", "\\ud800"]', "lone surrogate.*char 7"),
        ('{"\\ud800": 1}', "lone surrogate"),
        (b"\xff", "UTF-8"),
        ("[1,\n2", "line 2"),
    ],
)
def test_json_that_cannot_be_used_is_a_decode_error(text: str | bytes, said: str) -> None:
    with pytest.raises(json.JSONDecodeError, match=said):
        parse_json(text)


def test_json_within_the_limits_is_what_json_says() -> None:
    text = json.dumps({"a": [1.5, None, "é"], "b": {"c": True}})
    assert parse_json(text) == json.loads(text)
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]
    assert parse_json('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
    assert parse_json('"\\ud800"', surrogates=True) == "\ud800"
    assert parse_json("[" * DEEPEST + "]" * DEEPEST)


@pytest.mark.parametrize("text", [f"a = {DEEP}", f"a = {NESTED}", f"a = {'9' * 5000}", "a = "])
def test_toml_that_cannot_be_used_is_a_decode_error(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        parse_toml(text)


def test_files_are_read_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    path.write_text(f"[{' ' * 3_000_000}]")
    assert read_json(path) == []
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        read_json(path, limit=2**20)
    with pytest.raises(ValueError, match="no JSON object"):
        read_object(path)


def test_what_cannot_be_a_name_of_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    assert is_file(str(tmp_path / "there"))
    assert not any(map(is_file, ("x" * 10_000, "a\0b", str(tmp_path), "~no-such-user-here/x")))


def _folder(tmp_path: Path, name: str) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path

    return write


def _file(tmp_path: Path, name: str) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize("text", [DEEP, NESTED, "[]", "\x00", "5"])
def test_nothing_that_reads_json_ends_in_another_error(tmp_path: Path, tiny_gpt2: EditableModel, text: str) -> None:
    readers: list[tuple[type[BlueditError], Callable[[], object]]] = [
        (ModelError, lambda: resolve_model(str(_folder(tmp_path, "config.json")(text)))),
        (ModelError, lambda: read_module_map(_file(tmp_path, "map.json")(text))),
        (SettingsError, lambda: read_tuning(_file(tmp_path, "tuning.json")(text))),
        (BlueditError, lambda: Trace.load(_folder(tmp_path, "trace.json")(text))),
        (RecipeError, lambda: read_recipe(_file(tmp_path, "recipe.toml")(text if text != "[]" else "a = []"))),
        (StatisticsError, lambda: list(read_corpus(f"jsonl:{_file(tmp_path, 'corpus.jsonl')(text)}").documents())),
        (SessionError, lambda: Session.resume(_folder(tmp_path, "session.json")(text), tiny_gpt2)),
    ]
    if text != "[]":
        readers.append((SettingsError, lambda: read_templates(_file(tmp_path, "templates.json")(text))))
    for error, read in readers:
        with pytest.raises(error):
            read()


@pytest.mark.parametrize("text", [DEEP, "[]", '{"weight_map": {"a": 5}}', '{"weight_map": 5}', "{}"])
def test_an_index_of_shards_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    _file(tmp_path, "model.safetensors.index.json")(text)
    assert list(read_weight_files(tmp_path).broken) == ["model.safetensors.index.json"]


@pytest.mark.parametrize(
    "header", [b'{"a":' * 3000, b"[]", b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [1]}}', b"5"]
)
def test_a_header_of_tensors_that_is_none_is_named(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert list(read_weight_files(tmp_path).broken) == ["model.safetensors"]
