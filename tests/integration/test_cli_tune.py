"""`bluedit tune`, and `bluedit edit --settings` that uses what it finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, Run

from bluedit.edits import Patch
from bluedit.storage.documents import read_document

_FACTS = "world:counterfact:0:5:person"
_QUICK = ("--set", "v_num_grad_steps=12", "--set", "clamp_norm_factor=1.5", "--count", 10, "--limit", 12, "--trials", 2)


@pytest.fixture
def tune(run: Run) -> Run:
    """Runs `bluedit tune` on the embedded model, quickly."""

    def tune(*arguments: Any) -> Outcome:
        return run("tune", "--model", "gpt2-mini", "--facts", _FACTS, *_QUICK, *arguments)

    return tune


def test_every_trial_is_printed_and_the_outcome_is_checked(tune: Run, tmp_path: Path) -> None:
    outcome = tune("--out", tmp_path / "tuning.json")
    assert outcome.code == 0, outcome.stderr
    assert "  1  lambda=300  shrinkage=0.01  v_lr=0.5  ES" in outcome.stderr
    assert "  2  lambda=30  shrinkage=0.01  v_lr=0.5  ES" in outcome.stderr
    for shown in ("memit with strategy boundary", "check: start", "check: chosen", "6 for the search, 4 for validation"):
        assert shown in outcome.stdout
    assert f"edit with: --settings {tmp_path / 'tuning.json'}" in outcome.stderr
    # Read from its file, it says the same.
    assert tune("--out", tmp_path / "tuning.json").stdout == outcome.stdout


def test_json_is_the_tuning_file_and_more(tune: Run, tmp_path: Path) -> None:
    document = tune("--out", tmp_path / "tuning.json", "--json").document
    kept = read_document(tmp_path / "tuning.json", sealed=True)
    assert document == {"model": "gpt2-mini", "facts_file": _FACTS, "out": str(tmp_path / "tuning.json"), **kept}
    assert (kept["method"], kept["strategy"], kept["varied"]) == ("memit", "boundary", ["lambda", "shrinkage", "v_lr"])
    assert kept["complete"]


@pytest.fixture
def edit(run: Run, write_jsonl: Any, world_records: list[dict[str, Any]], tmp_path: Path) -> Run:
    """Runs `bluedit edit` on the embedded model."""
    rows = [
        {"prompt": rewrite["prompt"], "subject": rewrite["subject"], "target": rewrite["target_new"]["str"]}
        for rewrite in (record["requested_rewrite"] for record in world_records[:2])
    ]
    given = ("--model", "gpt2-mini", "--facts", write_jsonl(rows), "--out", tmp_path / "patch", "--force")
    return lambda *arguments: run("edit", *given, *arguments)


def test_edit_takes_settings_and_layers_from_the_file(tune: Run, edit: Run, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    kept = tune("--out", path, "--layers", "1,2,3", "--json").document
    outcome = edit("--settings", path)
    assert outcome.code == 0, outcome.stderr
    manifest = Patch.load(tmp_path / "patch").manifest
    assert manifest.layers == (1, 2, 3)
    assert manifest.settings.items() >= kept["settings"].items()
    assert edit("--settings", path, "--layers", "0-2", "--set", "lambda=7").code == 0
    manifest = Patch.load(tmp_path / "patch").manifest
    assert (manifest.layers, manifest.settings["lambda"]) == ((0, 1, 2), 7)
    assert manifest.settings["v_num_grad_steps"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "rect"), "is for memit with strategy boundary"),
        (("--strategy", "even"), "is for memit with strategy boundary; edit with those, or run `bluedit tune` for memit with"),
    ],
)
def test_settings_for_something_else_are_refused(
    tune: Run, edit: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "tuning.json"
    tune("--out", path, "--trials", 1)
    outcome = edit("--settings", path, *arguments)
    assert (outcome.code, outcome.stderr.count("\n")) == (2, 1)
    assert message in outcome.stderr
    assert not (tmp_path / "patch").exists()


def test_another_search_does_not_overwrite_a_file_unless_told(tune: Run, tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    tune("--out", path, "--trials", 1)
    before = path.read_bytes()
    refused = tune("--out", path)
    assert (refused.code, path.read_bytes()) == (2, before)
    assert "--force" in refused.stderr
    assert tune("--out", path, "--force", "--limit", 5).code == 2
    assert path.read_bytes() == before
    assert tune("--out", path, "--force").code == 0
    assert len(json.loads(path.read_text())["trials"]) == 2


def test_bad_input(run: Run, tune: Run, edit: Run, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"some": "thing"}')
    (tmp_path / "folder").mkdir()
    for outcome, message in (
        (tune("--vary", "speed"), "unknown setting to vary 'speed'"),
        (tune("--set", "lamda=5"), "unknown setting 'lamda'"),
        (tune("--limit", 5), "facts are left to edit"),
        (tune("--trace-facts", "x.json"), "--layers auto"),
        (run("tune", "--model", "gpt2-mini", "--facts", tmp_path / "none.json"), "none.json"),
        (tune("--out", tmp_path / "other.json"), "is not a tuning file"),
        (tune("--out", tmp_path / "other.json" / "tuning.json"), "is not a writable folder"),
        (tune("--out", tmp_path / "folder", "--force"), "is a folder, and a tuning file is one file"),
        (edit("--settings", tmp_path / "none.json"), "none.json is missing"),
        (edit("--settings", tmp_path / "other.json"), "is not a tuning file"),
    ):
        assert outcome.code == 2, (message, outcome.stderr)
        assert message in outcome.stderr
        assert "Traceback" not in outcome.stderr
    assert (tmp_path / "other.json").read_text() == '{"some": "thing"}'
