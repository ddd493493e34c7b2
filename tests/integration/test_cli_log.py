"""The command line of ledgers, and of single facts in patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run

from bluedit.edits import Ledger, Patch
from bluedit.models import load_model

pytestmark = pytest.mark.filterwarnings("ignore:the change of layer", "ignore:.*leave")


@pytest.fixture
def halves(facts: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The six facts in two files, with ids `a0` to `a2` and `b0` to `b2`."""
    records = json.loads(facts.read_text())
    paths = (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    for path, half in zip(paths, (records[:3], records[3:]), strict=True):
        rows: list[dict[str, str]] = []
        for number, record in enumerate(half):
            rewrite = record["requested_rewrite"]
            row = {"prompt": rewrite["prompt"], "subject": rewrite["subject"], "target": rewrite["target_new"]["str"]}
            rows.append(row | {"id": f"{path.stem}{number}"})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


@pytest.fixture
def ledger(run: Run, saved_tiny_gpt2: Path, tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    assert run("log", "create", path, "--model", saved_tiny_gpt2).code == 0
    return path


def _edit(edit: Run, *arguments: Any) -> dict[str, Any]:
    outcome = edit(*arguments, "--json")
    assert outcome.code == 0, outcome.stderr
    return outcome.document


def test_a_history(
    run: Run, edit: Run, ledger: Path, halves: tuple[Path, Path], saved_tiny_gpt2: Path, tmp_path: Path, corpus_file: Path
) -> None:
    # `--model` given twice: the last one counts.
    assert _edit(edit, "--model", ledger, "--facts", halves[0])["patch"] is None
    second = _edit(edit, "--model", ledger, "--facts", halves[1], "--batch-size", 2, "--out", tmp_path / "second")
    assert second["batches"] == [2, 1]
    document = run("log", "show", ledger, "--json").document
    assert (document["head"], [version["facts"] for version in document["versions"]]) == (3, [0, 3, 5, 6])
    dropped = run("log", "drop", ledger, "a1", "--corpus", f"text:{corpus_file}", "--json").document
    assert (dropped["head"], dropped["versions"][4]["operation"], dropped["versions"][4]["facts"]) == (4, "drop", 5)
    assert run("log", "undo", ledger, 2, "--json").document["head"] == 2
    assert run("log", "redo", ledger, 2, "--json").document["head"] == 4
    assert run("log", "checkout", ledger, 1, "--json").document["head"] == 1
    assert "apply" in run("log", "show", ledger).stdout
    # The head as a checkpoint, and what it says.
    assert run("log", "write", ledger, "--out", tmp_path / "checkpoint").code == 0
    model = load_model(str(saved_tiny_gpt2))
    Ledger.open(ledger).restore(model)
    written = load_model(str(tmp_path / "checkpoint"))
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, written.model.state_dict()[name]), name
    Ledger.open(ledger).restore(model, 0)
    outcome = run("log", "verify", ledger, "--json")
    verdicts = json.loads(outcome.stdout)
    # Two steps on random weights teach nothing.
    assert (outcome.code, verdicts["holding"]) == (1, 0)
    assert [one["id"] for one in verdicts["facts"]] == ["a0", "a1", "a2"]


def test_what_does_not_go_with_a_ledger(run: Run, edit: Run, ledger: Path, halves: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = edit("--facts", halves[0])
    assert (outcome.code, "say where the patch goes: --out" in outcome.stderr) == (2, True)
    outcome = edit("--model", ledger, "--facts", halves[0], "--session", tmp_path / "s")
    assert (outcome.code, "leave --session out" in outcome.stderr) == (2, True)
    outcome = edit("--model", ledger, "--facts", halves[0], "--dtype", "bfloat16")
    assert (outcome.code, "leave --dtype out" in outcome.stderr) == (2, True)
    outcome = run("log", "show", tmp_path / "nothing")
    assert (outcome.code, "is not a ledger" in outcome.stderr) == (2, True)
    outcome = run("log", "undo", ledger)
    assert (outcome.code, "cannot be undone" in outcome.stderr) == (2, True)


def test_single_facts_of_patches(
    run: Run, edit: Run, halves: tuple[Path, Path], saved_tiny_gpt2: Path, corpus_file: Path, tmp_path: Path
) -> None:
    one, other, both, less = (tmp_path / name for name in ("one", "other", "both", "less"))
    _edit(edit, "--facts", halves[0], "--out", one)
    _edit(edit, "--facts", halves[1], "--out", other)
    model = ("--model", saved_tiny_gpt2)
    merged = run("patch", "merge", one, other, *model, "--out", both, "--json").document
    assert [fact["id"] for fact in merged["facts"]] == ["a0", "a1", "a2", "b0", "b1", "b2"]
    dropped = run("patch", "drop", both, "a1", "b0", *model, "--out", less, "--json").document
    assert dropped["dropped"] == ["a1", "b0"]
    assert [fact.id for fact in Patch.load(less).facts] == ["a0", "a2", "b1", "b2"]
    difference = run("patch", "diff", both, less, "--json").document
    assert ([fact["id"] for fact in difference["only_first"]], difference["only_second"], difference["both"]) == (
        ["a1", "b0"],
        [],
        4,
    )
    assert all(0 < weight["distance"] < weight["first"] for weight in difference["weights"].values())
    assert "a1" in run("patch", "diff", both, less).stdout
    outcome = run("patch", "verify", less, *model, "--json")
    verdicts = json.loads(outcome.stdout)
    assert (outcome.code, verdicts["holding"], len(verdicts["facts"])) == (1, 0, 4)
    assert all(one["says"] for one in verdicts["facts"])
    # In a checkpoint that holds the patch it is not applied twice.
    assert run("patch", "apply", less, *model, "--out", tmp_path / "checkpoint").code == 0
    again = json.loads(run("patch", "verify", less, "--model", tmp_path / "checkpoint", "--json").stdout)
    assert [one["says"] for one in again["facts"]] == [one["says"] for one in verdicts["facts"]]
    outcome = run("patch", "drop", both, "nobody", *model, "--out", tmp_path / "no")
    assert (outcome.code, "no fact of that id" in outcome.stderr) == (2, True)
    outcome = run("patch", "merge", one, other, *model, "--out", tmp_path / "no", "--prefer", "third")
    assert (outcome.code, "--prefer" in outcome.stderr) == (2, True)


def test_the_gates_of_an_edit(edit: Run, facts: Path, tmp_path: Path, corpus_file: Path, run: Run) -> None:
    out = ("--facts", facts, "--out", tmp_path / "patch")
    plan = edit(*out, "--dry-run", "--batch-size", 4, "--json").document
    assert (plan["facts"], plan["batches"], plan["method"], plan["layers"]) == (6, 2, "memit", [1, 2])
    assert not (tmp_path / "patch").exists()
    assert "nothing was edited" in edit(*out, "--dry-run").stderr
    text = ("--text", f"text:{corpus_file}")
    outcome = edit(*out, *text)
    assert (outcome.code, "--max-damage" in outcome.stderr) == (2, True)
    passed = edit(*out, *text, "--max-damage", 1000, "--json").document
    assert passed["failed"] is None and set(passed["damage"]) == {"specificity", "perplexity", "kl"}
    assert passed["holding"] + len(passed["not_taken"]) == 6
    # A change that is much too large.
    wild = ("--set", "v_lr=50", "--set", "clamp_norm_factor=50", "--set", "lambda=0.001", "--force")
    outcome = edit(*out, *text, *wild, "--max-damage", 0, "--json")
    assert outcome.code == 1 and "the edit did not pass" in outcome.stderr
    failed = json.loads(outcome.stdout)["failed"]
    assert "perplexity of held-out text rose" in failed
    assert Patch.load(tmp_path / "patch").manifest.failed == failed
    assert "FAILED its gates" in run("patch", "show", tmp_path / "patch").stdout
