"""GGUF files as models: dequantised on load, saved as ordinary folders, and refused with a reason."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import TEMPLATE, write_gguf
from random_models import random_model
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

import bluedit
from bluedit.doctor import Examination, examine
from bluedit.errors import ModelError
from bluedit.methods import MEMIT
from bluedit.models import gguf as gguf_module
from bluedit.models import load_model
from bluedit.models.gguf import read_gguf
from bluedit.models.loading import model_folder

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return random_model(
        LlamaConfig(
            vocab_size=500, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=96, tie_word_embeddings=True, rms_norm_eps=1e-5,
            initializer_range=0.3, bos_token_id=0, eos_token_id=0, pad_token_id=None,
        )
    )  # fmt: skip


@pytest.fixture
def write(llama: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Write:
    """Writes the tiny Llama as a GGUF file."""

    def write(kind: str = "F16", name: str = "tiny.gguf", **options: Any) -> Path:
        return write_gguf(tmp_path / name, llama, tokenizer, kind, **options)

    return write


def _down(model: Any, layer: int = 1) -> np.ndarray:
    return model.model.layers[layer].mlp.down_proj.weight.detach().numpy()


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_numbers_are_those_that_the_blocks_stand_for(write: Write, llama: PreTrainedModel, kind: str) -> None:
    model = load_model(str(write(kind)), device="cpu").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    stored = gguf.GGMLQuantizationType[kind]
    expected = gguf.quants.dequantize(gguf.quants.quantize(_down(llama), stored), stored)
    np.testing.assert_array_equal(_down(model), expected)
    np.testing.assert_array_equal(model.model.norm.weight.detach().numpy(), llama.model.norm.weight.detach().numpy())


def test_a_file_without_blocks_computes_what_the_model_does(write: Write, llama: PreTrainedModel) -> None:
    model = load_model(str(write("F32")), device="cpu").model
    ids = torch.arange(1, 40)[None]
    torch.testing.assert_close(model(ids).logits, llama(ids).logits, rtol=1e-4, atol=1e-4)


def test_tokenizer_and_chat_template_are_the_file_s(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write("Q8_0")
    (path.parent / "tokenizer.json").write_text("{}")  # what lies beside the file is not looked at
    (path.parent / "config.json").write_text("{}")
    loaded = load_model(str(path), device="cpu").tokenizer
    for text in ("Ada Example was born in 1987 in Paris.", "  two  spaces\n\nÆdä 東京", "<|end|> it"):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.bos_token, loaded.eos_token) == ("<|end|>", "<|end|>")
    assert loaded.chat_template == TEMPLATE
    chat = load_model(str(path), device="cpu", chat=True)
    assert chat.tokenizer.decode(chat.text.prompt("Hello")) == "user: Hello\nassistant:"


def test_vocabularies_with_single_digits_split_numbers(write: Write) -> None:
    plain, digits = (load_model(str(write(split=split)), device="cpu").tokenizer for split in ("gpt-2", "smollm"))

    def pieces(tokenizer: Any) -> list[str]:
        return [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12 b")]

    assert pieces(plain) == ["a", "Ġ", "Ġ12", "Ġb"]
    assert pieces(digits) == ["a", "ĠĠ", "1", "2", "Ġb"]


def test_the_dequantised_model_is_an_ordinary_one(write: Write, tmp_path: Path) -> None:
    path = write("Q4_0")
    model = load_model(str(path), device="cpu")
    assert model.fingerprint() == load_model(str(path), device="cpu", dtype="auto").fingerprint()
    assert getattr(model.model.config, "quantization_config", None) is None
    model.model.save_pretrained(tmp_path / "folder")
    model.tokenizer.save_pretrained(tmp_path / "folder")
    again = load_model(str(tmp_path / "folder"), device="cpu")
    assert again.fingerprint() == model.fingerprint()
    assert again.tokenizer("Ada 12  b")["input_ids"] == model.tokenizer("Ada 12  b")["input_ids"]
    assert again.tokenizer.chat_template == TEMPLATE
    assert model_folder(str(path)) is None


def test_another_type_of_numbers_can_be_asked_for(write: Write) -> None:
    model = load_model(str(write("Q8_0")), device="cpu", dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_progress_is_told_and_transformers_prints_nothing(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int | None]] = []
    load_model(str(write("Q8_0")), device="cpu", progress=lambda *one: told.append(one))
    counted = [advance for task, advance, _ in told if task == "dequantising"]
    assert sum(counted) == 3 * 9 + 2
    assert "quantizing" not in capfd.readouterr().err


def test_a_file_s_copy_is_edited_and_put_back(write: Write, moments: Any) -> None:
    path = write("Q8_0")
    content = path.read_bytes()
    model = load_model(str(path), device="cpu")
    before = model.fingerprint()
    patch = bluedit.edit(
        model,
        [bluedit.Fact("{} was born in", "Ada Example", "Paris")],
        layers=[1, 2],
        corpus=moments(96),
        settings={"v_num_grad_steps": 2, "lambda": 5},
        templates=("{}",),
    )
    patch.apply(model)
    assert model.fingerprint() != before
    patch.revert(model)
    assert model.fingerprint() == before
    assert path.read_bytes() == content
    assert patch.manifest.model == str(path)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for content in (b"", b"GGU", b"PK\x03\x04 a zip", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="is not a GGUF file"):
            load_model(str(path))
    with pytest.raises(ModelError, match=r"the GGUF file 'absent\.gguf' does not exist"):
        load_model("absent.gguf")


def test_a_file_that_is_cut_off_anywhere_is_refused(write: Write) -> None:
    path = write("Q8_0")
    content = path.read_bytes()
    for length in (*range(4, 400, 7), *range(400, len(content), len(content) // 60), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match="is cut off"):
            read_gguf(path)
        if length % 5 == 0:
            assert not examine(str(path), MEMIT).editable


def test_lengths_beyond_all_measure_end_at_once(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    text = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + b"name"
    listed = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**62)
    for content in (text, listed):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="is cut off"):
            read_gguf(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": "rwkv-of-tomorrow"}, "transformers cannot make a model of .*architecture rwkv-of-tomorrow"),
        ({"split.count": 3}, "is one of 3 parts of a model; join them"),
    ],
    ids=["architecture", "parts"],
)
def test_what_cannot_be_converted_is_refused(write: Write, options: dict[str, Any], said: str) -> None:
    path = write(**options)
    with pytest.raises(ModelError, match=said):
        load_model(str(path))
    assert not examine(str(path), MEMIT).editable


def test_sizes_of_no_model_are_refused(write: Write) -> None:
    content = write().read_bytes()
    key = b"llama.context_length"
    at = content.index(key) + len(key) + 4
    path = write()
    path.write_bytes(content[:at] + struct.pack("<I", 2**32 - 1) + content[at + 4 :])
    with pytest.raises(ModelError, match="asks for max_position_embeddings = 4294967295"):
        load_model(str(path))


@pytest.mark.parametrize("number", [99, 24], ids=["unknown", "whole numbers"])
def test_types_that_cannot_be_dequantised_are_named(write: Write, number: int) -> None:
    path = write("Q8_0")
    content = path.read_bytes()
    name = b"blk.1.ffn_down.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8
    assert struct.unpack_from("<I", content, at) == (8,)
    path.write_bytes(content[:at] + struct.pack("<I", number) + content[at + 4 :])
    with pytest.raises(ModelError, match=rf"tensors of type {'type 99' if number == 99 else 'I8'}, which"):
        load_model(str(path))
    assert not examine(str(path), MEMIT).editable


def test_other_versions_of_the_format_are_named(write: Write) -> None:
    path = write()
    content = path.read_bytes()
    for version in (1, 4, 3 << 24):
        path.write_bytes(content[:4] + struct.pack("<I", version) + content[8:])
        with pytest.raises(ModelError, match=f"is of version {version} of GGUF"):
            load_model(str(path))


def test_without_the_package_it_is_said_how_to_get_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("Q8_0")
    monkeypatch.setattr(gguf_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'bluedit\[gguf\]'"):
        load_model(str(path))
    assert _said(examine(str(path), MEMIT), "precision").startswith("Q8_0: 22 tensors")


# -- doctor ------------------------------------------------------------------------------------------------------------


def _said(found: Examination, name: str) -> str:
    return next(check.message for check in found.checks if check.name == name)


def test_doctor_says_what_is_in_the_file_and_what_an_edit_of_it_means(write: Write) -> None:
    path = write("Q8_0")
    found = examine(str(path), MEMIT, device="cpu")
    assert found.editable
    assert _said(found, "model") == f"GGUF file {path}"
    precision = _said(found, "precision")
    assert precision.startswith("Q8_0: 22 tensors, F32: 7; dequantised to float32")
    assert "the file stays as it is" in precision
    details = next(check.details for check in found.checks if check.name == "precision")
    assert details["tensors"] == {"Q8_0": 22, "F32": 7}
    assert "architecture llama" in _said(found, "configuration")
    assert "a chat template" in _said(found, "tokenizer")
    memory = next(check.details for check in found.checks if check.name == "memory")
    assert memory["dtype"] == "float32"


def test_an_unknown_way_to_split_texts_is_told(write: Write) -> None:
    path = write(split="of-tomorrow")
    assert "pre-tokenizer, 'of-tomorrow', is unknown" in _said(examine(str(path), MEMIT), "precision")
    with pytest.warns(UserWarning, match="of-tomorrow"):
        load_model(str(path), device="cpu")
