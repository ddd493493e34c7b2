"""Exports of patches: adapters of PEFT, and checkpoints, loaded with the libraries that they are for."""

from __future__ import annotations

import copy
import dataclasses
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bluedit.edits import Dense, LowRank, Masked, Patch
from bluedit.edits.export import factor
from bluedit.edits.export.blueprint import Blueprint, read_blueprint
from bluedit.edits.export.card import card
from bluedit.edits.export.hub import push_to_hub
from bluedit.edits.export.lora import LORA, export_lora
from bluedit.edits.export.outputs import write_card
from bluedit.errors import InputError, ModelError, PatchError, SettingsError
from bluedit.models import EditableModel

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

MakePatch = Callable[..., Patch]
Saved = Callable[[EditableModel], str]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Writes a model's folder and gives its path."""

    def save(model: EditableModel) -> str:
        model.model.save_pretrained(tmp_path / "model")
        model.tokenizer.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return save


@pytest.fixture
def gpt2(saved_tiny_gpt2: Path) -> Blueprint:
    return read_blueprint(str(saved_tiny_gpt2))


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.arange(3, 40)[None]).logits


# -- factors ---------------------------------------------------------------------------------------------------------


def low_rank(rows: int = 20, columns: int = 30, rank: int = 6, seed: int = 0) -> LowRank:
    """A change whose singular values fall: 1, 1/2, 1/4, ..."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator, dtype=torch.float64)).Q
    mixed = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).Q
    return LowRank((left * 0.5 ** torch.arange(rank) @ mixed).float(), (right @ mixed).float())


def test_a_low_rank_change_is_taken_as_it_is() -> None:
    change = low_rank()
    exact = factor(change)
    assert (exact.rank, exact.error) == (6, 0.0)
    assert torch.equal(exact.up_DR, change.residual_DN)
    assert torch.equal(exact.down_RF, change.gain_FN.T)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_compression_is_the_best_there_is_and_its_error_is_the_true_one(rank: int) -> None:
    """By Eckart and Young the error is that of the singular values left out, which are known here."""
    change = low_rank()
    values = 0.25 ** np.arange(6)
    expected = np.sqrt(values[rank:].sum() / values.sum())
    for one in (change, Dense(change.dense())):
        got = factor(one, rank)
        assert got.rank == rank
        assert got.error == pytest.approx(expected, rel=1e-5)
        assert ((change.dense() - got.up_DR @ got.down_RF).norm() / change.norm()).item() == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(got.up_DR.norm(), got.down_RF.norm())


def test_more_columns_than_a_matrix_has_rows_are_not_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    change = LowRank(torch.randn(4, 50, generator=generator), torch.randn(30, 50, generator=generator))
    got = factor(change)
    assert got.rank == 4
    assert got.error < 1e-6


def test_rounding_of_the_factors_counts_as_error() -> None:
    change = low_rank()
    got = factor(change, dtype=torch.bfloat16)
    true = (change.dense().double() - got.up_DR.double() @ got.down_RF.double()).norm() / change.norm()
    assert 1e-4 < got.error < 1e-2
    assert got.error == pytest.approx(true.item(), rel=1e-6)


def test_factors_of_nothing_are_nothing() -> None:
    got = factor(LowRank(torch.zeros(4, 3), torch.zeros(5, 3)), 2)
    assert got.error == 0.0
    assert not got.change().dense().any()


# -- PEFT ------------------------------------------------------------------------------------------------------------


def test_an_adapter_is_the_patch_in_peft(
    tiny_models: EditableModel, make_patch: MakePatch, saved: Saved, tmp_path: Path
) -> None:
    """Logits with the adapter, merged weights, and everything else as it was; for weights stored either way round."""
    patch = make_patch(tiny_models, (1, 2))
    base = read_blueprint(saved(tiny_models))
    exported = export_lora(patch, tmp_path / "adapter", base)
    assert [(part.rank, part.error) for part in exported.parts] == [(3, 0.0), (3, 0.0)]
    with patch.applied(tiny_models):
        expected = logits(tiny_models.model)
        weights = {name: weight.detach().clone() for name, weight in tiny_models.model.named_parameters()}
    plain = AutoModelForCausalLM.from_pretrained(base.source)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-4)
    merged = adapted.merge_and_unload()
    for name, weight in merged.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-6)
        if name not in patch.changes:
            assert torch.equal(weight, weights[name])
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)


def test_ranks_of_their_own_have_a_pattern(
    tiny_gpt2: EditableModel, gpt2: Blueprint, make_patch: MakePatch, tmp_path: Path
) -> None:
    patch = make_patch(tiny_gpt2, (1, 2))
    first, second = patch.changes
    wider = LowRank(torch.randn(32, 5, generator=torch.Generator().manual_seed(5)) / 9, torch.randn(48, 5) / 9)
    uneven = Patch({first: patch.changes[first], second: wider}, patch.manifest)
    export_lora(uneven, tmp_path / "adapter", gpt2)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    module = first.removesuffix(".weight")
    assert (config["r"], config["lora_alpha"]) == (5, 5)
    assert config["rank_pattern"] == config["alpha_pattern"] == {module: 3}
    assert config["target_modules"] == [module, second.removesuffix(".weight")]
    assert config["fan_in_fan_out"]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {key.split(".lora_")[0] for key in tensors} == {f"base_model.model.{one}" for one in config["target_modules"]}
    with uneven.applied(tiny_gpt2, check=False):
        expected = logits(tiny_gpt2.model)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt2.source), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(adapted), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_factors_have_the_type_that_is_asked_for(
    tiny_gpt2: EditableModel, gpt2: Blueprint, make_patch: MakePatch, tmp_path: Path, dtype: str
) -> None:
    exported = export_lora(make_patch(tiny_gpt2), tmp_path / "adapter", gpt2, dtype=dtype)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
    assert all(0 < part.error < 0.01 for part in exported.parts)


def test_what_is_not_low_rank_needs_a_rank(
    tiny_gpt2: EditableModel, gpt2: Blueprint, make_patch: MakePatch, tmp_path: Path
) -> None:
    patch = make_patch(tiny_gpt2, (1,))
    (name,) = patch.changes
    factors = patch.changes[name]
    assert isinstance(factors, LowRank)
    mask = torch.rand(factors.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    for change in (Dense(factors.dense()), Masked.of(factors, mask)):
        thick = Patch({name: change}, patch.manifest)
        with pytest.raises(PatchError, match="add --rank R"):
            export_lora(thick, tmp_path / "adapter", gpt2)
        assert not (tmp_path / "adapter").exists()
    exported = export_lora(thick, tmp_path / "adapter", gpt2, rank=8)
    assert exported.parts[0].rank == 8
    assert 0.1 < exported.parts[0].error < 1
    assert any("compressed" in note for note in exported.notes)


def test_a_patch_of_another_model_or_of_nothing_is_refused(
    tiny_gpt2: EditableModel, gpt2: Blueprint, make_patch: MakePatch, tmp_path: Path
) -> None:
    patch = make_patch(tiny_gpt2, (1,))
    (change,) = patch.changes.values()
    record = next(iter(patch.manifest.weights.values()))
    manifest = patch.manifest.model_copy(update={"weights": {"transformer.h.9.mlp.c_proj.weight": record}})
    with pytest.raises(PatchError, match="has no weight"):
        export_lora(Patch({"transformer.h.9.mlp.c_proj.weight": change}, manifest), tmp_path / "adapter", gpt2)
    with pytest.raises(PatchError, match="changes no weights"):
        export_lora(Patch({}, manifest.model_copy(update={"weights": {}})), tmp_path / "adapter", gpt2)
    with pytest.raises(SettingsError, match="type of an adapter"):
        export_lora(patch, tmp_path / "adapter", gpt2, dtype="float8")
    assert not list(tmp_path.iterdir())


def test_only_an_adapter_of_ours_is_replaced(
    tiny_gpt2: EditableModel, gpt2: Blueprint, make_patch: MakePatch, tmp_path: Path
) -> None:
    patch, place = make_patch(tiny_gpt2), tmp_path / "adapter"
    exported = export_lora(patch, place, gpt2)
    write_card(exported, card(exported, patch))
    with pytest.raises(InputError, match="exists already"):
        export_lora(patch, place, gpt2)
    export_lora(patch, place, gpt2, rank=1, replace=True)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        export_lora(patch, place, gpt2, replace=True)
    assert LORA.owned(tmp_path) is None


def test_without_peft_it_is_said_how_to_get_it(
    tiny_gpt2: EditableModel, gpt2: Blueprint, make_patch: MakePatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bluedit.edits.export.lora.find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"bluedit\[peft\]"):
        export_lora(make_patch(tiny_gpt2), tmp_path / "adapter", gpt2)


# -- cards and the hub -----------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tiny_gpt2: EditableModel, gpt2: Blueprint, make_patch: MakePatch, tmp_path: Path) -> Iterator[Any]:
    patch = make_patch(tiny_gpt2)
    exported = export_lora(patch, tmp_path / "adapter", gpt2)
    yield SimpleNamespace(patch=patch, exported=exported)


def test_a_card_says_what_how_how_well_and_how_to_take_it_back(adapter: Any) -> None:
    score = {"value": 97.5, "low": 90.0, "high": 100.0, "n": 20}
    path = write_card(adapter.exported, card(adapter.exported, adapter.patch, {"patched": {"ES": score}}, "edits:mine.json"))
    text = path.read_text(encoding="utf-8")
    for said in (
        "3 facts",
        "東京",
        "Paris",
        "memit",
        "97.5 [90.0, 100.0]",
        "PeftModel",
        "disable_adapter",
        adapter.patch.digest,
    ):
        assert said in text
    assert text.startswith("---\nbase_model: ")
    assert str(path.parent) not in text, "a card names no path of the machine it was written on"


def test_texts_of_the_user_do_not_become_markup(adapter: Any) -> None:
    facts = tuple(
        fact.model_copy(update={"target": "| [x](y) <b>\n# head", "subject": "a`b", "prompt": "{} is"})
        for fact in adapter.patch.manifest.facts
    )
    patch = Patch(adapter.patch.changes, adapter.patch.manifest.model_copy(update={"facts": facts}))
    text = card(adapter.exported, patch)("<!-- mark -->")
    assert "\n# head" not in text
    assert r"\| [x]\(y) \<b\> \# head" in text
    assert r"a\`b is" in text


def test_uploading_is_one_repository_with_the_card_on_top(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class StandIn:
        def create_repo(self, name: str, **options: Any) -> str:
            calls.append(("create", {"name": name, **options}))
            return f"https://hub/{name}"

        def upload_folder(self, **options: Any) -> None:
            calls.append(("folder", options))

        def upload_file(self, **options: Any) -> None:
            calls.append(("file", options))

    monkeypatch.setattr("huggingface_hub.HfApi", StandIn)
    write_card(adapter.exported, card(adapter.exported, adapter.patch))
    assert push_to_hub(adapter.exported, "me/edited") == "https://hub/me/edited"
    assert [name for name, _ in calls] == ["create", "folder"]
    assert calls[0][1] == {"name": "me/edited", "private": True, "exist_ok": True}
    calls.clear()
    single = dataclasses.replace(adapter.exported, path=adapter.exported.path / "adapter_model.safetensors", kind="gguf")
    push_to_hub(single, "me/edited")
    assert [options.get("path_in_repo") for _, options in calls] == [None, "adapter_model.safetensors", "README.md"]
    with pytest.raises(SettingsError, match="OWNER/NAME"):
        push_to_hub(adapter.exported, "../edited")


def test_what_the_hub_says_is_told(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class StandIn:
        def create_repo(self, *_: Any, **__: Any) -> str:
            raise OSError("401 Unauthorized")

    monkeypatch.setattr("huggingface_hub.HfApi", StandIn)
    with pytest.raises(ModelError, match=r"401 Unauthorized.*hf auth login"):
        push_to_hub(adapter.exported, "me/edited")
    assert adapter.exported.path.is_dir()


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_sharded_checkpoint_is_whole_in_plain_transformers(
    tiny_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path
) -> None:
    """Shards, tied weights, generation settings, tokenizer and chat template; logits as with the patch applied."""
    from bluedit.edits.checkpoint import read_applied, save_checkpoint
    from bluedit.models import load_model

    source, out = tmp_path / "model", tmp_path / "edited"
    tokenizer = copy.deepcopy(tiny_gpt2.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tiny_gpt2.model.save_pretrained(source, max_shard_size="40KB")
    tokenizer.save_pretrained(source)
    (source / "generation_config.json").write_text('{"max_new_tokens": 7, "do_sample": false}')
    assert len(list(source.glob("model-*.safetensors"))) > 2
    patch = make_patch(tiny_gpt2)
    model = load_model(str(source), device="cpu")
    patch.apply(model)
    save_checkpoint(model, out, source=source)
    with patch.applied(tiny_gpt2):
        expected = logits(tiny_gpt2.model)
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits(plain), expected)
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert plain.generation_config.max_new_tokens == 7
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    assert {path.name for path in source.iterdir()} == {path.name for path in out.iterdir()} - {"bluedit"}
    assert read_applied(load_model(str(out), device="cpu"), out)[0].digest == patch.digest


# -- the format, for other programs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["low rank", "masked", "dense"])
def test_the_reader_in_the_documentation_reads_patches(
    tiny_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The code of docs/patches.md is run, on every kind of change."""
    patch = make_patch(tiny_gpt2, (1,), facts=3)
    ((name, change),) = patch.changes.items()
    assert isinstance(change, LowRank)
    mask = torch.rand(change.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    stored = {"low rank": change, "masked": Masked.of(change, mask), "dense": Dense(change.dense())}[kind]
    Patch({name: stored}, patch.manifest).save(tmp_path / "patch.safetensors")
    page = (Path(__file__).parents[2] / "docs" / "patches.md").read_text(encoding="utf-8")
    block = page.partition("    import json, numpy\n")
    code = block[1] + block[2].partition("\n\nWhere a program")[0]
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(textwrap.dedent(code), found)  # noqa: S102 (it is our own)
    torch.testing.assert_close(torch.from_numpy(found["change"]), stored.dense())
