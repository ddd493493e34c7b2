"""`bluedit doctor` as users meet it: a checklist or one document on standard output, and an exit code that says the verdict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import Run

from bluedit.cli import edit as edit_command


def test_checklist_for_people(run: Run) -> None:
    outcome = run("doctor", "gpt2-mini")
    assert outcome.code == 0
    assert "gpt2-mini can be edited" in outcome.stdout
    for name in ("configuration", "architecture", "weights", "tokenizer", "layers", "corpus", "settings", "memory", "time"):
        assert name in outcome.stdout
    assert "problem" not in outcome.stdout
    assert outcome.stderr == ""


def test_document_for_machines(run: Run, saved_tiny_gpt2: Path) -> None:
    document = run("doctor", saved_tiny_gpt2, "--layers", "1,2", "--method", "alphaedit", "--json").document
    assert document["model"] == str(saved_tiny_gpt2)
    assert document["editable"] is True
    for check in document["checks"]:
        assert set(check) == {"name", "status", "message", "details"}
        assert check["status"] in ("ok", "warning")
    checks = {check["name"]: check for check in document["checks"]}
    assert checks["memory"]["details"]["bytes"]["initial"] > 0
    assert checks["time"]["details"]["seconds_per_fact"] > 0


def test_problems_end_with_exit_code_2(run: Run, saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    """A folder with only a configuration: everything that is missing is named at once."""
    shutil.copy(saved_tiny_gpt2 / "config.json", tmp_path)
    outcome = run("doctor", tmp_path)
    assert outcome.code == 2
    assert "cannot be edited as it is" in outcome.stdout
    outcome = run("doctor", tmp_path, "--json")
    assert outcome.code == 2
    document = json.loads(outcome.stdout)
    assert document["editable"] is False
    assert [check["name"] for check in document["checks"] if check["status"] == "problem"] == ["weights", "tokenizer"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "9"), "layer 9 is not in this model"),
        (("--method", "memitt"), "Did you mean 'memit'"),
        (("--dtype", "int4"), "unknown dtype"),
    ],
)
def test_bad_options_are_said_in_one_line(run: Run, saved_tiny_gpt2: Path, arguments: tuple[str, str], message: str) -> None:
    outcome = run("doctor", saved_tiny_gpt2, *arguments)
    assert outcome.code == 2
    assert outcome.stdout == ""
    assert message in outcome.stderr


def test_edit_says_the_plan_of_a_large_model(edit: Run, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = edit("--facts", facts, "--out", tmp_path / "one", "--limit", 1)
    assert "memory:" not in quiet.stderr
    monkeypatch.setattr(edit_command, "_LARGE", 0)
    outcome = edit("--facts", facts, "--out", tmp_path / "two", "--limit", 1, "--json")
    assert outcome.document["patch"]
    assert "memory: about" in outcome.stderr
    assert "inverse metrics" in outcome.stderr


def test_edit_refuses_quantised_weights_before_loading_them(
    run: Run, saved_tiny_gpt2: Path, corpus_file: Path, facts: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved_tiny_gpt2, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    common = ("--facts", facts, "--out", tmp_path / "patch", "--layers", "1", "--corpus", f"text:{corpus_file}")
    outcome = run("edit", "--model", folder, *common)
    assert outcome.code == 2
    assert "quantised (gptq, 4 bits)" in outcome.stderr
    assert "quantise the result again" in outcome.stderr
