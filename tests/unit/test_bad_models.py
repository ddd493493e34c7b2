"""Model folders that are not what they should be: refused with what is wrong and where, in time and without much memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from bluedit.doctor import examine
from bluedit.errors import ModelError
from bluedit.methods import MEMIT
from bluedit.models import load_model
from bluedit.models.configuration import check_sizes


@pytest.fixture
def folder(saved_tiny_gpt2: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own."""
    return Path(shutil.copytree(saved_tiny_gpt2, tmp_path / "model"))


def _configure(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"n_layer": 10**9},
        {"n_embd": 10**12},
        {"n_head": 10**9},
        {"n_inner": 10**9},
        {"n_positions": 10**12},
        {"vocab_size": 10**10},
    ],
    ids=str,
)
def test_absurd_sizes_are_refused_before_anything_is_made_of_them(folder: Path, settings: dict[str, int]) -> None:
    ((name, value),) = settings.items()
    _configure(folder, **settings)
    with pytest.raises(ModelError, match=f"asks for {name} = {value}, and no model has more than"):
        load_model(str(folder))
    found = examine(str(folder), MEMIT)
    said = {check.name: check.message for check in found.checks if check.status == "problem"}
    assert f"asks for {name} = {value}" in said["configuration"]


def test_sizes_of_published_models_are_no_absurd_ones() -> None:
    published = {
        "num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128,
        "vocab_size": 262_144, "max_position_embeddings": 10_485_760, "rope_theta": 500_000.0, "n_routed_experts": 384,
        "eos_token_id": [128001, 128009], "num_key_value_heads": 8, "rope_scaling": {"original_max_position_embeddings": 8192},
        "text_config": {"num_hidden_layers": 62, "sliding_window": 4096, "query_pre_attn_scalar": 168},
        "attn_config": {"clip_qkv": None}, "layer_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    check_sizes(published, "config.json")
    with pytest.raises(ModelError, match=r"text_config.num_hidden_layers = 1e\+20"):
        check_sizes(published | {"text_config": {"num_hidden_layers": 1e20}}, "config.json")


def test_weights_of_another_size_are_named_with_both_shapes(folder: Path) -> None:
    _configure(folder, n_inner=40)
    with pytest.raises(ModelError, match=r"the weight transformer.h.0.mlp.c_fc.bias is 48 in the file, and\s+40 by") as caught:
        load_model(str(folder))
    assert "above report" not in str(caught.value)
    assert "48 x 32 in the file" not in str(caught.value)


def test_sizes_that_do_not_fit_can_be_asked_for(folder: Path) -> None:
    _configure(folder, n_inner=40)
    assert load_model(str(folder), ignore_mismatched_sizes=True).structure.d_ff == 40


def _spoil(name: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _without_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.0.mlp.c_fc.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _shifted_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] = {token: number + 100_000 for token, number in tokenizer["model"]["vocab"].items()}
    path.write_text(json.dumps(tokenizer))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "configuration: binary": (_spoil("config.json", bytes(range(256))), "config.json cannot be read: it is not UTF-8"),
    "configuration: a list": (_spoil("config.json", "[]"), "config.json cannot be read: it holds no JSON object"),
    "configuration: nested": (_spoil("config.json", '{"a":' * 5000), "config.json cannot be read: .*nested"),
    "tokenizer: binary": (_spoil("tokenizer.json", bytes(range(256))), "at its tokenizer"),
    "tokenizer: another object": (_spoil("tokenizer.json", '{"a": 1}'), "at its tokenizer: KeyError: 'added_tokens'"),
    "tokenizer: no model": (_spoil("tokenizer.json", '{"added_tokens": [], "model": {"type": "x"}}'), "at its tokenizer"),
    "tokenizer: nested": (_spoil("tokenizer.json", "[" * 100_000), "at its tokenizer: a file is nested too deep"),
    "tokenizer settings: a list": (_spoil("tokenizer_config.json", "[]"), "at its tokenizer"),
    "tokenizer: empty": (
        _spoil("tokenizer.json", '{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}'),
        "tokenizer",
    ),
    "tokenizer: of another model": (
        _shifted_vocabulary,
        r"the tokenizer gives token 100,\d+, and the model has embeddings for 500",
    ),
    "weights: empty": (_spoil("model.safetensors", b""), "model.safetensors is truncated"),
    "weights: binary": (_spoil("model.safetensors", bytes(range(256)) * 10), "model.safetensors has a header"),
    "weights: one is missing": (_without_weight, "lacks weights .* such as transformer.h.0.mlp.c_fc.weight"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_refused_with_what_is_broken(folder: Path, name: str) -> None:
    spoil, said = BROKEN[name]
    spoil(folder)
    with pytest.raises(ModelError, match=said):
        load_model(str(folder)).text.prompt("Angola is in")


@pytest.mark.parametrize("name", ["m" * 200_000, "a\0b"], ids=["long", "NUL"])
def test_what_cannot_be_a_name_is_refused_in_few_words(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(name)
    assert len(str(caught.value)) < 300
