"""`bluedit export` on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import FAST, Run
from gguf_files import write_gguf
from peft import PeftModel
from random_models import random_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from bluedit.edits import Patch, load_edit
from bluedit.models import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


@pytest.fixture(scope="module")
def tiny(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, bos_token_id=0, eos_token_id=0, pad_token_id=None,
        tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    return write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", random_model(config), tokenizer, "F32")


@pytest.fixture
def patch(run: Run, tiny: Path, corpus_file: Path, templates: Path, facts: Path, tmp_path: Path) -> Path:
    options = ("--corpus", f"text:{corpus_file}", "--templates", templates, "--samples", 50, *FAST)
    outcome = run("edit", "--model", tiny, "--facts", facts, "--out", tmp_path / "patch", *options)
    assert outcome.code == 0, outcome.stderr
    return tmp_path / "patch"


def test_every_format_is_written_scored_and_has_a_card(run: Run, tiny: Path, patch: Path, facts: Path, tmp_path: Path) -> None:
    """Exact exports score as the patch does."""
    asked = ("--dataset", facts, "--verify", "--json")
    outputs = {"checkpoint": "edited", "lora": "adapter", "gguf": "edited.gguf", "gguf-lora": "adapter.gguf"}
    digest = load_edit(patch).digest
    seen: list[Any] = []
    for command, name in outputs.items():
        options = ("--type", "f32") if command == "gguf" else ()
        found = run("export", command, patch, "--model", tiny, "--out", tmp_path / name, *options, *asked).document
        assert found["kind"] == command
        assert {one["weight"] for one in found["weights"]} == {f"model.layers.{n}.mlp.down_proj.weight" for n in (1, 2)}
        assert all(one["error"] == 0 for one in found["weights"])
        assert found["scores"]["exported"] == found["scores"].get("patched", found["scores"]["exported"])
        seen.append((found["scores"]["unedited"], found["scores"]["exported"], found["not_held"]))
        card = Path(found["card"]).read_text(encoding="utf-8")
        assert digest in card
        assert "| exported |" in card
    assert all(one == seen[0] for one in seen)


def test_a_compressed_adapter_says_what_it_costs(run: Run, tiny: Path, patch: Path, facts: Path, tmp_path: Path) -> None:
    outcome = run("export", "lora", patch, "--model", tiny, "--out", tmp_path / "a", "--rank", 2, "--dataset", facts)
    assert outcome.code == 0, outcome.stderr
    assert "is lost" in outcome.stderr
    assert "patched" in outcome.stdout
    assert "exported" in outcome.stdout
    adapted = PeftModel.from_pretrained(_folder(tiny, tmp_path), tmp_path / "a")
    assert adapted.peft_config["default"].r == 2


def _folder(tiny: Path, tmp_path: Path) -> Any:
    model = load_model(str(tiny), device="cpu")
    model.model.save_pretrained(tmp_path / "folder")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "folder")


def test_a_folder_is_converted_and_the_patch_taken_back(run: Run, tiny: Path, patch: Path, tmp_path: Path) -> None:
    edited, again = tmp_path / "edited", tmp_path / "again"
    assert run("export", "checkpoint", patch, "--model", tiny, "--out", edited).code == 0
    assert run("export", "checkpoint", patch, "--model", tiny, "--out", edited, "--force").code == 0
    assert (edited / "bluedit" / "README.md").is_file()
    assert run("patch", "revert", "--model", edited, "--out", again).code == 0
    assert not (again / "bluedit").exists()
    out = tmp_path / "out.gguf"
    assert run("export", "gguf", patch, "--model", again, "--type", "f32", "--out", out).code == 0
    original, written = load_model(str(tiny), device="cpu"), load_model(str(out), device="cpu")
    loaded = load_edit(patch)
    assert isinstance(loaded, Patch)
    with loaded.applied(original):
        for name, weight in original.model.named_parameters():
            assert torch.equal(weight, written.model.get_parameter(name)), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("gguf", "--out", "x.gguf", "--type", "q9"), "unknown type of tensors"),
        (("gguf", "--out", "x.bin"), "should end in .gguf"),
        (("gguf-lora", "--out", "x.gguf", "--type", "bf16"), "unknown type of an adapter's numbers"),
        (("lora", "--out", "x", "--push-to-hub", "nobody"), "OWNER/NAME"),
        (("lora", "--out", "x", "--dataset", "missing.json"), "missing.json"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(
    run: Run, tiny: Path, patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    command, *options = arguments
    outcome = run("export", command, patch, "--model", tiny, *options)
    assert outcome.code == 2
    assert said in outcome.stderr
    assert not list((tmp_path / "here").iterdir())


def test_the_name_in_a_patch_is_no_path_to_open(run: Run, patch: Path, tmp_path: Path) -> None:
    """The patch here names the file that it was made from, and it is there; a patch from elsewhere could name any."""
    outcome = run("export", "lora", patch, "--out", tmp_path / "adapter")
    assert outcome.code == 2
    assert "--model" in outcome.stderr
