"""Records are written as they were given, and the committed schema is theirs."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import undocumented
from pydantic import ValidationError

from bluedit.errors import DamagedFileError
from bluedit.evaluation import Estimate, Scores
from bluedit.evaluation.scoring import tally
from bluedit.results import Before, Interval, ProtocolTag, RunResult
from bluedit.results.commands import GetResult, SessionShowResult, SessionUndoResult
from bluedit.results.schema import DOCUMENTS, schema
from bluedit.tuning.file import Tuning

ROOT = Path(__file__).parents[2]
TAG = {
    "dataset": "edits:facts.jsonl",
    "cases": ["a", "b"],
    "scoring": ["probability"],
    "model": "gpt2-mini",
    "model_fingerprint": "00ff",
    "dtype": "float32",
    "seed": 0,
    "versions": {"bluedit": "0.1.0"},
}


def made() -> Scores:
    return tally([("a", {"ES": (1.0,), "PS": (1.0, 0.0)}), ("b", {"ES": (0.0,), "PS": (1.0, 1.0)})])


def test_the_committed_schema_is_that_of_the_records() -> None:
    """To renew it: python -m bluedit.results.schema > docs/results-schema.json"""
    assert json.loads((ROOT / "docs" / "results-schema.json").read_text()) == schema()
    assert {one["$ref"].split("/")[-1] for one in schema()["documents"].values()} <= set(schema()["$defs"])


def test_every_command_that_prints_json_has_a_record() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    parts = page.replace("\n### `", "\n## `").split("\n## `")[1:]
    printing = {part.split("`")[0] for part in parts if "`--json`" in part}
    assert printing == {name for name in DOCUMENTS if name.startswith("bluedit ") and "--" not in name}


def test_nothing_heavy_is_imported_for_the_records() -> None:
    command = "import sys, bluedit.results.schema; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "transformers"} & set(ended.stdout.split())


def test_a_record_is_written_as_it_was_given() -> None:
    document = {"scores": made().as_dict(), "protocol": TAG}
    record = Before.of(document)
    assert json.dumps(record.as_dict()) == json.dumps(document), "key by key, digit by digit"
    assert record.scores["PS"].value == 75
    assert not undocumented(record)
    # What is not there stays away, what is null stays null, and what nobody knows is kept.
    tag = ProtocolTag.of({**TAG, "chat": None, "weather": {"sun": [1, 2.0]}})
    assert json.dumps(tag.as_dict()) == json.dumps({**TAG, "chat": None, "weather": {"sun": [1, 2.0]}})
    assert undocumented(tag) == [".weather"]
    assert tag.model_copy(update={"model": "tiny"}).as_dict()["model"] == "tiny"


def test_numbers_that_are_none_are_written_as_before() -> None:
    estimate = Estimate(math.inf, math.nan, 1.0, 3)
    assert json.dumps(Interval.of(estimate.as_dict()).as_dict()) == json.dumps(estimate.as_dict())
    assert json.dumps(estimate.as_dict()) == '{"value": Infinity, "low": NaN, "high": 1.0, "n": 3}'


def test_keys_come_in_the_order_that_commands_print_them_in() -> None:
    state = ["method", "strategy", "layers", "settings", "seed", "corpus", "samples", "dtype", "chat", "batches", "finished"]
    assert list(SessionShowResult.model_fields) == ["session", *state]
    assert list(SessionUndoResult.model_fields) == ["session", "undone", *state]
    assert GetResult.of({"model": "a", "folder": "b", "from": "c"}).as_dict() == {"model": "a", "folder": "b", "from": "c"}
    assert list(DOCUMENTS["bluedit tune"].model_fields) == ["model", "facts_file", "out", *Tuning.model_fields]


def test_a_malformed_document_is_named_in_one_line() -> None:
    path = Path("runs/tiny/before.json")
    with pytest.raises(DamagedFileError) as caught:
        Before.read({"scores": {"ES": {"value": "x", "low": 0, "high": 1, "n": 2}}, "protocol": TAG}, path)
    assert str(caught.value).startswith(f"{path} does not hold what it should: scores.ES.value: Input should be a valid number")
    assert "\n" not in str(caught.value)
    with pytest.raises(DamagedFileError, match="hold what it should: name: Field required"):
        RunResult.read({}, path)
    with pytest.raises(ValidationError):
        Before.of({})
