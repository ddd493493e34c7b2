"""The command line: results and nothing else on standard output, one clear message and exit code 2 for what users can fix.

Commands run in this process, through the same `main` as the installed command, so that exit codes, messages and files
left behind are those that a user gets. A few run as processes of their own: what is imported can only be seen there.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import FAST, Outcome, Run
from safetensors import SafetensorError
from safetensors.torch import load_file

import bluedit
from bluedit.edits import Patch
from bluedit.models import EditableModel
from bluedit.models.inputs.chat import Chat


@pytest.fixture
def patch(edit: Run, facts: Path, tmp_path: Path) -> Path:
    """A patch that the command line made."""
    outcome = edit("--facts", facts, "--out", tmp_path / "patch", "--set", "v_lr=0.5")
    assert outcome.code == 0, outcome.stderr
    return tmp_path / "patch"


def _rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """CounterFact records as rows of the user's own schema."""
    return [
        {
            "prompt": record["requested_rewrite"]["prompt"],
            "subject": record["requested_rewrite"]["subject"],
            "target": record["requested_rewrite"]["target_new"]["str"],
            "target_true": record["requested_rewrite"]["target_true"]["str"],
            "paraphrases": record["paraphrase_prompts"],
        }
        for record in records
    ]


def _in_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "paraphrases": "|".join(row["paraphrases"])} for row in rows)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "edits.jsonl": lambda path, records: path.write_text("".join(json.dumps(row) + "\n" for row in _rows(records))),
    "edits.json": lambda path, records: path.write_text(json.dumps(_rows(records))),
    "edits.csv": lambda path, records: _in_csv(path, _rows(records)),
    "counterfact.json": lambda path, records: path.write_text(json.dumps(records)),
    "counterfact.jsonl": lambda path, records: path.write_text("".join(json.dumps(record) + "\n" for record in records)),
}


# -- edit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_edit_and_evaluate_every_kind_of_file(
    edit: Run, run: Run, world_records: list[dict[str, Any]], saved_tiny_gpt2: Path, tmp_path: Path, name: str
) -> None:
    WRITERS[name](tmp_path / name, world_records)
    document = edit("--facts", tmp_path / name, "--out", tmp_path / "patch", "--json").document
    rewrites = [record["requested_rewrite"] for record in world_records]
    assert [fact["target"] for fact in document["facts"]] == [rewrite["target_new"]["str"] for rewrite in rewrites]
    assert [fact["subject"] for fact in Patch.load(tmp_path / "patch").summary()["facts"]] == [r["subject"] for r in rewrites]

    scores = run("evaluate", "--model", saved_tiny_gpt2, "--dataset", tmp_path / name, "--patch", tmp_path / "patch", "--json")
    found = scores.document["scores"]
    all_there = {"ES", "PS", "NS", "S", "EA", "PA", "NA", "locality"}
    assert set(found) == (all_there if "counterfact" in name else {"ES", "PS", "EA", "PA"})
    for estimate in found.values():
        assert set(estimate) == {"value", "low", "high", "n"}
        assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 100
        assert estimate["n"] == len(world_records)


def test_edit_reports_every_key_it_documents(edit: Run, facts: Path, tmp_path: Path) -> None:
    outcome = edit("--facts", facts, "--out", tmp_path / "patch", "--limit", 3, "--json")
    document = outcome.document
    assert set(document) >= {
        "patch", "facts", "method", "strategy", "layers", "settings", "evaluations", "losses", "remaining", "weights",
        "seconds",
    }  # fmt: skip
    assert document["patch"] == str(tmp_path / "patch")
    assert (document["method"], document["strategy"], document["layers"]) == ("memit", "boundary", [1, 2])
    assert document["settings"]["lambda"] == 5.0
    assert document["settings"]["v_num_grad_steps"] == 2
    ids = [fact["id"] for fact in document["facts"]]
    assert len(ids) == 3
    assert set(document["evaluations"]) == {"1", "2"}
    for counts in document["evaluations"].values():
        assert list(counts) == ids
        assert all(1 <= count <= 2 for count in counts.values())
    assert document["seconds"] >= 0
    manifest = Patch.load(tmp_path / "patch").manifest
    assert json.loads(manifest.model_dump_json())["weights"] == document["weights"]
    assert "Traceback" not in outcome.stderr


def test_edit_for_people(edit: Run, facts: Path, tmp_path: Path) -> None:
    outcome = edit("--facts", facts, "--out", tmp_path / "patch")
    assert outcome.code == 0
    assert "6 facts edited into" in outcome.stdout
    assert "transformer.h.1.mlp.c_proj.weight" in outcome.stdout
    assert f"bluedit patch apply {tmp_path / 'patch'}" in outcome.stderr.replace("\n", "")


def test_edit_leaves_the_models_files_alone(edit: Run, facts: Path, saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved_tiny_gpt2.iterdir()}
    assert edit("--facts", facts, "--out", tmp_path / "patch").code == 0
    assert {path.name: path.read_bytes() for path in saved_tiny_gpt2.iterdir()} == before


def test_edit_twice_gives_the_same_patch(edit: Run, facts: Path, tmp_path: Path) -> None:
    """With templates that the model writes: they too follow from the seed alone."""
    for name in ("one.safetensors", "two.safetensors"):
        assert edit("--facts", facts, "--out", tmp_path / name, "--seed", 3).code == 0
    one, two = (load_file(tmp_path / name) for name in ("one.safetensors", "two.safetensors"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_edit_writes_its_own_templates(run: Run, facts: Path, saved_tiny_gpt2: Path, corpus_file: Path, tmp_path: Path) -> None:
    common = ("--model", saved_tiny_gpt2, "--corpus", f"text:{corpus_file}", "--facts", facts, "--limit", 1, *FAST)
    assert run("edit", *common, "--out", tmp_path / "patch").code == 0
    first, *others = Patch.load(tmp_path / "patch").manifest.templates
    assert first == "{}"
    assert len(others) == 5
    assert all(template.endswith(". {}") for template in others)


def test_strategy_is_what_is_asked_for(edit: Run, facts: Path, tmp_path: Path) -> None:
    document = edit("--facts", facts, "--out", tmp_path / "patch", "--layers", "0-2", "--strategy", "even", "--json").document
    assert document["strategy"] == "even"
    assert document["layers"] == [0, 1, 2]
    assert len(document["weights"]) == 3


def test_force_replaces_the_old_patch(edit: Run, facts: Path, patch: Path) -> None:
    old = Patch.load(patch)
    assert edit("--facts", facts, "--out", patch, "--limit", 1, "--force").code == 0
    assert len(Patch.load(patch).manifest.facts) == 1
    assert len(old.manifest.facts) == 6


def test_warning_is_a_remark(edit: Run, facts: Path, tmp_path: Path) -> None:
    """Changes larger than their weights are worth a warning: on standard error, one line for all layers."""
    loud = ("--facts", facts, "--set", "lambda=1e-9", "--set", "v_lr=10")
    outcome = edit(*loud, "--out", tmp_path / "patch", "--json")
    assert outcome.document["weights"]["transformer.h.1.mlp.c_proj.weight"]["relative_norm"] > 1
    (warning,) = outcome.stderr.splitlines()
    assert re.fullmatch(
        r"warning: memit, boundary: the changes of layers 1 and 2 are \d\.\d to \d\.\d times as large as the weights they "
        "change; raise shrinkage or lambda, or take second moments over more text",
        warning,
    )


def test_quiet_says_errors_only(edit: Run, run: Run, facts: Path, tmp_path: Path) -> None:
    loud = ("--facts", facts, "--set", "lambda=1e-9", "--set", "v_lr=10", "--out", tmp_path / "patch")
    outcome = edit(*loud, "--quiet")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "6 facts edited into" in outcome.stdout
    refused = edit(*loud, "-q")
    assert refused.code == 2
    assert refused.stderr.startswith("error: ")
    assert "with --layers and --corpus" in run("models").stderr
    assert run("models", "--quiet").stderr == ""


def test_facts_that_are_there_twice_are_edited_once(edit: Run, world_records: list[dict[str, Any]], tmp_path: Path) -> None:
    rows = _rows(world_records[:2])
    (tmp_path / "twice.json").write_text(json.dumps([*rows, *rows]))
    assert len(edit("--facts", tmp_path / "twice.json", "--out", tmp_path / "patch", "--json").document["facts"]) == 2


# -- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_with_and_without_a_patch(run: Run, patch: Path, facts: Path, saved_tiny_gpt2: Path) -> None:
    common = ("evaluate", "--model", saved_tiny_gpt2, "--dataset", f"counterfact:{facts}", "--cases", "--json")
    before, after, again = (run(*common, *more).document for more in ((), ("--patch", patch), ()))
    for document in (before, after):
        assert set(document) >= {"model", "patch", "dataset", "scores", "protocol", "seconds", "cases"}
        assert document["protocol"]["cases"] == [case["id"] for case in document["cases"]]
    assert before["patch"] is None
    assert after["patch"] == str(patch)
    assert "edit" not in before["protocol"]
    assert after["protocol"]["edit"]["edits"] == 6
    assert after["protocol"]["model_fingerprint"] == before["protocol"]["model_fingerprint"]
    assert again["scores"] == before["scores"]


def test_evaluate_scores_the_patched_model(run: Run, facts: Path, saved_tiny_gpt2: Path, patch: Path, tmp_path: Path) -> None:
    """A patch for the evaluation, and a checkpoint with the patch in it, answer alike."""
    assert run("patch", "apply", patch, "--model", saved_tiny_gpt2, "--out", tmp_path / "patched").code == 0
    common = ("evaluate", "--dataset", facts, "--cases", "--json", "--model")
    patched = run(*common, saved_tiny_gpt2, "--patch", patch).document
    checkpoint = run(*common, tmp_path / "patched").document
    for scores in (patched["scores"], *(case["outcomes"] for case in patched["cases"])):
        assert scores.pop("locality"), "that against the unedited model is not known of a checkpoint"
    assert patched["cases"] == checkpoint["cases"]
    assert patched["scores"] == checkpoint["scores"]


def test_evaluate_for_people(run: Run, facts: Path, saved_tiny_gpt2: Path) -> None:
    outcome = run("evaluate", "--model", saved_tiny_gpt2, "--dataset", facts)
    assert outcome.code == 0
    assert "6 cases, percent [95 % interval]" in outcome.stdout
    for name in ("ES", "PS", "NS", "S", "EA", "PA", "NA"):
        assert f" {name} " in outcome.stdout


def test_evaluate_the_world_by_name(run: Run, saved_tiny_gpt2: Path) -> None:
    document = run("evaluate", "--model", saved_tiny_gpt2, "--dataset", "world:zsre:7", "--limit", 3, "--json").document
    assert document["scores"]["ES"]["n"] == 3
    assert document["protocol"]["scoring"] == ["token_accuracy"]


def test_evaluate_refuses_a_patch_for_other_weights(
    run: Run, patch: Path, facts: Path, saved_tiny_gpt2: Path, tmp_path: Path
) -> None:
    assert run("patch", "apply", patch, "--model", saved_tiny_gpt2, "--out", tmp_path / "patched").code == 0
    common = ("evaluate", "--model", tmp_path / "patched", "--dataset", facts, "--patch", patch, "--json")
    outcome = run(*common)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert "--no-check" in outcome.stderr
    assert run(*common, "--no-check").code == 0


# -- patch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["patch", "patch.safetensors"])
def test_show(edit: Run, run: Run, facts: Path, tmp_path: Path, name: str) -> None:
    assert edit("--facts", facts, "--out", tmp_path / name).code == 0
    document = run("patch", "show", tmp_path / name, "--json").document
    assert document == {"patch": str(tmp_path / name), **Patch.load(tmp_path / name).summary()}
    people = run("patch", "show", tmp_path / name)
    assert people.code == 0
    assert "6 facts edited into" in people.stdout
    assert document["facts"][0]["subject"] in people.stdout


def test_apply_and_revert_files_are_exact(run: Run, patch: Path, saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    applied = run("patch", "apply", patch, "--model", saved_tiny_gpt2, "--out", tmp_path / "patched", "--json").document
    weights = ["transformer.h.1.mlp.c_proj.weight", "transformer.h.2.mlp.c_proj.weight"]
    assert applied == {
        "checkpoint": str(tmp_path / "patched"), "model": str(saved_tiny_gpt2), "patch": str(patch), "weights": weights,
    }  # fmt: skip
    original, patched = (load_file(folder / "model.safetensors") for folder in (saved_tiny_gpt2, tmp_path / "patched"))
    assert sorted(name for name in original if not torch.equal(original[name], patched[name])) == weights

    reverted = run("patch", "revert", "--model", tmp_path / "patched", "--out", tmp_path / "reverted", "--json").document
    assert reverted == {"checkpoint": str(tmp_path / "reverted"), "model": str(tmp_path / "patched"), "patches_left": 0}
    names = sorted(path.name for path in saved_tiny_gpt2.iterdir())
    assert sorted(path.name for path in (tmp_path / "reverted").iterdir()) == names
    names.remove("tokenizer_config.json")  # transformers notes in it where a tokenizer came from
    for name in names:
        assert (tmp_path / "reverted" / name).read_bytes() == (saved_tiny_gpt2 / name).read_bytes(), name


def test_apply_and_revert_for_people(run: Run, patch: Path, saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    applied = run("patch", "apply", patch, "--model", saved_tiny_gpt2, "--out", tmp_path / "patched")
    reverted = run("patch", "revert", "--model", tmp_path / "patched", "--out", tmp_path / "reverted")
    for outcome, name in ((applied, "patched"), (reverted, "reverted")):
        assert (outcome.code, outcome.stdout) == (0, "")
        assert f"written to {tmp_path / name}" in outcome.stderr.replace("\n", "")


def test_first_of_two_patches_can_be_named(
    edit: Run, run: Run, patch: Path, facts: Path, saved_tiny_gpt2: Path, tmp_path: Path
) -> None:
    one, two, second = tmp_path / "one", tmp_path / "two", tmp_path / "second"
    run("patch", "apply", patch, "--model", saved_tiny_gpt2, "--out", one)
    assert edit("--model", one, "--facts", facts, "--out", second, "--limit", 2, "--set", "v_lr=0.3").code == 0
    assert run("patch", "apply", second, "--model", one, "--out", two).code == 0
    document = run("patch", "revert", patch, "--model", two, "--out", tmp_path / "left", "--json").document
    assert document["patches_left"] == 1
    (left,) = (tmp_path / "left" / "bluedit").glob("patch-*.safetensors")
    assert Patch.load(left).manifest == Patch.load(second).manifest
    assert run("patch", "revert", "--model", tmp_path / "left", "--out", tmp_path / "none").code == 0
    original, reverted = (load_file(folder / "model.safetensors") for folder in (saved_tiny_gpt2, tmp_path / "none"))
    assert all(torch.equal(original[name], reverted[name]) for name in original)


def test_revert_needs_a_record(run: Run, saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    outcome = run("patch", "revert", "--model", saved_tiny_gpt2, "--out", tmp_path / "reverted")
    _assert_refused(outcome, "holds no record of an applied patch")
    assert not (tmp_path / "reverted").exists()


def test_show_refuses_what_is_no_patch(run: Run, saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    _assert_refused(run("patch", "show", saved_tiny_gpt2), f"{saved_tiny_gpt2} is not a patch")
    _assert_refused(run("patch", "show", tmp_path / "nowhere"), f"there is no file or folder {tmp_path / 'nowhere'}")


# -- bad input -------------------------------------------------------------------------------------------------------


def _assert_refused(outcome: Outcome, *fragments: str) -> None:
    """Exit code 2, nothing on standard output, and one message that holds the fragments."""
    message = outcome.stderr.strip()
    assert outcome.code == 2, message
    assert outcome.stdout == ""
    assert "Traceback" not in message
    for fragment in fragments:
        assert fragment in message
    assert message.startswith("error: "), "nothing but the message"
    assert message.count("error: ") == 1


@dataclass(frozen=True)
class Bench:
    """What a bad input is made from."""

    folder: Path
    rows: list[dict[str, Any]]
    model: Path

    def write(self, name: str, rows: Any) -> Path:
        path = self.folder / name
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
        return path

    def only(self, name: str, *files: str) -> Path:
        """A folder with some of the model's files."""
        folder = self.folder / name
        folder.mkdir()
        for file in files:
            (folder / file).write_bytes((self.model / file).read_bytes())
        return folder


@pytest.fixture
def bench(world_records: list[dict[str, Any]], saved_tiny_gpt2: Path, tmp_path: Path) -> Bench:
    (tmp_path / "bench").mkdir()
    return Bench(tmp_path / "bench", _rows(world_records), saved_tiny_gpt2)


def _without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


def _two_targets(bench: Bench) -> list[dict[str, Any]]:
    return [*bench.rows[:2], bench.rows[0] | {"target": "somewhere else"}]


def _pickle_only(bench: Bench) -> Path:
    folder = bench.only("pickled", "config.json", "tokenizer.json", "tokenizer_config.json")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return folder


def _other_model(bench: Bench) -> Path:
    folder = bench.only("bert", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}))
    return folder


def _truncated_weights(bench: Bench) -> Path:
    folder = bench.only("truncated", "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


def _deeper(bench: Bench) -> Path:
    folder = bench.only("deeper", "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 5}))
    return folder


BAD: dict[str, tuple[Callable[[Bench], dict[str, Any]], tuple[str, ...]]] = {
    # facts
    "facts: missing file": (
        lambda b: {"--facts": b.folder / "no.jsonl"},
        ("no.jsonl", "there is no such file; check the path"),
    ),
    "facts: a folder": (lambda b: {"--facts": b.folder}, ("is a folder; name a file in it",)),
    "facts: empty file": (lambda b: {"--facts": b.write("none.jsonl", "")}, ("none.jsonl", "is empty")),
    "facts: no rows": (lambda b: {"--facts": b.write("none.json", "[]")}, ("none.json", "holds no records")),
    "facts: no target in row 3": (
        lambda b: {"--facts": b.write("f.jsonl", [*b.rows[:2], _without(b.rows[2], "target"), b.rows[3]])},
        ("f.jsonl", "row 3 (line 3)", "`target` is missing; add it"),
    ),
    "facts: not JSON": (
        lambda b: {"--facts": b.write("f.jsonl", '{"prompt": \n')},
        ("f.jsonl", "row 1 (line 1)", "is not JSON"),
    ),
    "facts: subject not in its prompt": (
        lambda b: {"--facts": b.write("f.jsonl", [b.rows[0], b.rows[1] | {"prompt": "Paris is in"}])},
        ("f.jsonl", "row 2 (line 2)", "is not in the prompt 'Paris is in'", "put {} where the subject belongs"),
    ),
    "facts: two targets for one question": (
        lambda b: {"--facts": b.write("f.jsonl", _two_targets(b))},
        ("f.jsonl", "row 3 (line 3)", "row 1 (line 1)", "'somewhere else'", "keep one of the two"),
    ),
    "facts: a conflict in CounterFact": (
        lambda b: {"--facts": b.write("f.json", json.dumps(_conflicting_records()))},
        ("two targets", "keep one of them"),
    ),
    "facts: a wrong column": (
        lambda b: {"--facts": b.write("f.jsonl", [b.rows[0] | {"tagret": "x"}])},
        ("row 1", "Did you mean 'target'?"),
    ),
    "facts: limit": (lambda b: {"--limit": 0}, ()),
    "facts: longer than the context": (
        lambda b: {"--facts": b.write("f.jsonl", [b.rows[0] | {"prompt": "and so " * 100 + "{}"}])},
        ("takes 96", "shorten its prompt"),
    ),
    # method and settings
    "method: unknown": (lambda b: {"--method": "memitt"}, ("unknown method 'memitt'", "Did you mean 'memit'?")),
    "strategy: unknown": (lambda b: {"--strategy": "boundry"}, ("unknown strategy 'boundry'", "Did you mean 'boundary'?")),
    "set: unknown": (lambda b: {"--set": "lamda=5"}, ("unknown setting 'lamda'", "Did you mean 'lambda'?")),
    "set: out of range": (lambda b: {"--set": "lambda=-1"}, ("lambda='-1'", "greater than 0")),
    "set: no number": (lambda b: {"--set": "v_lr=fast"}, ("v_lr='fast'", "number")),
    "set: infinite": (lambda b: {"--set": "lambda=inf"}, ("lambda='inf'", "finite")),
    "set: no value": (lambda b: {"--set": "lambda"}, ("--set 'lambda' is not a setting", "--set lambda=5")),
    "layers: above the model": (lambda b: {"--layers": "2-9"}, ("layer 9 is not in this model: it has layers 0 to 3",)),
    "layers: above the model, between the boundaries": (
        lambda b: {"--layers": "1,7", "--strategy": "single:1"},
        ("layer 7 is not in this model: it has layers 0 to 3",),
    ),
    "layers: single above the model": (lambda b: {"--strategy": "single:9"}, ("layer 9 is not in this model",)),
    "layers: no layers": (lambda b: {"--layers": "one to four"}, ("the layers 'one to four' are not understood", "1-4")),
    "layers: negative": (lambda b: {"--layers": "-1"}, ("the layers '-1' are not understood",)),
    "layers: backwards": (lambda b: {"--layers": "3-1"}, ("runs backwards; write 1-3",)),
    "layers: not known": (
        lambda b: {"--layers": None},
        ("critical layers of this model (of 4 layers) are not known", "--layers 4-8"),
    ),
    # corpus
    "corpus: missing file": (lambda b: {"--corpus": "text:nowhere.txt"}, ("corpus file 'nowhere.txt' does not exist",)),
    "corpus: empty": (lambda b: {"--corpus": f"text:{b.write('c.txt', '')}"}, ("c.txt", "is empty")),
    "corpus: blank": (lambda b: {"--corpus": f"text:{b.write('blank.txt', ' ')}"}, ("holds no text",)),
    "corpus: unknown kind": (lambda b: {"--corpus": "txt:c.txt"}, ("unknown kind of corpus 'txt'", "Did you mean 'text'?")),
    "corpus: no kind": (lambda b: {"--corpus": "c.txt"}, ("text:FILE",)),
    "corpus: no seed": (lambda b: {"--corpus": "world:x"}, ("world:0",)),
    "corpus: none": (lambda b: {"--corpus": None}, ("no corpus to compute them from", "--corpus text:FILE")),
    "corpus: not UTF-8": (lambda b: {"--corpus": f"text:{_latin(b)}"}, ("latin.txt is not UTF-8", "convert it")),
    # model
    "model: missing folder": (lambda b: {"--model": b.folder / "no"}, ("the model folder", "does not exist")),
    "model: not a model": (lambda b: {"--model": b.folder}, ("bench is not a model folder", "no config.json")),
    "model: a file": (lambda b: {"--model": b.model / "config.json"}, ("is a file", "--model takes the folder")),
    "model: configuration only": (lambda b: {"--model": b.only("c", "config.json")}, ("holds no .safetensors weights",)),
    "model: no tokenizer": (lambda b: {"--model": b.only("t", "config.json", "model.safetensors")}, ("holds no tokenizer",)),
    "model: pickles only": (
        lambda b: {"--model": _pickle_only(b)},
        ("pickles, which bluedit does not open", "save_pretrained"),
    ),
    "model: encoder-decoder": (lambda b: {"--model": _other_model(b)}, ("could not be loaded",)),
    "model: truncated": (lambda b: {"--model": _truncated_weights(b)}, ("could not be loaded",)),
    "model: deeper than its weights": (lambda b: {"--model": _deeper(b)}, ("lacks weights", "transformer.h.4.")),
    "model: unknown type": (lambda b: {"--dtype": "float23"}, ("unknown dtype 'float23'", "Did you mean 'float32'?")),
    "model: unknown device": (lambda b: {"--device": "gpu"}, ("device 'gpu'", "cpu")),
    "model: unknown device number": (lambda b: {"--device": "cpu:x"}, ("device 'cpu:x'", "cpu")),
    # templates
    "templates: missing": (lambda b: {"--templates": b.folder / "no.json"}, ("no.json cannot be read",)),
    "templates: no list": (lambda b: {"--templates": b.write("t.json", "{}")}, ("t.json must hold a JSON list",)),
    "templates: no place": (lambda b: {"--templates": b.write("t.json", '["{}", "x"]')}, ("'x' needs exactly one {}",)),
    "templates: no bare prompt": (lambda b: {"--templates": b.write("t.json", '["A. {}"]')}, ("must be the bare prompt",)),
}


def _conflicting_records() -> list[dict[str, Any]]:
    record = bluedit.World(0).counterfact(1)[0]
    other = json.loads(json.dumps(record)) | {"case_id": 99_999}
    other["requested_rewrite"]["target_new"]["str"] = "somewhere else"
    return [record, other]


def _latin(bench: Bench) -> Path:
    path = bench.folder / "latin.txt"
    path.write_bytes("Zhara wohnt in Köln.\n".encode("latin-1"))
    return path


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_one_message(
    run: Run, bench: Bench, corpus_file: Path, templates: Path, tmp_path: Path, case: str
) -> None:
    change, fragments = BAD[case]
    options: dict[str, Any] = {
        "--model": bench.model,
        "--facts": bench.write("facts.jsonl", bench.rows),
        "--layers": "1,2",
        "--corpus": f"text:{corpus_file}",
        "--templates": templates,
        "--out": tmp_path / "out" / "patch",
        "--set": "v_num_grad_steps=1",
    } | change(bench)
    arguments = [part for name, value in options.items() if value is not None for part in (name, value)]
    outcome = run("edit", *arguments, "--set", "shrinkage=0.1", "--json")
    if fragments:
        _assert_refused(outcome, *fragments)
    else:  # typer's own check, in its own words
        assert (outcome.code, outcome.stdout) == (2, "")
        assert "Traceback" not in outcome.stderr
    assert not (tmp_path / "out").exists(), "nothing may be left at --out, nor beside it"


@pytest.mark.parametrize("command", ["edit", "apply", "revert"])
def test_out_that_exists_is_refused_and_left_alone(
    edit: Run, run: Run, patch: Path, facts: Path, saved_tiny_gpt2: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    outcome = {
        "edit": lambda: edit("--facts", facts, "--out", out),
        "apply": lambda: run("patch", "apply", patch, "--model", saved_tiny_gpt2, "--out", out),
        "revert": lambda: run("patch", "revert", "--model", saved_tiny_gpt2, "--out", out),
    }[command]()
    _assert_refused(outcome, f"{out} exists already", "--force")
    assert [path.name for path in out.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        pytest.param(("--dataset", "nowhere.json"), "there is no such file", id="missing file"),
        pytest.param(("--dataset", "conterfact:x.json"), "Did you mean 'counterfact'?", id="unknown format"),
        pytest.param(("--dataset", "world:counterfacts"), "Did you mean 'counterfact'?", id="unknown world"),
        pytest.param(
            ("--dataset", "world:zsre", "--limit", "1", "--patch", "nowhere"), "there is no file or folder nowhere", id="patch"
        ),
    ],
)
def test_evaluate_refuses_bad_input(run: Run, saved_tiny_gpt2: Path, arguments: tuple[str, ...], fragment: str) -> None:
    _assert_refused(run("evaluate", "--model", saved_tiny_gpt2, *arguments, "--json"), fragment)


def test_evaluate_refuses_prompts_longer_than_the_context(
    run: Run, world_records: list[dict[str, Any]], saved_tiny_gpt2: Path, write_jsonl: Callable[..., Path]
) -> None:
    rows = [{"id": "short"}, {"id": "long", "paraphrases": ["and so " * 100]}]
    path = write_jsonl([row | more for row, more in zip(_rows(world_records), rows, strict=False)])
    _assert_refused(
        run("evaluate", "--model", saved_tiny_gpt2, "--dataset", path, "--json"), "and so and so", "the model takes 96"
    )


def test_output_for_machines_needs_no_unicode(
    run: Run, make_patch: Callable[..., Patch], tiny_gpt2: EditableModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redirected output has the code page of the machine, which may not know the facts' letters."""
    patch = make_patch(tiny_gpt2)
    assert not patch.facts[0].subject.isascii()
    patch.save(tmp_path / "patch")
    redirected = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", redirected)
    assert run("patch", "show", tmp_path / "patch", "--json").code == 0
    redirected.flush()
    written = json.loads(redirected.buffer.getvalue())  # type: ignore[attr-defined]
    assert [fact["subject"] for fact in written["facts"]] == [fact.subject for fact in patch.facts]


def test_facts_are_looked_at_before_the_model(run: Run, tmp_path: Path) -> None:
    """A model may take minutes to load: what can be told without it comes first."""
    outcome = run("edit", "--model", tmp_path / "no", "--facts", tmp_path / "none.jsonl", "--out", tmp_path / "out")
    _assert_refused(outcome, "none.jsonl")


def test_out_is_looked_at_before_the_model(run: Run, facts: Path, tmp_path: Path) -> None:
    outcome = run("edit", "--model", tmp_path / "no", "--facts", facts, "--out", facts)
    _assert_refused(outcome, f"{facts} exists already")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [(("edit",), "Missing option"), (("edti",), "No such command"), (("edit", "--fast"), "No such option")],
)
def test_bad_usage_is_exit_code_2(run: Run, arguments: tuple[str, ...], fragment: str) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert fragment in outcome.stderr


# -- interruptions ---------------------------------------------------------------------------------------------------


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def _half_then(error: BaseException) -> Callable[..., Any]:
    def fail(_: Any, path: Any, *__: Any, **___: Any) -> Any:
        Path(path).write_bytes(b"half")
        raise error

    return fail


@pytest.mark.parametrize("name", ["patch", "patch.safetensors"])
@pytest.mark.parametrize(
    ("place", "replacement"),
    [
        ("bluedit.editors.closed_form.loop.fact_keys", _raise(KeyboardInterrupt())),
        ("bluedit.edits.base.save_file", _half_then(KeyboardInterrupt())),
        ("bluedit.statistics.store.Statistics.moments", _raise(KeyboardInterrupt())),
    ],
    ids=["while computing", "while writing", "while reading statistics"],
)
def test_edit_that_is_stopped_leaves_nothing(
    edit: Run, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, replacement: Any, name: str
) -> None:
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(place, replacement)
    outcome = edit("--facts", facts, "--out", tmp_path / name, "--json")
    assert (outcome.code, outcome.stdout) == (130, "")
    assert "error: stopped; nothing was left half written" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_apply_that_is_stopped_leaves_nothing(
    run: Run, patch: Path, saved_tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("bluedit.storage.tensors.save_file", _half_then(KeyboardInterrupt()))
    outcome = run("patch", "apply", patch, "--model", saved_tiny_gpt2, "--out", tmp_path / "patched")
    assert outcome.code == 130
    assert sorted(tmp_path.iterdir()) == before


FULL = {
    "operating system": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    # What safetensors really raises when a disk is full.
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("kind", FULL)
@pytest.mark.parametrize("name", ["patch", "patch.safetensors"])
def test_edit_onto_a_full_disk(
    edit: Run, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("bluedit.edits.base.save_file", _half_then(FULL[kind]))
    outcome = edit("--facts", facts, "--out", tmp_path / name, "--json")
    assert (outcome.code, outcome.stdout) == (1, "")
    assert "No space left on device" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", FULL)
def test_apply_onto_a_full_disk_keeps_what_was_there(
    run: Run, patch: Path, saved_tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    out = tmp_path / "patched"
    assert run("patch", "apply", patch, "--model", saved_tiny_gpt2, "--out", out).code == 0
    before, inside = sorted(tmp_path.iterdir()), {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr("bluedit.storage.tensors.save_file", _half_then(FULL[kind]))
    outcome = run("patch", "apply", patch, "--model", saved_tiny_gpt2, "--out", out, "--force")
    assert outcome.code == 1
    assert "No space left on device" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert sorted(tmp_path.iterdir()) == before
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == inside


# -- processes -------------------------------------------------------------------------------------------------------


def _process(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, encoding="utf-8", **options)


@pytest.mark.parametrize("command", [(), ("edit",), ("evaluate",), ("patch",), ("patch", "apply"), ("demo",)])
def test_help_comes_without_heavy_imports(command: tuple[str, ...]) -> None:
    """torch alone takes seconds; help has to be there at once. (pydantic is not looked for: typer itself imports it.)"""
    script = (
        "import sys\n"
        f"sys.argv = ['bluedit', *{command!r}, '--help']\n"
        "from bluedit.cli.main import main\n"
        "try:\n    main()\n"
        "finally:\n    print(sorted({'torch', 'transformers', 'tokenizers', 'numpy'} & sys.modules.keys()), file=sys.stderr)\n"
    )
    process = _process("-c", script)
    assert process.returncode == 0
    assert "Usage: bluedit" in process.stdout
    assert process.stderr.strip() == "[]"


def test_module_is_a_command_too() -> None:
    process = _process("-m", "bluedit", "--version")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == f"bluedit {bluedit.__version__}\n"


def test_installed_command_refuses_bad_input(tmp_path: Path) -> None:
    """The command in a process of its own: nothing on standard output, one message, exit code 2."""
    script = "from bluedit.cli.main import main; main()"
    process = _process("-c", script, "edit", "-m", tmp_path, "-f", tmp_path / "no.jsonl", "-o", tmp_path / "out")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == f"error: {tmp_path / 'no.jsonl'}: there is no such file; check the path\n"


def test_output_is_one_document_in_a_process_of_its_own(patch: Path, saved_tiny_gpt2: Path, facts: Path) -> None:
    """Libraries print too, and only a real process shows whether they do it on standard output."""
    script = "from bluedit.cli.main import main; main()"
    process = _process("-c", script, "evaluate", "-m", saved_tiny_gpt2, "--dataset", facts, "--patch", patch, "--json")
    assert process.returncode == 0, process.stderr
    assert set(json.loads(process.stdout)["scores"]) == {"ES", "PS", "NS", "S", "EA", "PA", "NA", "locality"}
    assert "Traceback" not in process.stderr


# -- module maps -------------------------------------------------------------------------------------------------------


def test_module_map_says_what_is_edited(edit: Run, facts: Path, tmp_path: Path) -> None:
    """Another projection than the one that would be found; a key that is not known is bad input."""
    entries = {
        "layers": "transformer.h", "projection": "attn.c_proj", "attention_projection": "attn.c_proj",
    }  # fmt: skip
    (tmp_path / "map.json").write_text(json.dumps(entries))
    document = edit("--facts", facts, "--out", tmp_path / "patch", "--module-map", tmp_path / "map.json", "--json").document
    assert set(document["weights"]) == {f"transformer.h.{layer}.attn.c_proj.weight" for layer in (1, 2)}

    (tmp_path / "bad.json").write_text(json.dumps(entries | {"head": "lm_head"}))
    refused = edit("--facts", facts, "--out", tmp_path / "other", "--module-map", tmp_path / "bad.json")
    assert refused.code == 2
    assert "unknown key 'head'" in refused.stderr


# -- chats -----------------------------------------------------------------------------------------------------------


def test_chat_without_a_template_is_refused_with_the_fix(
    edit: Run, run: Run, facts: Path, saved_tiny_gpt2: Path, tmp_path: Path
) -> None:
    for outcome in (
        edit("--facts", facts, "--out", tmp_path / "patch", "--chat"),
        run("evaluate", "--model", saved_tiny_gpt2, "--dataset", f"counterfact:{facts}", "--chat"),
    ):
        assert outcome.code == 2
        assert "no chat template; leave out --chat" in " ".join(outcome.stderr.split())
    assert not (tmp_path / "patch").exists()


def test_edit_and_evaluate_in_a_chat(edit: Run, run: Run, facts: Path, saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    """The patch says what it was made with, and an evaluation with other prompts says that they are others."""
    folder = tmp_path / "model"
    shutil.copytree(saved_tiny_gpt2, folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    outcome = edit("--model", folder, "--facts", facts, "--out", tmp_path / "patch", "--chat", "--limit", "2")
    assert outcome.code == 0, outcome.stderr
    assert Patch.load(tmp_path / "patch").manifest.chat == Chat("user: ", "\n", "")
    common = ("evaluate", "--model", folder, "--dataset", f"counterfact:{facts}", "--patch", tmp_path / "patch", "--json")
    chat, plain = run(*common, "--chat"), run(*common)
    assert chat.document["protocol"]["chat"]["before"] == "user: "
    assert "chat" not in plain.document["protocol"]
    assert "this evaluation uses other prompts" not in chat.stderr
    assert "made with prompts in a chat template, but this evaluation uses other prompts" in " ".join(plain.stderr.split())


def test_facts_that_contradict_each_other_are_edited_where_it_is_said_which_counts(
    run: Run, edit: Run, saved_tiny_gpt2: Path, tmp_path: Path
) -> None:
    path = tmp_path / "twins.csv"
    path.write_text(
        "prompt;subject;target;relation\nThe twin city of Istanbul is;Istanbul;Paris;twin\n"
        "Istanbul is twinned with;Istanbul;Rome;twin\n"
    )
    _assert_refused(edit("--facts", path, "--out", tmp_path / "p"), "relation 'twin'", "--on-conflict last")
    last = edit("--facts", path, "--out", tmp_path / "last", "--on-conflict", "last", "--json").document
    assert [fact["target"] for fact in last["facts"]] == ["Rome"]
    saved = ("--batch-size", "2", "--session", tmp_path / "session")
    kept = edit("--facts", path, "--out", tmp_path / "kept", "--on-conflict", "keep", *saved, "--json").document
    assert [fact["target"] for fact in kept["facts"]] == ["Paris", "Rome"]
    scored = run(
        "evaluate", "--model", saved_tiny_gpt2, "--dataset", path, "--on-conflict", "keep", "--cases", "--json"
    ).document
    assert len(scored["cases"]) == 2
    _assert_refused(run("evaluate", "--model", saved_tiny_gpt2, "--dataset", path, "--on-conflict", "first"), "first")
