"""The embedded model passes its gates, edits as its card says, and its training resumes exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from zoo import train
from zoo.card import render_card
from zoo.gates import GATES, measure_gates

from bluedit.cli import demo
from bluedit.editors.presets import find_preset
from bluedit.evaluation import Estimate
from bluedit.models import load_model
from bluedit.models.embedded import EMBEDDED


@pytest.fixture(scope="module")
def folder() -> Path:
    return EMBEDDED["gpt2-mini"]


def test_the_shipped_weights_pass_every_gate() -> None:
    measured = measure_gates(load_model("gpt2-mini", device="cpu"), limit=600)
    for gate in GATES:
        assert measured[gate.name].value >= gate.minimum, gate


def test_the_folder_is_a_small_ordinary_checkpoint(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 16_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {p.name for p in folder.iterdir()}
    assert all(value.dtype == torch.float16 for value in load_file(folder / "model.safetensors").values())
    model = load_model(str(folder), device="cpu")
    assert model.tokenizer.is_fast
    known = find_preset(model.model.config)
    assert known is not None
    assert known.name == "gpt2-mini"


def test_the_card_records_data_seed_settings_gates_and_sweep(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    record = json.loads((folder / "training.json").read_text())
    for name, value in record["settings"].items():
        assert f"| {name} | {value} |" in card
    for gate in GATES:
        assert record["gates"][gate.name]["value"] >= gate.minimum
        assert f"{record['gates'][gate.name]['value']:.1f}" in card
    known = find_preset(load_model(str(folder), device="cpu").model.config)
    assert known is not None
    assert f"Chosen: critical layers {known.layers[0]} to {known.layers[-1]}" in card
    for name, value in known.settings_for("memit").items():
        assert f"{name} {value:g}" in card


def test_blue_beats_even_distribution_on_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    """100 facts in one batch, as `bluedit demo` does it: intervals of ES and PS apart, ES >= 90, NS >= 70."""
    demo.demo(as_json=True)
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    estimates = {
        name: {score: Estimate(**values) for score, values in document[name]["scores"].items()}
        for name in ("before", "even", "boundary")
    }
    even, blue = estimates["even"], estimates["boundary"]
    for score in ("ES", "PS"):
        assert blue[score].value > even[score].value
        assert blue[score].low > even[score].high, score
    assert blue["ES"].value >= 90
    assert blue["NS"].value >= 70
    assert estimates["before"]["ES"].value < 10
    assert demo.report(document).renderables


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> train.TrainingSettings:
    monkeypatch.setattr(train, "TOKENIZER_DOCUMENTS", 200)
    settings = train.TrainingSettings(vocabulary=300, context=128, layers=2, width=16, heads=2, rows=2, steps=6, warmup=2)
    monkeypatch.setitem(train.ZOO, "gpt2-mini", settings)
    return settings


def test_training_that_was_stopped_ends_with_the_same_weights(tiny: train.TrainingSettings, tmp_path: Path) -> None:
    whole, _, _ = train.train(tiny, tmp_path / "whole", checkpoint_every=3)

    class StopAtFour(Exception):  # noqa: N818
        pass

    def stop(settings: train.TrainingSettings, step: int) -> float:
        if step == 4:
            raise StopAtFour
        return original(settings, step)

    original = train.learning_rate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "learning_rate", stop)
        with pytest.raises(StopAtFour):
            train.train(tiny, tmp_path / "stopped", checkpoint_every=3)
    resumed, _, _ = train.train(tiny, tmp_path / "stopped", checkpoint_every=3)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(SystemExit, match="other settings"):
        train.train(replace(tiny, seed=1), tmp_path / "stopped")


def test_a_model_that_misses_its_gates_is_written_and_refused(tiny: train.TrainingSettings, tmp_path: Path) -> None:
    out = tmp_path / "gpt2-mini"
    with pytest.raises(SystemExit, match="gates missed: rewrite, paraphrase, neighborhood"):
        train.main(["gpt2-mini", "--out", str(out), "--work", str(tmp_path / "work"), "--steps", "2"])
    record = json.loads((out / "training.json").read_text())
    assert record["settings"]["steps"] == 2
    assert record["gates"]["rewrite"]["value"] < 50
    assert (out / "README.md").read_text() == render_card("gpt2-mini", record, None)
