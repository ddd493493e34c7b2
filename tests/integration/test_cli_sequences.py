"""The command line of sequences and of what is known: `edit --batch-size --session`, `models`, `methods`, `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run

from bluedit.editors.closed_form import loop
from bluedit.editors.presets import PRESETS
from bluedit.edits import Patch
from bluedit.methods import METHODS
from bluedit.storage.documents import read_document

pytestmark = pytest.mark.filterwarnings("ignore:the change of layer")


def same_factors(one: Path, other: Path) -> bool:
    first, second = Patch.load(one), Patch.load(other)
    return all(
        torch.equal(part, second.changes[name].tensors()[key])
        for name, change in first.changes.items()
        for key, part in change.tensors().items()
    )


def test_a_sequence_makes_one_patch(edit: Run, facts: Path, tmp_path: Path) -> None:
    document = edit("--facts", facts, "--out", tmp_path / "p", "--method", "memit-seq", "--batch-size", 4, "--json").document
    patch = Patch.load(tmp_path / "p")
    assert patch.manifest.batches == (4, 2)
    assert len(document["facts"]) == 6
    assert not same_factors(tmp_path / "p", edited(edit, facts, tmp_path / "at-once", "--method", "memit-seq"))


def edited(edit: Run, facts: Path, out: Path, *options: Any) -> Path:
    outcome = edit("--facts", facts, "--out", out, *options)
    assert outcome.code == 0, outcome.stderr
    return out


def test_a_stopped_sequence_goes_on_from_its_folder(
    run: Run,
    facts: Path,
    templates: Path,
    saved_tiny_gpt2: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = (
        "edit",
        "--model",
        saved_tiny_gpt2,
        "--corpus",
        f"text:{corpus_file}",
        "--templates",
        templates,
        "--layers",
        "1,2",
    )

    def plain(*arguments: Any) -> Any:
        return run(*common, "--set", "v_num_grad_steps=2", *arguments)

    options = (
        "--method",
        "alphaedit",
        "--set",
        "nullspace_threshold=0.5",
        "--set",
        "nullspace_scale=relative",
        "--batch-size",
        2,
    )
    options = (*options, "--set", "L2=2")
    whole = edited(plain, facts, tmp_path / "whole", *options)
    original, calls = loop.edit_batch, iter(range(10))

    def stop(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    folder = ("--session", tmp_path / "session")
    with monkeypatch.context() as stopping:
        stopping.setattr(loop, "edit_batch", stop)
        stopped = plain("--facts", facts, "--out", tmp_path / "p", *options, *folder)
    assert stopped.code == 130
    assert not (tmp_path / "p").exists()
    resumed = edited(plain, facts, tmp_path / "p", *options, *folder)
    assert same_factors(whole, resumed)
    refused = plain("--facts", facts, "--out", tmp_path / "q", *options, "--set", "L2=3", *folder)
    assert refused.code == 2
    assert "holds a session with other settings" in refused.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--session", "x"), "set the number of facts per batch with --batch-size"),
        (("--method", "ft-l", "--strategy", "boundary"), "ft-l trains one weight and has no residual"),
        (("--method", "alphaedit"), "alphaedit does not use the setting 'lambda'"),
        (("--strategy", "blue"), "unknown strategy 'blue'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    edit: Run,
    facts: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
) -> None:
    outcome = edit("--facts", facts, "--out", tmp_path / "p", *options)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert not (tmp_path / "p").exists()


def test_rome_takes_one_fact_at_a_time(
    run: Run,
    facts: Path,
    saved_tiny_gpt2: Path,
    corpus_file: Path,
    tmp_path: Path,
) -> None:
    common = ("edit", "--model", saved_tiny_gpt2, "--corpus", f"text:{corpus_file}", "--facts", facts, "--method", "rome")
    common = (*common, "--layers", "1", "--set", "v_num_grad_steps=2", "--set", "shrinkage=0.1", "--out", tmp_path / "p")
    refused = run(*common)
    assert refused.code == 2
    assert "rome solves for 1 fact at a time, and was given 6; edit them in sequence" in refused.stderr
    assert "--batch-size 1" in refused.stderr
    assert run(*common, "--batch-size", 1).code == 0
    assert Patch.load(tmp_path / "p").manifest.batches == (1,) * 6


def test_models_and_methods_list_what_is_known(run: Run) -> None:
    models = run("models", "--json").document["models"]
    assert [model["name"] for model in models] == [known.name for known in PRESETS]
    assert next(model for model in models if model["name"] == "gpt-j-6b")["boundary"] == [3, 8]
    methods = run("methods", "--json").document["methods"]
    assert {method["name"] for method in methods} >= set(METHODS)
    assert next(method for method in methods if method["name"] == "prune")["settings"]["lambda"] == 15000
    for command in ("models", "methods"):
        table = run(command)
        assert table.code == 0
        assert "alphaedit" in table.stdout


def test_run_refuses_what_is_not_there(run: Run, tmp_path: Path) -> None:
    unknown = run("run", "mini/sequentail")
    assert unknown.code == 2
    assert "Did you mean 'mini/sequential'" in unknown.stderr
    absent = run("run", "mini/sequential", "--only", "rome", "--out", tmp_path / "x")
    assert absent.code == 2
    assert "has no run of this" in absent.stderr
    missing = run("run", "gpt2-xl/memit", "--out", tmp_path / "x")
    assert missing.code == 2
    assert "multi_counterfact.json" in missing.stderr
    assert not (tmp_path / "x").exists()


def test_run_forces_its_own_folder_only(run: Run, tmp_path: Path, saved_tiny_gpt2: Path, corpus_file: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "name = 'r'\nmodel = 'x'\ndataset = 'world:counterfact:0:0:person'\nfacts = 2\n"
        "[[runs]]\nmethod = 'ft-m'\nlayers = '1'\nsettings = { ft_num_steps = 1 }\n"
    )
    common = ("run", recipe, "--model", saved_tiny_gpt2, "--out", tmp_path / "out")
    document = run(*common, "--json").document
    assert read_document(tmp_path / "out" / "table.json", sealed=True, kind="table") == document
    assert run(*common, "--seed", 3).code == 2
    assert run(*common, "--seed", 3, "--force").code == 0
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    kept = run("run", recipe, "--model", saved_tiny_gpt2, "--out", tmp_path / "home", "--force")
    assert kept.code == 2
    assert (tmp_path / "home" / "letter.txt").exists()
