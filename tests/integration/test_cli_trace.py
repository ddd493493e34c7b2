"""`bluedit trace`, and `bluedit edit --layers auto` that uses what it finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Outcome, Run

from bluedit.datasets import World
from bluedit.edits import Patch
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.tracing import trace as tracing


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own: what one test has traced is no other's."""
    monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def known(tiny_gpt2: EditableModel, world: World, tmp_path: Path) -> Path:
    """Five facts in the schema of known_1000; the model knows the first four, as what it happens to say is made the object."""
    rows: list[dict[str, Any]] = []
    for record in world.counterfact(200):
        rewrite = record["requested_rewrite"]
        fact = Fact(rewrite["prompt"], rewrite["subject"], "x")
        with torch.no_grad():
            logits = tiny_gpt2.model(input_ids=torch.tensor([tiny_gpt2.text.prompt(fact.text)])).logits[0, -1]
        said = int(logits.argmax())
        object = str(tiny_gpt2.tokenizer.decode([said])).strip()
        if not object or tiny_gpt2.text.target(object) != (said,) or fact.prompt.endswith("{}"):
            continue
        attribute = object if len(rows) < 4 else "quite another answer"
        rows.append({"known_id": len(rows), "subject": fact.subject, "attribute": attribute, "prompt": fact.text})
        if len(rows) == 5:
            break
    path = tmp_path / "known.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def trace(run: Run, saved_tiny_gpt2: Path, known: Path) -> Run:
    """Runs `bluedit trace` on the tiny model, quickly."""

    def trace(*arguments: Any) -> Outcome:
        return run("trace", "--model", saved_tiny_gpt2, "--facts", known, "--samples", 2, *arguments)

    return trace


def test_trace_reports_every_key_it_documents(trace: Run, tmp_path: Path) -> None:
    document = trace("--out", tmp_path / "out", "--examples", 1, "--json").document
    assert (document["known"], document["unknown"], document["refused"]) == (4, 1, {})
    assert document["settings"] == {
        "components": ["layer", "mlp", "attention"], "noise": 3.0, "samples": 2, "window": None, "seed": 0,
    }  # fmt: skip
    for component in ("layer", "mlp", "attention"):
        assert [set(one) for one in document["at_last_subject_token"][component]] == [{"value", "low", "high", "n"}] * 4
    assert document["total_effect"]["n"] == 4
    choice = document["choice"]
    assert choice["boundary"] == [choice["layers"][0], choice["layers"][-1]]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"trace.json", "restored.safetensors", "average.png", "layers.png", "fact-1.png"}
    assert {Path(path).name for path in document["figures"]} == {"average.png", "layers.png", "fact-1.png"}


def test_trace_for_people(trace: Run) -> None:
    outcome = trace("--components", "mlp, layer", "--limit", 2)
    assert outcome.code == 0, outcome.stderr
    assert "2 facts known and traced, 0 unknown, 0 refused" in outcome.stdout
    assert "hidden state" in outcome.stdout
    assert "attention" not in outcome.stdout


def test_earlier_name_of_components_is_taken_with_a_warning(trace: Run) -> None:
    said = [trace(option, "mpl").stderr for option in ("--sites", "--components")]
    assert said[0].startswith("the option --sites is now called --components; the old name goes with the next release\n")
    assert all("unknown component 'mpl'. Did you mean 'mlp'?" in text for text in said)
    assert "now called" not in said[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--components", "mpl"), "unknown component 'mpl'. Did you mean 'mlp'?"),
        (("--facts", "nowhere.json"), "there is no such file"),
        (("--facts", "world:counterfact"), "knows none of"),
    ],
)
def test_what_users_can_fix(trace: Run, arguments: tuple[Any, ...], said: str) -> None:
    outcome = trace(*arguments, *(("--limit", 3) if said == "knows none of" else ()))
    assert outcome.code == 2
    assert said in outcome.stderr
    assert not outcome.stdout


def test_a_stopped_trace_goes_on(trace: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trace("--out", tmp_path / "whole", "--json").document
    original, calls = tracing.trace_fact, []

    def until_stopped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(tracing, "trace_fact", until_stopped)
    assert trace("--out", tmp_path / "out").code == 130
    again = trace("--out", tmp_path / "out", "--json").document
    assert len(calls) == 5  # two done, one stopped, two more
    assert again["at_last_subject_token"] == whole["at_last_subject_token"]
    for name in ("trace.json", "restored.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    refused = trace("--out", tmp_path / "out", "--seed", 1)
    assert (refused.code, "another folder with --out" in refused.stderr.replace("\n", " ")) == (2, True)
    assert trace("--out", tmp_path / "out", "--seed", 1, "--force").code == 0


@pytest.fixture
def auto(run: Run, saved_tiny_gpt2: Path, facts: Path, corpus_file: Path, templates: Path, tmp_path: Path) -> Run:
    """Runs `bluedit edit --layers auto` on the tiny model, quickly."""
    fast = ("--set", "v_num_grad_steps=2", "--set", "shrinkage=0.1", "--set", "lambda=5", "--corpus", f"text:{corpus_file}")
    given = ("--model", saved_tiny_gpt2, "--facts", facts, "--templates", templates, "--out", tmp_path / "patch", *fast)
    return lambda *arguments: run("edit", *given, "--layers", "auto", "--force", *arguments)


def test_edit_auto_needs_a_trace(auto: Run, run: Run, saved_tiny_gpt2: Path, facts: Path, tmp_path: Path) -> None:
    outcome = auto()
    assert outcome.code == 2
    assert "run `bluedit trace --model" in outcome.stderr
    given = ("edit", "--model", saved_tiny_gpt2, "--facts", facts, "--out", tmp_path / "p", "--layers", "1,2")
    refused = run(*given, "--trace-facts", facts)
    assert (refused.code, "--layers auto" in refused.stderr) == (2, True)


def test_edit_auto_chooses(auto: Run, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = auto("--trace-facts", known, "--json")
    assert outcome.code == 0, outcome.stderr
    assert "chosen by causal tracing of 4 facts" in outcome.stderr.replace("\n", " ")
    layers = outcome.document["layers"]
    # Next time the kept choice serves, without a trace.
    monkeypatch.setattr(tracing, "trace_fact", None)
    assert auto("--json").document["layers"] == layers
    assert auto("--trace-facts", known, "--json").document["layers"] == layers
    assert Patch.load(tmp_path / "patch").manifest.layers == tuple(layers)
    assert auto("--strategy", "single", "--json").document["layers"][0] in layers


def test_a_trace_is_what_edit_auto_uses(auto: Run, trace: Run) -> None:
    choice = trace("--json").document["choice"]
    assert choice is not None
    assert auto("--json").document["layers"] == choice["layers"]
