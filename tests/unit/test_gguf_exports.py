"""Exports to GGUF: what is written, and that llama.cpp answers with it as transformers does with the patch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_files import write_gguf
from llama_cpp import probabilities
from random_models import random_model
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedTokenizerFast

from bluedit.edits import LowRank, Patch
from bluedit.edits.export import rounding
from bluedit.edits.export.blueprint import Blueprint, read_blueprint, with_original_file
from bluedit.edits.export.card import card
from bluedit.edits.export.conversion import convert
from bluedit.edits.export.gguf_files import TYPES, find_type
from bluedit.edits.export.gguf_lora import export_gguf_lora
from bluedit.edits.export.gguf_model import export_gguf, export_gguf_from_folder
from bluedit.edits.export.outputs import write_card
from bluedit.errors import InputError, ModelError, PatchError, SettingsError
from bluedit.models import EditableModel, load_model

MakePatch = Callable[..., Patch]
_SIZES: dict[str, Any] = {"vocab_size": 500, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
LLAMA = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=96, pad_token_id=None, tie_word_embeddings=False, **_SIZES,
)  # fmt: skip
GPT2 = GPT2Config(n_embd=64, n_layer=3, n_head=4, n_positions=96, n_inner=96, **_SIZES)
PROMPTS = [[7, 30, 211, 19], [400, 5, 5, 17, 88, 301], [3]]


@pytest.fixture(scope="module")
def folders(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a Llama and a GPT-2, and the Llama's GGUF files as llama.cpp's converter would write them."""
    place = tmp_path_factory.mktemp("gguf")
    for name, config in (("llama", LLAMA), ("gpt2", GPT2)):
        model = random_model(config)
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    llama = random_model(LLAMA)
    files = {kind: write_gguf(place / f"{kind}.gguf", llama, tokenizer, kind) for kind in ("F32", "Q4_1")}
    return {"llama": place / "llama", "gpt2": place / "gpt2", **files}


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, EditableModel]:
    return {name: load_model(str(path), device="cpu") for name, path in folders.items()}


def banned(model: EditableModel) -> list[int]:
    """The end, and tokens that are no whole characters: llama.cpp does not report them."""
    return [0, *(token for token in range(500) if "\ufffd" in model.tokenizer.decode([token]))]


def answers(model: EditableModel, prompts: list[list[int]], tokens: int) -> list[list[tuple[int, float]]]:
    """Greedy answers of a model of transformers with their log-probabilities, token by token."""
    found: list[list[tuple[int, float]]] = []
    for prompt in prompts:
        ids, said = list(prompt), []
        for _ in range(tokens):
            with torch.no_grad():
                log_probs = model.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            token = int(log_probs.index_fill(0, torch.tensor(banned(model)), -torch.inf).argmax())
            said.append((token, float(log_probs[token])))
            ids.append(said[-1][0])
        found.append(said)
    return found


def assert_alike(
    model: EditableModel, file: Path, expected: list[list[tuple[int, float]]], adapter: Path | None = None, within: float = 0.02
) -> None:
    """llama.cpp gives the same tokens, with the same probabilities but for its own rounding."""
    got = probabilities(file, PROMPTS, len(expected[0]), adapter, 96, banned(model))
    assert [[token for token, _ in one] for one in got] == [[token for token, _ in one] for one in expected]
    np.testing.assert_allclose(
        [value for one in got for _, value in one], [value for one in expected for _, value in one], atol=within
    )


def contents(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


# -- from a GGUF file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "Q4_1"])
def test_only_the_changed_tensors_differ_from_the_original_file(
    folders: dict[str, Path], models: dict[str, EditableModel], make_patch: MakePatch, tmp_path: Path, kind: str
) -> None:
    """Settings and all other tensors are those of the file, byte for byte; the changed ones hold W + D."""
    patch, out = make_patch(models[kind], (0, 2)), tmp_path / "out.gguf"
    exported = export_gguf(patch, out, read_blueprint(str(folders[kind])), kind="f32")
    before, after = contents(folders[kind]), contents(out)
    changed = {"blk.0.ffn_down.weight", "blk.2.ffn_down.weight"}
    assert list(before) == list(after)
    assert {part.stored for part in exported.parts} == changed
    for name, tensor in before.items():
        same = tensor.tensor_type == after[name].tensor_type and np.array_equal(tensor.data, after[name].data)
        assert same == (name not in changed), name
    with patch.applied(models[kind]):
        expected = models[kind].model.get_parameter("model.layers.2.mlp.down_proj.weight").detach().numpy().copy()
    np.testing.assert_array_equal(after["blk.2.ffn_down.weight"].data, expected)
    old, new = gguf.GGUFReader(folders[kind]).fields, gguf.GGUFReader(out).fields
    assert all(new[name].contents() == field.contents() for name, field in old.items() if not name.startswith("GGUF."))
    assert {name for name in new if name not in old} == {"bluedit.patch", "bluedit.version", "bluedit.facts"}
    assert new["bluedit.patch"].contents() == patch.digest


def test_a_patched_file_answers_in_llama_cpp_as_the_patch_in_transformers(
    folders: dict[str, Path], models: dict[str, EditableModel], make_patch: MakePatch, tmp_path: Path
) -> None:
    patch = make_patch(models["F32"], (0, 1), scale=0.3)
    export_gguf(patch, tmp_path / "out.gguf", read_blueprint(str(folders["F32"])))
    before = answers(models["F32"], PROMPTS, 5)
    with patch.applied(models["F32"]):
        expected = answers(models["F32"], PROMPTS, 5)
    assert [one[0][0] for one in before] != [one[0][0] for one in expected], "the patch changes nothing here"
    assert_alike(models["F32"], tmp_path / "out.gguf", expected)
    assert_alike(models["F32"], folders["F32"], before)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_what_it_says_and_its_error_is_measured(
    folders: dict[str, Path], models: dict[str, EditableModel], make_patch: MakePatch, tmp_path: Path, kind: str
) -> None:
    patch, out = make_patch(models["F32"], (1,)), tmp_path / "out.gguf"
    exported = export_gguf(patch, out, read_blueprint(str(folders["F32"])), kind=kind, all_tensors=True)
    (part,) = exported.parts
    (name,), (change,) = patch.changes, patch.changes.values()
    assert part.kind == kind.upper()
    tensors = contents(out)
    assert tensors["blk.1.ffn_down.weight"].tensor_type.name == tensors["blk.0.attn_q.weight"].tensor_type.name == part.kind
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    loaded = load_model(str(out), device="cpu").model.get_parameter(name).detach()
    with patch.applied(models["F32"]):
        error = (loaded - models["F32"].model.get_parameter(name)).detach()
    assert part.error == pytest.approx(error.norm().item() / change.norm(), abs=1e-6)
    assert part.error_at_keys is not None
    assert part.error_at_keys <= part.error + 1e-12
    assert bool(exported.warnings) == (part.error_at_keys > rounding.LOST)


def test_an_edit_that_is_smaller_than_the_step_is_warned_about(
    folders: dict[str, Path], models: dict[str, EditableModel], make_patch: MakePatch, tmp_path: Path
) -> None:
    base, small = read_blueprint(str(folders["F32"])), make_patch(models["F32"], (1,), scale=0.003)
    exported = export_gguf(small, tmp_path / "small.gguf", base, kind="q4_0")
    assert "may lose the edit" in exported.warnings[0]
    large = make_patch(models["F32"], (1,), scale=3.0)
    assert not export_gguf(large, tmp_path / "large.gguf", base, kind="q8_0").warnings
    tiny = make_patch(models["F32"], (1,), scale=1e-5)
    kinds = [export_gguf(one, tmp_path / f"{n}.gguf", base).parts[0].kind for n, one in enumerate((large, tiny))]
    assert kinds == ["F16", "F32"], "auto takes float16 unless that loses the edit"


def test_a_file_of_another_model_is_refused_unless_asked_for(
    folders: dict[str, Path], models: dict[str, EditableModel], make_patch: MakePatch, tmp_path: Path
) -> None:
    patch, out = make_patch(models["llama"], (1,)), tmp_path / "out.gguf"
    base = read_blueprint(str(folders["Q4_1"]))
    with pytest.raises(PatchError, match="does not hold the values"):
        export_gguf(patch, out, base)
    assert not list(tmp_path.iterdir())
    export_gguf(patch, out, base, check=False)
    export_gguf(patch, tmp_path / "same.gguf", read_blueprint(str(folders["F32"])))  # the same numbers as the folder's


def test_only_files_of_ours_are_replaced(
    folders: dict[str, Path], models: dict[str, EditableModel], make_patch: MakePatch, tmp_path: Path
) -> None:
    patch, out, base = make_patch(models["F32"]), tmp_path / "out.gguf", read_blueprint(str(folders["F32"]))
    exported = export_gguf(patch, out, base)
    assert "ffn_down" not in write_card(exported, card(exported, patch)).name
    with pytest.raises(InputError, match="exists already"):
        export_gguf(patch, out, base)
    export_gguf(patch, out, base, replace=True)
    with pytest.raises(PatchError, match="own file"):
        export_gguf(patch, folders["F32"], base, replace=True)
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(folders["F32"].read_bytes())
    with pytest.raises(InputError, match="is not a GGUF file that bluedit wrote"):
        export_gguf(patch, foreign, base, replace=True)
    (tmp_path / "new.md").write_text("my notes")
    with pytest.raises(InputError, match="is not a model card"):
        export_gguf(patch, tmp_path / "new.gguf", base)


@pytest.mark.parametrize(("kind", "said"), [("q4_k", "llama-quantize"), ("f17", "unknown type"), ("q8", "Did you mean 'q8_0'")])
def test_types_that_cannot_be_written_say_what_to_do(kind: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        find_type(kind)


# -- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", ["F32", "Q4_1"])
def test_an_adapter_beside_an_untouched_file_answers_as_the_patch(
    folders: dict[str, Path], models: dict[str, EditableModel], make_patch: MakePatch, tmp_path: Path, beside: str
) -> None:
    """The ranks differ, so the file pads one; a quantised file is computed with in eight bits, so answers move further."""
    wide, narrow = make_patch(models[beside], (0,), facts=5, scale=0.3), make_patch(models[beside], (1,), facts=2, scale=0.3)
    patch = Patch(
        {**wide.changes, **narrow.changes},
        wide.manifest.model_copy(update={"weights": {**wide.manifest.weights, **narrow.manifest.weights}}),
    )
    exported = export_gguf_lora(patch, tmp_path / "lora.gguf", read_blueprint(str(folders[beside])))
    assert [(part.rank, part.error) for part in exported.parts] == [(5, 0.0), (2, 0.0)]
    shapes = {name: tuple(int(size) for size in tensor.shape) for name, tensor in contents(tmp_path / "lora.gguf").items()}
    assert shapes["blk.1.ffn_down.weight.lora_a"] == (96, 5)
    assert shapes["blk.1.ffn_down.weight.lora_b"] == (5, 64)
    with patch.applied(models[beside], check=False):
        expected = answers(models[beside], PROMPTS, 1 if beside == "Q4_1" else 5)
    assert_alike(models[beside], folders[beside], expected, tmp_path / "lora.gguf", within=0.3 if beside == "Q4_1" else 0.02)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_converted_folders_and_their_adapters_answer_as_the_patch(
    folders: dict[str, Path], models: dict[str, EditableModel], make_patch: MakePatch, tmp_path: Path, name: str
) -> None:
    """A folder's file, the patched one, and the adapter beside the unpatched: rows in llama.cpp's order, nothing transposed."""
    model, base = models[name], read_blueprint(str(folders[name]))
    patch = make_patch(model, (0, 2), scale=0.3)
    nothing = Patch({key: LowRank(0 * one.residual_DN, one.gain_FN) for key, one in _low_rank(patch)}, patch.manifest)
    conversion = convert(model.model, model.tokenizer, name)
    export_gguf_from_folder(nothing, tmp_path / "plain.gguf", base, conversion, kind="f32")
    exported = export_gguf_from_folder(patch, tmp_path / "patched.gguf", base, conversion, kind="f32")
    assert all(part.error == 0 for part in exported.parts)
    export_gguf_lora(patch, tmp_path / "lora.gguf", base)
    assert_alike(model, tmp_path / "plain.gguf", answers(model, PROMPTS, 5))
    with patch.applied(model):
        expected = answers(model, PROMPTS, 5)
    assert_alike(model, tmp_path / "patched.gguf", expected)
    assert_alike(model, tmp_path / "plain.gguf", expected, tmp_path / "lora.gguf")


def _low_rank(patch: Patch) -> list[tuple[str, LowRank]]:
    return [(name, change) for name, change in patch.changes.items() if isinstance(change, LowRank)]


def test_a_converted_file_is_the_model_again(
    folders: dict[str, Path], models: dict[str, EditableModel], make_patch: MakePatch, tmp_path: Path
) -> None:
    """Read back by transformers: weights bit for bit, the tokenizer, and the sizes."""
    model, patch = models["llama"], make_patch(models["llama"], (1,))
    base, conversion = read_blueprint(str(folders["llama"])), convert(model.model, model.tokenizer, "llama")
    export_gguf_from_folder(patch, tmp_path / "out.gguf", base, conversion, kind="f32")
    again = load_model(str(tmp_path / "out.gguf"), device="cpu")
    with patch.applied(model):
        for name, weight in model.model.named_parameters():
            assert torch.equal(again.model.get_parameter(name), weight), name
    assert again.tokenizer("Ædä was born in 1990.")["input_ids"] == model.tokenizer("Ædä was born in 1990.")["input_ids"]


def test_what_cannot_be_converted_says_what_to_do(
    models: dict[str, EditableModel], tokenizer: PreTrainedTokenizerFast, make_patch: MakePatch, tmp_path: Path
) -> None:
    neox = random_model(
        GPTNeoXConfig(hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4, **_SIZES)
    )
    with pytest.raises(ModelError, match=r"'gpt_neox' are not converted.*convert_hf_to_gguf"):
        convert(neox, tokenizer, "neox")
    scaled = LlamaConfig(
        **{**LLAMA.to_dict(), "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
    )
    with pytest.raises(ModelError, match="scaling of rotary positions"):
        convert(random_model(scaled), tokenizer, "scaled")
    neox.save_pretrained(tmp_path / "neox")
    tokenizer.save_pretrained(tmp_path / "neox")
    editable = EditableModel(neox, tokenizer)
    exported = export_gguf_lora(make_patch(editable, (1,)), tmp_path / "lora.gguf", read_blueprint(str(tmp_path / "neox")))
    assert [part.stored for part in exported.parts] == ["blk.1.ffn_down.weight"], "an adapter needs no conversion"


def test_a_vocabulary_that_cannot_be_named_is_refused(models: dict[str, EditableModel], corpus_texts: list[str]) -> None:
    from conventions import CONVENTIONS

    for name in ("llama2", "t5", "prefix_space", "lowercase"):
        with pytest.raises(ModelError, match="tokenizer is not one whose rules"):
            convert(models["llama"].model, CONVENTIONS[name](corpus_texts[:40]), "llama")
    assert (
        convert(models["llama"].model, CONVENTIONS["llama3"](corpus_texts[:40]), "l").settings["tokenizer.ggml.pre"].value
        == "llama-bpe"
    )


# -- the file that a folder was made from ----------------------------------------------------------------------------


def test_a_folder_that_was_not_got_has_no_original_file(folders: dict[str, Path]) -> None:
    base = read_blueprint(str(folders["llama"]))
    assert with_original_file(base) is base
    assert isinstance(base, Blueprint)
    assert with_original_file(read_blueprint(str(folders["Q4_1"]))).gguf is not None
