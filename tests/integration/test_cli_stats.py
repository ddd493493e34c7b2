"""`bluedit stats`: moments ahead of edits, in a pass that can be killed, and as a file for others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Run
from safetensors.torch import load_file

from bluedit import World
from bluedit.models import EditableModel
from bluedit.models.memory.machine import Memory
from bluedit.statistics import Pass


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "second_moments"


@pytest.fixture
def stats(run: Run, saved_tiny_gpt2: Path, corpus_file: Path, own_cache: Path) -> Run:
    """Runs `bluedit stats` on the tiny model."""
    return lambda *more: run("stats", "--model", saved_tiny_gpt2, "--layers", "1-2", "--corpus", f"text:{corpus_file}", *more)


def test_stats_says_what_it_did_and_edit_finds_it(
    stats: Run, edit: Run, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = stats("--json").document
    assert (document["documents"], document["samples"], document["max_length"]) == (300, None, 96)
    assert document["computed"] == [1, 2]
    assert document["tokens_per_second"] > 0
    assert 0 < document["padding_share"] < 0.05
    assert set(document["layers"]) == {"1", "2"}
    for layer in document["layers"].values():
        assert Path(layer["file"]).is_file()
        assert [point["documents"] for point in layer["curve"]] == [300]
        assert layer["curve"][0]["tokens"] == document["tokens"]
    monkeypatch.setattr(Pass, "run", lambda *_, **__: pytest.fail("computed again"))
    again = stats("--json").document
    assert again["computed"] == []
    assert again["layers"] == document["layers"]
    assert edit("--facts", facts, "--out", tmp_path / "patch").code == 0


def test_stats_for_people(stats: Run) -> None:
    first, again = stats("--samples", 100), stats("--samples", 100)
    assert first.code == again.code == 0
    assert "second moments of layers 1, 2" in first.stdout
    assert "100 documents" in first.stdout
    assert " tokens/s, " in first.stdout
    assert "2 second moments, 48 x 48: 0.00 GiB in addition to the model" in first.stderr
    assert "nothing was computed" in again.stdout
    assert "GiB" not in again.stderr


def test_stats_stops_by_itself_and_tells_edit_how_many_samples(stats: Run) -> None:
    outcome = stats("--until", "1.0")
    assert "bluedit edit finds them with --samples 300" in outcome.stderr
    assert stats("--until", "1e-9", "--json").document["samples"] is None


def test_moments_travel_as_a_file(
    stats: Run,
    run: Run,
    edit: Run,
    facts: Path,
    saved_tiny_gpt2: Path,
    other_gpt2: EditableModel,
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = tmp_path / "shared.safetensors"
    document = stats("--export", shared, "--json").document
    assert stats("--export", shared).code == 2
    for path in own_cache.iterdir():
        path.unlink()
    monkeypatch.setattr(Pass, "run", lambda *_, **__: pytest.fail("computed again"))
    edited = run(
        *("edit", "--model", saved_tiny_gpt2, "--facts", facts, "--out", tmp_path / "one", "--corpus", f"stats:{shared}"),
        *("--layers", "1,2", "--set", "v_num_grad_steps=2", "--set", "shrinkage=0.1"),
    )
    assert edited.code == 0, edited.stderr
    imported = run("stats", "--model", saved_tiny_gpt2, "--import", shared, "--json").document
    assert imported["tokens"] == document["tokens"]
    assert imported["layers"] == document["layers"]
    assert stats("--json").document["computed"] == []
    assert edit("--facts", facts, "--out", tmp_path / "two").code == 0

    other_gpt2.model.save_pretrained(tmp_path / "other")
    other_gpt2.tokenizer.save_pretrained(tmp_path / "other")
    refused = run("stats", "--model", tmp_path / "other", "--import", shared)
    assert refused.code == 2
    assert "belongs to another model" in refused.stderr
    shared.write_bytes(shared.read_bytes()[:-8])
    assert run("stats", "--model", saved_tiny_gpt2, "--import", shared).code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--layers", "1", "--corpus", "txt:x"), "Did you mean 'text'"),
        (("--layers", "9", "--corpus", "world:0"), "layer 9 is not in this model"),
        (("--layers", "1"), "no corpus is known"),
        (("--corpus", "world:0"), "the critical layers of this model (of 4 layers) are not known"),
        (("--layers", "1", "--import", "x"), "give --model and --import only"),
        (("--import", "absent"), "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said(run: Run, saved_tiny_gpt2: Path, arguments: tuple[str, ...], message: str) -> None:
    outcome = run("stats", "--model", saved_tiny_gpt2, *arguments)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert outcome.stdout == ""


def test_more_memory_than_there_is_is_warned_of(stats: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bluedit.models.memory.machine.memory_of", lambda _: Memory("a small machine", 1, 1))
    assert "warning: that is more than is free" in stats().stderr


def test_killed_and_started_again_it_ends_with_the_same_bits(saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    """SIGKILL while the pass runs, then the same command again; compared with an undisturbed one."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(World(0).corpus(2500)), encoding="utf-8")
    documents: dict[str, Any] = {}
    moments: dict[str, Any] = {}
    command = [
        *(sys.executable, "-m", "bluedit", "stats", "--model", str(saved_tiny_gpt2), "--layers", "1,2"),
        *("--corpus", f"text:{corpus}", "--save-every", "0", "--json"),
    ]
    for name in ("killed", "whole"):
        environment = os.environ | {"BLUEDIT_CACHE": str(tmp_path / name)}
        folder = tmp_path / name / "second_moments"
        if name == "killed":
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
            while process.poll() is None and not list(folder.glob("*.partial.safetensors")):
                pass
            process.kill()
            process.wait()
            assert all(".partial." in path.name for path in folder.iterdir())
        ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        documents[name] = json.loads(ended.stdout)
        moments[name] = {path.name: load_file(path)["second_moment"] for path in folder.glob("*[0-9a-f].safetensors")}
        assert not [path for path in folder.glob("*.partial.safetensors") if not path.name.startswith(".")]
    assert documents["killed"]["resumed_from"] > 0 == documents["whole"]["resumed_from"]
    assert len(moments["whole"]) == 2
    assert moments["killed"].keys() == moments["whole"].keys()
    for name, moment in moments["whole"].items():
        assert moments["killed"][name].numpy().tobytes() == moment.numpy().tobytes()
    curves: Callable[[str], Any] = lambda name: [layer["curve"] for layer in documents[name]["layers"].values()]  # noqa: E731
    assert curves("killed") == curves("whole")
    assert documents["killed"]["tokens"] == documents["whole"]["tokens"]
