"""Patches: low-rank algebra, files that come back equal or are refused, and weights that come back bit for bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import bluedit
from bluedit.edits import LowRank, Manifest, Patch
from bluedit.edits.base import applied_patches, original_weights
from bluedit.edits.checkpoint import read_applied, save_checkpoint
from bluedit.edits.manifest import FORMAT_VERSION
from bluedit.errors import InputError, PatchError
from bluedit.facts import Fact
from bluedit.models import EditableModel, load_model
from bluedit.storage.documents import document_text
from bluedit.storage.hashes import hash_tensors
from bluedit.storage.tensors import write_tensors

MakePatch = Callable[..., Patch]

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _bits(model: EditableModel | PreTrainedModel) -> dict[str, Tensor]:
    network = model.model if isinstance(model, EditableModel) else model
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _assert_equal(one: Patch, other: Patch) -> None:
    assert one.manifest == other.manifest
    assert list(one.changes) == list(other.changes)
    for name, change in one.changes.items():
        assert torch.equal(change.residual_DN, other.changes[name].residual_DN), name
        assert torch.equal(change.gain_FN, other.changes[name].gain_FN), name


# -- low-rank algebra --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [0, 1, 3, 60])
def test_norm_is_the_dense_norm(facts: int) -> None:
    change = LowRank.of(_random(32, facts), _random(48, facts, seed=1))
    dense = change.residual_DN.double() @ change.gain_FN.double().T
    assert change.norm() == pytest.approx(dense.norm().item(), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(change.dense().double(), dense, atol=1e-4, rtol=1e-5)
    assert change.rank == facts


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_to_rounds_once(dtype: torch.dtype, transposed: bool) -> None:
    """The sum is the float32 sum, rounded to the weight's type: no rounding of the change before it."""
    change = LowRank.of(_random(32, 3), _random(48, 3, seed=1))
    stored = (_random(48, 32, seed=2) if transposed else _random(32, 48, seed=2)).to(dtype)
    weight_DF = stored.T if transposed else stored
    exact = weight_DF.double() + change.residual_DN.double() @ change.gain_FN.double().T
    place = stored.data_ptr()
    change.add_to(weight_DF)
    assert stored.data_ptr() == place
    spacing = torch.finfo(dtype).eps * exact.abs().clamp_min(1)
    assert ((weight_DF.double() - exact).abs() <= 0.5 * spacing + 1e-5).all()


def test_factors_are_rounded_to_float32() -> None:
    change = LowRank.of(_random(4, 2).bfloat16(), _random(5, 2).double() / 3)
    assert change.residual_DN.dtype == change.gain_FN.dtype == torch.float32


def test_factors_of_a_float64_model_stay_float64() -> None:
    change = LowRank.of(_random(4, 2).double() / 3, _random(5, 2).double() / 3)
    assert change.residual_DN.dtype == change.gain_FN.dtype == torch.float64


@pytest.mark.parametrize(("residual", "gain"), [((4, 2), (5, 3)), ((4,), (5,)), ((4, 2, 1), (5, 2))])
def test_factors_that_do_not_belong_together_are_refused(residual: tuple[int, ...], gain: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        LowRank(torch.zeros(residual), torch.zeros(gain))


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["patch", "patch.safetensors"])
def test_patch_comes_back_equal(tiny_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path, name: str) -> None:
    patch = make_patch(tiny_gpt2)
    assert patch.save(tmp_path / name) == tmp_path / name
    assert (tmp_path / name).is_dir() == (name == "patch")
    _assert_equal(Patch.load(tmp_path / name), patch)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_edit_comes_back_equal(tiny_models: EditableModel, moments: Any, world_facts: tuple[Fact, ...], tmp_path: Path) -> None:
    patch = bluedit.edit(
        tiny_models, world_facts[:2], layers=[1, 2], templates=["{}"], corpus=moments(tiny_models.structure.d_ff),
        settings={"lambda": 1, "v_num_grad_steps": 2},
    )  # fmt: skip
    assert [record.layer for record in patch.manifest.weights.values()] == [1, 2]
    patch.save(tmp_path / "patch")
    loaded = Patch.load(str(tmp_path / "patch"))
    _assert_equal(loaded, patch)
    assert loaded.facts == world_facts[:2]


def test_patch_of_no_facts(own_gpt2: EditableModel, moments: Any, tmp_path: Path) -> None:
    before = _bits(own_gpt2)
    patch = bluedit.edit(own_gpt2, [], layers=[1, 2], templates=["{}"], corpus=moments(48))
    patch.save(tmp_path / "patch")
    loaded = Patch.load(tmp_path / "patch")
    _assert_equal(loaded, patch)
    with loaded.applied(own_gpt2):
        assert _same(_bits(own_gpt2), before)


def test_transposed_factors_are_saved_as_they_are(tiny_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path) -> None:
    """Factors come out of solvers as transposed views, which a file cannot hold."""
    patch = make_patch(tiny_gpt2)
    views = {
        name: LowRank(change.residual_DN.T.clone().T, change.gain_FN.T.clone().T.requires_grad_())
        for name, change in patch.changes.items()
    }
    Patch(views, patch.manifest).save(tmp_path / "patch")
    _assert_equal(Patch.load(tmp_path / "patch"), patch)


@pytest.mark.parametrize("name", ["patch", "patch.safetensors"])
def test_save_replaces_only_when_told_to(tiny_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path, name: str) -> None:
    first, second = make_patch(tiny_gpt2), make_patch(tiny_gpt2, seed=1)
    path = first.save(tmp_path / name)
    with pytest.raises(InputError, match="exists already"):
        second.save(path)
    _assert_equal(Patch.load(path), first)
    second.save(path, replace=True)
    _assert_equal(Patch.load(path), second)


@pytest.mark.parametrize("name", ["patch", "patch.safetensors"])
def test_save_that_fails_leaves_nothing(
    tiny_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(_: Any, path: Any, **__: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bluedit.edits.base.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        make_patch(tiny_gpt2).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_file_holds_no_pickle(tiny_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path) -> None:
    path = make_patch(tiny_gpt2).save(tmp_path / "patch")
    assert sorted(file.name for file in path.iterdir()) == ["patch.json", "patch.safetensors"]
    assert json.loads((path / "patch.json").read_text(encoding="utf-8"))["format"] == "bluedit-patch"


# Hashes are made anew: what is refused here are files that another program put together wrongly, not damaged ones.


def _tensors(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path / "patch.safetensors")
    change(tensors)
    save_file(tensors, path / "patch.safetensors")
    _manifest(path, lambda manifest: manifest.update(hashes=hash_tensors(tensors)))


def _manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((path / "patch.json").read_text(encoding="utf-8"))
    change(manifest)
    (path / "patch.json").write_text(document_text(manifest), encoding="utf-8")


_RESIDUAL = "transformer.h.1.mlp.c_proj.weight.residual"
_GAIN = "transformer.h.2.mlp.c_proj.weight.gain"


def _truncate(path: Path) -> None:
    content = (path / "patch.safetensors").read_bytes()
    (path / "patch.safetensors").write_bytes(content[: len(content) // 2])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated tensors": (_truncate, "cannot be read"),
    "empty tensors": (lambda path: (path / "patch.safetensors").write_bytes(b""), "cannot be read"),
    "no tensors": (lambda path: (path / "patch.safetensors").unlink(), "is not a patch"),
    "no manifest": (lambda path: (path / "patch.json").unlink(), "not a readable patch"),
    "manifest is no JSON": (lambda path: (path / "patch.json").write_text("{"), "not a readable patch"),
    "manifest is no UTF-8": (lambda path: (path / "patch.json").write_bytes(b"\xff\xfe{}"), "not a readable patch"),
    "manifest is a list": (lambda path: (path / "patch.json").write_text("[]"), "not a readable patch"),
    "manifest lacks a part": (lambda path: _manifest(path, lambda m: m.pop("facts")), "not a readable patch"),
    "later version": (
        lambda path: _manifest(path, lambda m: m.update(format_version=FORMAT_VERSION + 1)),
        f"version {FORMAT_VERSION + 1}; this bluedit reads bluedit-patch up to {FORMAT_VERSION}",
    ),
    "another format": (lambda path: _manifest(path, lambda m: m.update(format="lora")), f"is lora version {FORMAT_VERSION}"),
    "a weight too many in the manifest": (
        lambda path: _manifest(path, lambda m: m["weights"].update(other=next(iter(m["weights"].values())))),
        "the change of other cannot be read",
    ),
    "a fact too many in the manifest": (lambda path: _manifest(path, lambda m: m["facts"].append(m["facts"][0])), "facts"),
    "missing tensor": (lambda path: _tensors(path, lambda t: t.pop(_RESIDUAL)), "are not those of a change"),
    "extra tensor": (
        lambda path: _tensors(path, lambda t: t.update(extra=torch.zeros(1))),
        "tensors that its manifest does not name",
    ),
    "another number of columns": (
        lambda path: _tensors(path, lambda t: t.update({_GAIN: torch.zeros(48, 2)})),
        "do not belong together",
    ),
    "one dimension": (lambda path: _tensors(path, lambda t: t.update({_GAIN: torch.zeros(48)})), "do not belong together"),
    "not a number": (lambda path: _tensors(path, lambda t: t[_GAIN].view(-1)[7:8].fill_(float("nan"))), "gain is not finite"),
    "infinite": (
        lambda path: _tensors(path, lambda t: t[_RESIDUAL].view(-1)[7:8].fill_(float("inf"))),
        "residual is not finite",
    ),
    "another type": (lambda path: _tensors(path, lambda t: t.update({_GAIN: t[_GAIN].half()})), "not float32 or float64"),
    "whole numbers": (lambda path: _tensors(path, lambda t: t.update({_GAIN: t[_GAIN].int()})), "not float32 or float64"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder_is_refused(tiny_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path, damage: str) -> None:
    path = make_patch(tiny_gpt2).save(tmp_path / "patch")
    do, message = DAMAGES[damage]
    do(path)
    with pytest.raises(PatchError, match=message) as caught:
        Patch.load(path)
    assert str(path) in str(caught.value)


def test_file_that_is_no_patch_is_refused_as_such(saved_tiny_gpt2: Path) -> None:
    """An ordinary checkpoint is a safetensors file too."""
    with pytest.raises(PatchError, match="no manifest"):
        Patch.load(saved_tiny_gpt2 / "model.safetensors")


def test_truncated_single_file_is_refused(tiny_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path) -> None:
    path = make_patch(tiny_gpt2).save(tmp_path / "patch.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(PatchError, match="not a readable patch"):
        Patch.load(path)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.safetensors"])
def test_missing_patch_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PatchError, match=f"there is no file or folder .*{name}; check the path"):
        Patch.load(tmp_path / name)


def test_summary_is_the_manifest_with_sizes(tiny_gpt2: EditableModel, make_patch: MakePatch) -> None:
    patch = make_patch(tiny_gpt2, facts=3)
    summary = patch.summary()
    assert Manifest.model_validate(summary) == patch.manifest
    assert summary["weights"][_GAIN.removesuffix(".gain")]["rank"] == 3
    assert summary["weights"][_GAIN.removesuffix(".gain")]["bytes"] == 4 * 3 * (32 + 48)
    assert json.loads(json.dumps(summary)) == json.loads(patch.manifest.model_dump_json(exclude={"kind"})) | {
        "weights": summary["weights"]
    }
    assert "3 facts" in repr(patch)


# -- applying and taking back ------------------------------------------------------------------------------------------


@pytest.fixture(params=DTYPES, ids=["float32", "bfloat16", "float16"])
def own(request: pytest.FixtureRequest, tiny_models: EditableModel) -> EditableModel:
    """A copy of each tiny model in each type, to change."""
    return EditableModel(copy.deepcopy(tiny_models.model).to(request.param), tiny_models.tokenizer)


def test_apply_and_revert_are_exact(own: EditableModel, make_patch: MakePatch) -> None:
    patch, before = make_patch(own), _bits(own)
    patch.apply(own)
    for name, value in _bits(own).items():
        if name in patch.changes:
            expected = own.structure.oriented(before[name]).float() + patch.changes[name].dense()
            assert torch.equal(own.structure.oriented(value), expected.to(value.dtype))
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name]), f"{name} is not the patch's business"
    assert applied_patches(own) == (patch,)
    patch.revert(own)
    assert _same(_bits(own), before)
    assert applied_patches(own) == ()
    assert original_weights(own) == {}


def test_plain_model_and_wrapper_are_one(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    patch, before = make_patch(own_gpt2), _bits(own_gpt2)
    patch.apply(own_gpt2.model)
    assert applied_patches(own_gpt2) == (patch,)
    patch.revert(EditableModel(own_gpt2.model, own_gpt2.tokenizer))
    assert _same(_bits(own_gpt2.model), before)


def test_loaded_patch_reverts_the_one_it_equals(own_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path) -> None:
    patch, before = make_patch(own_gpt2), _bits(own_gpt2)
    path = patch.save(tmp_path / "patch")
    Patch.load(path).apply(own_gpt2)
    Patch.load(path).revert(own_gpt2)
    assert _same(_bits(own_gpt2), before)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first, then second", "second, then first"])
def test_two_patches_come_off_in_any_order(own: EditableModel, make_patch: MakePatch, order: tuple[int, int]) -> None:
    before = _bits(own)
    first = make_patch(own, (1, 2))
    first.apply(own)
    second = make_patch(own, (2, 3), seed=1)
    second.apply(own)
    patches = (first, second)
    patches[order[0]].revert(own)
    alone = EditableModel(copy.deepcopy(own.model), own.tokenizer)
    for name, value in before.items():
        alone.model.get_parameter(name).data.copy_(value)
    del alone.model._bluedit_applied
    patches[order[1]].apply(alone, check=False)
    assert _same(_bits(own), _bits(alone)), "what is left is what the other patch makes of the originals"
    patches[order[1]].revert(own)
    assert _same(_bits(own), before)


def test_copies_of_a_patched_model_are_apart(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    patch, before = make_patch(own_gpt2), _bits(own_gpt2)
    patch.apply(own_gpt2)
    patched = _bits(own_gpt2)
    other = copy.deepcopy(own_gpt2.model)
    Patch(patch.changes, patch.manifest).revert(other)
    assert _same(_bits(other), before)
    assert _same(_bits(own_gpt2), patched)
    assert applied_patches(own_gpt2) == (patch,)


def test_applying_twice_is_refused(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    patch, before = make_patch(own_gpt2), _bits(own_gpt2)
    patch.apply(own_gpt2)
    once = _bits(own_gpt2)
    with pytest.raises(PatchError, match="another checkpoint, another precision, or patched already"):
        patch.apply(own_gpt2)
    assert _same(_bits(own_gpt2), once)
    patch.apply(own_gpt2, check=False)
    patch.revert(own_gpt2)
    assert _same(_bits(own_gpt2), once)
    patch.revert(own_gpt2)
    assert _same(_bits(own_gpt2), before)


def test_patch_made_in_single_precision_fits_the_same_values_in_half(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    own_gpt2.model.half()
    single = EditableModel(copy.deepcopy(own_gpt2.model).float(), own_gpt2.tokenizer)
    before = _bits(own_gpt2)
    with make_patch(single).applied(own_gpt2):
        assert not _same(_bits(own_gpt2), before)
    assert _same(_bits(own_gpt2), before)


def test_wrong_model_is_refused_before_any_change(
    tiny_gpt2: EditableModel, other_gpt2: EditableModel, make_patch: MakePatch
) -> None:
    """The first weight fits, only the last does not."""
    patch, before = make_patch(tiny_gpt2), _bits(other_gpt2)
    other_gpt2.weight(1).data.copy_(tiny_gpt2.weight(1))
    before = _bits(other_gpt2)
    with pytest.raises(PatchError, match=r"transformer\.h\.2\.mlp\.c_proj\.weight does not hold the values"):
        patch.apply(other_gpt2)
    assert _same(_bits(other_gpt2), before)
    assert applied_patches(other_gpt2) == ()


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("tiny_models", ["gpt2-square", "gptj", "llama", "gpt-neox"], indirect=True)
def test_other_shapes_and_names_are_refused_whatever_the_check(
    tiny_models: EditableModel, tiny_gpt2: EditableModel, make_patch: MakePatch, check: bool
) -> None:
    with pytest.raises(PatchError, match=r"in this model; the patch was made for tiny|no weight 'transformer"):
        make_patch(tiny_gpt2).apply(tiny_models, check=check)


def test_patch_that_names_a_vector_is_refused(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    patch = make_patch(own_gpt2, (1,))
    (change,), (record,) = patch.changes.values(), patch.manifest.weights.values()
    name = "transformer.h.1.ln_1.weight"
    damaged = Patch({name: change}, patch.manifest.model_copy(update={"weights": {name: record}}))
    with pytest.raises(PatchError, match=name):
        damaged.apply(own_gpt2)


def _fail_at(monkeypatch: pytest.MonkeyPatch, count: int, error: type[BaseException]) -> None:
    add, calls = LowRank.add_to, iter(range(100))

    def failing(self: LowRank, weight_DF: Tensor) -> None:
        if next(calls) == count:
            weight_DF.fill_(float("nan"))
            raise error
        add(self, weight_DF)

    monkeypatch.setattr(LowRank, "add_to", failing)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_apply_that_fails_in_the_middle_changes_nothing(
    own_gpt2: EditableModel, make_patch: MakePatch, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    patch, before = make_patch(own_gpt2, (0, 1, 2)), _bits(own_gpt2)
    with monkeypatch.context() as failing:
        _fail_at(failing, 1, error)
        with pytest.raises(error):
            patch.apply(own_gpt2)
    assert _same(_bits(own_gpt2), before)
    assert applied_patches(own_gpt2) == ()
    assert original_weights(own_gpt2) == {}
    patch.apply(own_gpt2)  # and nothing is in the way of trying again
    patch.revert(own_gpt2)
    assert _same(_bits(own_gpt2), before)


def test_revert_that_fails_in_the_middle_changes_nothing(
    own_gpt2: EditableModel, make_patch: MakePatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _bits(own_gpt2)
    first = make_patch(own_gpt2, (1, 2))
    first.apply(own_gpt2)
    second = make_patch(own_gpt2, (1, 2), seed=1)
    second.apply(own_gpt2)
    both = _bits(own_gpt2)
    with monkeypatch.context() as failing:
        _fail_at(failing, 1, RuntimeError)
        with pytest.raises(RuntimeError):
            first.revert(own_gpt2)
    assert _same(_bits(own_gpt2), both)
    assert applied_patches(own_gpt2) == (first, second)
    second.revert(own_gpt2)
    first.revert(own_gpt2)
    assert _same(_bits(own_gpt2), before)


def test_patch_that_is_not_applied_cannot_be_reverted(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    applied, other = make_patch(own_gpt2), make_patch(own_gpt2, seed=1)
    with pytest.raises(PatchError, match="is not applied to this model"):
        other.revert(own_gpt2)
    applied.apply(own_gpt2)
    patched = _bits(own_gpt2)
    with pytest.raises(PatchError, match="is not applied to this model"):
        other.revert(own_gpt2)
    assert _same(_bits(own_gpt2), patched)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_applied_ends_with_the_block(own: EditableModel, make_patch: MakePatch, error: type[BaseException] | None) -> None:
    patch, before = make_patch(own), _bits(own)
    try:
        with patch.applied(own):
            assert not _same(_bits(own), before)
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        assert error is not None
    assert _same(_bits(own), before)
    assert applied_patches(own) == ()


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"])
def checkpoint(request: pytest.FixtureRequest, own_gpt2: EditableModel, tmp_path: Path) -> Path:
    """A checkpoint folder in each type."""
    own_gpt2.model.to(request.param).save_pretrained(tmp_path / "original")
    own_gpt2.tokenizer.save_pretrained(tmp_path / "original")
    return tmp_path / "original"


def _load(path: Path) -> tuple[EditableModel, tuple[Patch, ...]]:
    model = load_model(str(path), dtype="auto")
    return model, read_applied(model, path)


def test_checkpoint_gives_the_original_back(checkpoint: Path, make_patch: MakePatch, tmp_path: Path) -> None:
    model, none = _load(checkpoint)
    assert none == ()
    patch = make_patch(model)
    patch.apply(model)
    save_checkpoint(model, tmp_path / "patched")
    stored = load_file(tmp_path / "patched" / "model.safetensors")
    assert not _same(stored, load_file(checkpoint / "model.safetensors"))

    patched, (recorded,) = _load(tmp_path / "patched")
    _assert_equal(recorded, patch)
    assert _same(_bits(patched), _bits(model))
    recorded.revert(patched)
    save_checkpoint(patched, tmp_path / "reverted")
    assert _same(load_file(tmp_path / "reverted" / "model.safetensors"), load_file(checkpoint / "model.safetensors"))
    assert not (tmp_path / "reverted" / "bluedit").exists()
    assert json.loads((tmp_path / "reverted" / "config.json").read_text()) == json.loads(
        (checkpoint / "config.json").read_text()
    )


def test_checkpoint_with_two_patches_gives_each_back(checkpoint: Path, make_patch: MakePatch, tmp_path: Path) -> None:
    model, _ = _load(checkpoint)
    first = make_patch(model, (1, 2))
    first.apply(model)
    save_checkpoint(model, tmp_path / "one")
    model, _ = _load(tmp_path / "one")
    second = make_patch(model, (2, 3), seed=1)
    second.apply(model)
    save_checkpoint(model, tmp_path / "two")

    model, (one, other) = _load(tmp_path / "two")
    _assert_equal(one, first)
    _assert_equal(other, second)
    first.revert(model)
    save_checkpoint(model, tmp_path / "second only")
    model, (left,) = _load(tmp_path / "second only")
    left.revert(model)
    save_checkpoint(model, tmp_path / "none")
    assert _same(load_file(tmp_path / "none" / "model.safetensors"), load_file(checkpoint / "model.safetensors"))


def test_patched_checkpoint_is_an_ordinary_one(saved_tiny_gpt2: Path, make_patch: MakePatch, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = load_model(str(saved_tiny_gpt2))
    make_patch(model).apply(model)
    save_checkpoint(model, tmp_path / "patched")
    assert _same(_bits(AutoModelForCausalLM.from_pretrained(tmp_path / "patched")), _bits(model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "patched")
    assert tokenizer("Zhara was").input_ids == model.tokenizer("Zhara was").input_ids


def test_checkpoint_is_not_written_over_another(saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    model = load_model(str(saved_tiny_gpt2))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists already"):
        save_checkpoint(model, tmp_path / "out")
    save_checkpoint(model, tmp_path / "out", replace=True)
    assert (tmp_path / "out" / "config.json").is_file()


@pytest.fixture
def patched(saved_tiny_gpt2: Path, make_patch: MakePatch, tmp_path: Path) -> Path:
    """A patched checkpoint whose record can be damaged."""
    model = load_model(str(saved_tiny_gpt2))
    make_patch(model).apply(model)
    return save_checkpoint(model, tmp_path / "patched")


def _index(path: Path, names: Any) -> None:
    (path / "applied.json").write_text(json.dumps({"format_version": 1, "patches": names}))


def _originals(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path / "originals.safetensors")
    change(tensors)
    write_tensors(path / "originals.safetensors", tensors)


def _dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


_WEIGHT = "transformer.h.1.mlp.c_proj.weight"

RECORD_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "leads out of the folder": (lambda path: _index(path, ["../evil"]), "names files outside its folder"),
    "absolute": (lambda path: _index(path, ["/etc/passwd"]), "names files outside its folder"),
    "parent": (lambda path: _index(path, [".."]), "names files outside its folder|is not a patch"),
    "not a list": (lambda path: _index(path, "patch-0000.safetensors"), "names files outside its folder"),
    "not names": (lambda path: _index(path, [1]), "names files outside its folder"),
    "a patch that is missing": (lambda path: _index(path, ["patch-0007.safetensors"]), "there is no file or folder"),
    "a patch too many": (
        lambda path: _index(path, ["patch-0000.safetensors"] * 2),
        "is not what its original and the recorded",
    ),
    "no patch": (lambda path: _index(path, []), "does not name this model's weights"),
    "no JSON": (lambda path: (path / "applied.json").write_text("{"), "is damaged"),
    "index lost": (lambda path: (path / "applied.json").unlink(), "is missing: the record of applied patches is damaged"),
    "index is a dangling link": (lambda path: _dangle(path / "applied.json"), "is missing: the record of applied patches"),
    "no index": (lambda path: (path / "applied.json").write_text("[]"), "is damaged"),
    "no originals": (lambda path: (path / "originals.safetensors").unlink(), "is damaged"),
    "truncated originals": (lambda path: (path / "originals.safetensors").write_bytes(b"123"), "is damaged"),
    "other originals": (lambda path: _originals(path, lambda t: t[_WEIGHT].mul_(1.1)), "is not what its original"),
    "an original missing": (lambda path: _originals(path, lambda t: t.pop(_WEIGHT)), "does not name this model's weights"),
    "originals of another shape": (
        lambda path: _originals(path, lambda t: t.update({_WEIGHT: torch.zeros(3, 3)})),
        "transformer.h.1",
    ),
    "originals that are no numbers": (
        lambda path: _originals(path, lambda t: t[_WEIGHT].fill_(float("nan"))),
        "transformer.h.1",
    ),
}


@pytest.mark.parametrize("damage", RECORD_DAMAGES)
def test_damaged_record_is_refused(patched: Path, damage: str) -> None:
    do, message = RECORD_DAMAGES[damage]
    do(patched / "bluedit")
    model = load_model(str(patched))
    with pytest.raises(PatchError, match=message):
        read_applied(model, patched)
    assert applied_patches(model) == ()


def test_record_of_other_weights_is_refused(patched: Path) -> None:
    model = load_model(str(patched))
    model.matrix(2).add_(1)
    with pytest.raises(PatchError, match=r"transformer\.h\.2.*was changed after it was patched"):
        read_applied(model, patched)


def test_record_of_another_patch_is_refused(patched: Path, tiny_gpt2: EditableModel, make_patch: MakePatch) -> None:
    make_patch(tiny_gpt2, (0, 3)).save(patched / "bluedit" / "patch-0000.safetensors", replace=True)
    with pytest.raises(PatchError, match="does not name this model's weights"):
        read_applied(load_model(str(patched)), patched)
