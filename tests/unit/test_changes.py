"""Changes of a weight: every kind against its dense form, their files, their sums, and patches that hold them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bluedit.edits import Change, Dense, LowRank, Masked, Patch, merge
from bluedit.edits.base import applied_patches
from bluedit.edits.changes import largest_singular_value, read_change, total
from bluedit.edits.checkpoint import read_applied, save_checkpoint
from bluedit.edits.manifest import OptimisationRecord, WeightRecord
from bluedit.errors import PatchError
from bluedit.models import EditableModel, load_model

MakePatch = Callable[..., Patch]

KINDS = ("low rank", "masked", "dense")
WIDTHS = (1, 2, 7, 8, 9, 15, 16, 17, 40)

each_kind = pytest.mark.parametrize("kind", KINDS)


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _mask(rows: int, columns: int, seed: int = 0, share: float = 0.4) -> Tensor:
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < share


def make(
    kind: str, rows: int = 6, columns: int = 11, facts: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Change:
    """A random change of a kind."""
    residual_DN, gain_FN = _random(rows, facts, seed=seed, dtype=dtype), _random(columns, facts, seed=seed + 1, dtype=dtype)
    factors = LowRank(residual_DN, gain_FN)
    if kind == "masked":
        return Masked.of(factors, _mask(rows, columns, seed + 2))
    return (
        factors if kind == "low rank" else Dense(residual_DN @ gain_FN.T + _random(rows, columns, seed=seed + 3, dtype=dtype))
    )


def exact(change: Change) -> Tensor:
    """D in float64, from the stored parts and nothing else."""
    parts = change.tensors()
    if "change" in parts:
        return parts["change"].double()
    dense = parts["residual"].double() @ parts["gain"].double().T
    if "mask" not in parts:
        return dense
    bits = [[byte >> (7 - bit) & 1 for byte in row for bit in range(8)] for row in parts["mask"].tolist()]
    return dense * torch.tensor(bits)[:, : dense.shape[1]]


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _assert_equal(one: Patch, other: Patch) -> None:
    assert one.manifest == other.manifest
    assert list(one.changes) == list(other.changes)
    for name, change in one.changes.items():
        assert type(change) is type(other.changes[name])
        assert _same(change.tensors(), other.changes[name].tensors()), name


def _bits(model: EditableModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.model.named_parameters()}


# -- one change --------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns", "facts"), [(6, 11, 3), (11, 6, 3), (5, 8, 20), (4, 4, 1), (3, 9, 0)])
def test_a_change_is_its_dense_form(kind: str, dtype: torch.dtype, rows: int, columns: int, facts: int) -> None:
    change = make(kind, rows, columns, facts, dtype=dtype)
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    assert change.kind == kind
    assert change.shape == (rows, columns) == tuple(change.dense().shape)
    assert change.dense().dtype == dtype
    torch.testing.assert_close(change.dense().double(), exact(change), rtol=rounding, atol=rounding)
    assert change.norm() == pytest.approx(exact(change).norm().item(), rel=rounding, abs=1e-12)
    spectrum = torch.linalg.svdvals(exact(change))
    assert change.largest_singular_value() == pytest.approx(spectrum[0].item(), rel=rounding, abs=1e-12)
    assert int((spectrum > 1e-4).sum()) <= change.rank
    assert change.rank == (facts if kind == "low rank" else min(rows, columns))
    change.check()


@each_kind
def test_looking_at_a_change_does_not_change_it(kind: str) -> None:
    change = make(kind)
    before = {name: tensor.clone() for name, tensor in change.tensors().items()}
    one, other = change.dense(), change.dense()
    change.norm()
    change.largest_singular_value()
    change.add_to(_random(6, 11))
    change.check()
    assert torch.equal(one, other)
    assert _same(change.tensors(), before)


@each_kind
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_adding_rounds_once(kind: str, dtype: torch.dtype, transposed: bool) -> None:
    """In the weight's own place: the sum of change and weight, rounded to the weight's type and no other before."""
    change = make(kind)
    stored = _random(11, 6, seed=9, dtype=torch.float64).to(dtype) if transposed else _random(6, 11, seed=9).to(dtype)
    weight_DF = stored.T if transposed else stored
    before, place = weight_DF.clone(), stored.data_ptr()
    change.add_to(weight_DF)
    assert stored.data_ptr() == place
    assert stored.dtype == dtype
    wider = torch.promote_types(dtype, torch.float32)
    assert torch.equal(weight_DF, (before.to(wider) + change.dense().to(wider)).to(dtype))
    touched = change.dense() != 0
    assert torch.equal(weight_DF[~touched], before[~touched]), "what the change leaves at 0 keeps its bits"


@each_kind
def test_a_change_in_float64_is_added_in_float64(kind: str) -> None:
    change = make(kind, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        weight_DF = _random(6, 11, seed=9, dtype=torch.float64).to(dtype)
        expected = (change.dense() + weight_DF.double()).to(dtype)
        change.add_to(weight_DF)
        assert torch.equal(weight_DF, expected)


@each_kind
def test_adding_leaves_no_gradient(kind: str) -> None:
    weight = torch.nn.Parameter(_random(6, 11))
    with torch.no_grad():
        make(kind).add_to(weight)
    assert weight.requires_grad
    assert weight.is_leaf


@each_kind
def test_the_stored_size_is_that_of_the_parts(kind: str) -> None:
    sizes = {"low rank": 4 * 3 * (6 + 11), "masked": 4 * 3 * (6 + 11) + 6 * 2, "dense": 4 * 6 * 11}
    assert make(kind).nbytes == sizes[kind]


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (5, 3), (4, 4), (1, 7), (7, 1)])
def test_the_largest_singular_value_of_a_matrix(rows: int, columns: int) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        matrix = _random(rows, columns).to(dtype)
        expected = torch.linalg.svdvals(matrix.double())[0].item()
        assert largest_singular_value(matrix) == pytest.approx(expected, rel=1e-12)
    assert largest_singular_value(torch.zeros(rows, columns)) == 0


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", WIDTHS)
def test_masks_of_any_width_are_packed_and_unpacked(columns: int) -> None:
    factors = LowRank(_random(5, 2), _random(columns, 2, seed=1))
    for share in (0.0, 0.5, 1.0):
        mask = _mask(5, columns, columns, share)
        change = Masked.of(factors, mask)
        assert change.bits.dtype == torch.uint8
        assert tuple(change.bits.shape) == (5, math.ceil(columns / 8))
        assert change.mask_DF.dtype == torch.bool
        assert torch.equal(change.mask_DF, mask)
        assert torch.equal(change.dense(), torch.where(mask, factors.dense(), 0))
        # Bits beyond the width are 0, so that equal masks are equal bytes.
        for row, packed in zip(mask.tolist(), change.bits.tolist(), strict=True):
            assert packed == [
                sum(128 >> bit for bit, kept in enumerate(row[start : start + 8]) if kept) for start in range(0, columns, 8)
            ]


@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**16))
@settings(max_examples=30, deadline=None)
def test_any_mask_comes_back(rows: int, columns: int, seed: int) -> None:
    mask = _mask(rows, columns, seed, 0.5)
    change = Masked.of(LowRank(_random(rows, 1), _random(columns, 1)), mask)
    again = read_change(change.tensors())
    assert isinstance(again, Masked)
    assert torch.equal(again.mask_DF, mask)


def test_a_mask_that_is_a_transposed_view() -> None:
    mask = _mask(11, 6)
    change = Masked.of(LowRank(_random(6, 2), _random(11, 2)), mask.T)
    assert torch.equal(change.mask_DF, mask.T)


@pytest.mark.parametrize("shape", [(6, 1), (6, 3), (5, 2), (12,), (6, 11)])
def test_masks_that_do_not_belong_to_the_factors_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not belong to a change of 6 x 11"):
        Masked(LowRank(_random(6, 2), _random(11, 2)), torch.zeros(shape, dtype=torch.uint8))


def test_masks_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="does not belong"):
        Masked(LowRank(_random(6, 2), _random(11, 2)), torch.zeros(6, 2, dtype=torch.bool))


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a matrix"):
        Dense(torch.zeros(3))
    with pytest.raises(ValueError, match="do not belong together"):
        LowRank(torch.zeros(3, 2), torch.zeros(4, 3))


# -- parts -------------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_change_comes_back_from_its_parts(kind: str, dtype: torch.dtype) -> None:
    change = make(kind, dtype=dtype)
    again = read_change(change.tensors())
    assert type(again) is type(change)
    assert _same(again.tensors(), change.tensors())
    assert torch.equal(again.dense(), change.dense())


@pytest.mark.parametrize(("rows", "columns", "facts"), [(4, 5, 2), (4, 5, 3), (32, 48, 2), (6, 11, 7)])
def test_how_a_change_lies_in_memory_does_not_matter(rows: int, columns: int, facts: int) -> None:
    """Solvers give transposed views, files give rows: the change they install is the same, to the bit."""
    columns_first = LowRank.of(_random(facts, rows).T, _random(facts, columns, seed=1).T)
    rows_first = LowRank.of(columns_first.residual_DN.contiguous(), columns_first.gain_FN.contiguous())
    assert torch.equal(columns_first.dense(), rows_first.dense())


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"residual": (6, 2)},
        {"gain": (11, 2)},
        {"residual": (6, 2), "gain": (11, 2), "change": (6, 11)},
        {"mask": (6, 2)},
        {"change": (6, 11), "mask": (6, 2)},
        {"delta": (6, 11)},
    ],
)
def test_parts_of_no_kind_are_refused(parts: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="are not those of a change"):
        read_change({name: torch.zeros(shape) for name, shape in parts.items()})


def _damaged(kind: str, part: str, value: object) -> dict[str, Tensor]:
    parts = {name: tensor.clone() for name, tensor in make(kind).tensors().items()}
    if isinstance(value, float):
        parts[part].view(-1)[4] = value
    else:
        parts[part] = parts[part].to(value)
    return parts


FLOATING = [("low rank", "residual"), ("low rank", "gain"), ("masked", "residual"), ("masked", "gain"), ("dense", "change")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("kind", "part"), FLOATING)
def test_numbers_that_are_none_are_refused(kind: str, part: str, value: float) -> None:
    """Also where a mask hides the entry that would show it."""
    with pytest.raises(ValueError, match=f"its {part} is not finite"):
        read_change(_damaged(kind, part, value))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool, torch.uint8], ids=str)
@pytest.mark.parametrize(("kind", "part"), FLOATING)
def test_parts_of_another_type_are_refused(kind: str, part: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"its {part} is {dtype}"):
        read_change(_damaged(kind, part, dtype))


def test_masks_of_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="mask"):
        read_change(_damaged("masked", "mask", torch.float32))


@pytest.mark.parametrize("kind", ["low rank", "masked"])
def test_factors_of_two_precisions_are_refused(kind: str) -> None:
    """No product of them is defined: a patch of them could be loaded, and not applied."""
    with pytest.raises(ValueError, match="float"):
        read_change(_damaged(kind, "gain", torch.float64))


# -- sums --------------------------------------------------------------------------------------------------------------


def test_low_rank_changes_are_put_side_by_side() -> None:
    changes = [make("low rank", facts=facts, seed=10 * facts) for facts in (3, 1, 0, 2)]
    whole = total(changes)
    assert isinstance(whole, LowRank)
    assert whole.rank == 6
    assert torch.equal(whole.residual_DN, torch.cat([change.tensors()["residual"] for change in changes], 1))
    assert torch.equal(whole.gain_FN, torch.cat([change.tensors()["gain"] for change in changes], 1))
    torch.testing.assert_close(whole.dense().double(), sum(map(exact, changes)), rtol=1e-5, atol=1e-5)
    assert whole.norm() == pytest.approx(sum(map(exact, changes)).norm().item(), rel=1e-5)


@pytest.mark.parametrize(
    "kinds", [("low rank", "dense"), ("masked", "masked"), ("dense", "dense"), ("low rank", "masked", "dense", "low rank")]
)
def test_other_sums_are_dense(kinds: Sequence[str]) -> None:
    changes = [make(kind, seed=10 * number) for number, kind in enumerate(kinds)]
    before = [{name: tensor.clone() for name, tensor in change.tensors().items()} for change in changes]
    whole = total(changes)
    assert isinstance(whole, Dense)
    assert whole.dense().dtype == torch.float32
    torch.testing.assert_close(whole.dense().double(), sum(map(exact, changes)), rtol=1e-5, atol=1e-5)
    assert all(_same(change.tensors(), parts) for change, parts in zip(changes, before, strict=True))


@each_kind
def test_the_sum_of_one_is_that_one(kind: str) -> None:
    change = make(kind)
    assert total([change]) is change


# -- patches of every kind ---------------------------------------------------------------------------------------------


def mixed(model: EditableModel, make_patch: MakePatch, seed: int = 0, kinds: Sequence[str] = KINDS) -> Patch:
    """A patch whose layers 0, 1, 2 have changes of different kinds."""
    patch = make_patch(model, (0, 1, 2), seed=seed)
    rows, columns = model.structure.d_model, model.structure.d_ff
    changes = {
        name: make(kind, rows, columns, seed=seed + number)
        for number, (name, kind) in enumerate(zip(patch.changes, kinds, strict=True))
    }
    weights = {
        name: record.model_copy(
            update={"norm": changes[name].norm(), "relative_norm": changes[name].norm() / _size(model, record.layer)}
        )
        for name, record in patch.manifest.weights.items()
    }
    return Patch(changes, patch.manifest.model_copy(update={"weights": weights}))


def _size(model: EditableModel, layer: int) -> float:
    return model.matrix(layer).double().norm().item()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def own(request: pytest.FixtureRequest, tiny_models: EditableModel) -> EditableModel:
    """A copy of each tiny model in both types, to change."""
    return EditableModel(copy.deepcopy(tiny_models.model).to(request.param), tiny_models.tokenizer)


@pytest.mark.parametrize("name", ["patch", "patch.safetensors"])
def test_a_patch_of_every_kind_is_saved_loaded_applied_and_reverted(
    own: EditableModel, make_patch: MakePatch, tmp_path: Path, name: str
) -> None:
    patch, before = mixed(own, make_patch), _bits(own)
    loaded = Patch.load(patch.save(tmp_path / name))
    _assert_equal(loaded, patch)
    assert [change.kind for change in loaded.changes.values()] == list(KINDS)
    loaded.apply(own)
    for key, value in _bits(own).items():
        if key in patch.changes:
            expected = (own.structure.oriented(before[key]).float() + patch.changes[key].dense()).to(value.dtype)
            assert torch.equal(own.structure.oriented(value), expected)
        else:
            assert torch.equal(value, before[key])
    other = mixed(own, make_patch, seed=50, kinds=("dense", "low rank", "masked"))
    other.apply(own)
    loaded.revert(own)
    alone = EditableModel(copy.deepcopy(own.model), own.tokenizer)
    other.revert(own)
    assert _same(_bits(own), before)
    with other.applied(own, check=False):
        assert _same(_bits(own), _bits(alone))
    assert _same(_bits(own), before)


def test_a_patch_of_every_kind_says_what_it_holds(tiny_gpt2: EditableModel, make_patch: MakePatch) -> None:
    summary = mixed(tiny_gpt2, make_patch).summary()
    assert [(entry["rank"], entry["bytes"]) for entry in summary["weights"].values()] == [
        (3, 4 * 3 * (32 + 48)),
        (32, 4 * 3 * (32 + 48) + 32 * 6),
        (32, 4 * 32 * 48),
    ]
    json.dumps(summary)


def test_a_checkpoint_with_patches_of_every_kind_gives_the_original_back(
    own_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path
) -> None:
    before = _bits(own_gpt2)
    one, other = mixed(own_gpt2, make_patch), mixed(own_gpt2, make_patch, 50, ("masked", "dense", "low rank"))
    one.apply(own_gpt2)
    other.apply(own_gpt2, check=False)
    save_checkpoint(own_gpt2, tmp_path / "checkpoint")
    loaded = load_model(str(tmp_path / "checkpoint"), dtype="auto")
    first, second = read_applied(loaded, tmp_path / "checkpoint")
    _assert_equal(first, one)
    _assert_equal(second, other)
    assert _same(_bits(loaded), _bits(own_gpt2))
    first.revert(loaded)
    second.revert(loaded)
    assert _same(_bits(loaded), before)


def test_a_mask_that_does_not_fit_is_refused_with_the_file(
    tiny_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path
) -> None:
    patch = mixed(tiny_gpt2, make_patch)
    name, change = list(patch.changes.items())[1]
    assert isinstance(change, Masked)
    wide = Masked.of(LowRank(change.factors.residual_DN, torch.cat([change.factors.gain_FN] * 2)), torch.ones(32, 96).bool())
    object.__setattr__(wide, "factors", change.factors)
    path = Patch({**patch.changes, name: wide}, patch.manifest).save(tmp_path / "patch")
    with pytest.raises(PatchError, match="does not belong to a change of 32 x 48") as caught:
        Patch.load(path)
    assert str(path) in str(caught.value)


def test_a_patch_in_the_home_folder(
    tiny_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved at `~/patch` is loaded from `~/patch`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("~/patch", "~/patch.safetensors"):
        patch = make_patch(tiny_gpt2)
        patch.save(name)
        _assert_equal(Patch.load(name), patch)


@each_kind
@pytest.mark.parametrize("shape", [(32, 47), (31, 48), (48, 32)])
def test_changes_of_another_shape_are_not_applied(
    own_gpt2: EditableModel, make_patch: MakePatch, kind: str, shape: tuple[int, int]
) -> None:
    patch, before = make_patch(own_gpt2, (1,)), _bits(own_gpt2)
    wrong = Patch({name: make(kind, *shape) for name in patch.changes}, patch.manifest)
    with pytest.raises(PatchError, match="32 x 48 in this model"):
        wrong.apply(own_gpt2, check=False)
    assert _same(_bits(own_gpt2), before)
    assert not applied_patches(own_gpt2)


# -- merging -----------------------------------------------------------------------------------------------------------


def sequence(model: EditableModel, make_patch: MakePatch, sizes: Sequence[int] = (3, 1, 2)) -> list[Patch]:
    """Patches as a sequence makes them: each computed on the model with those before it. The model is left edited."""
    patches = []
    for number, facts in enumerate(sizes):
        patch = make_patch(model, seed=number, facts=facts)
        records = tuple(
            fact.model_copy(update={"id": f"{number}.{fact.id}", "subject": f"{number} {fact.subject}"})
            for fact in patch.manifest.facts
        )
        optimisation = tuple(
            OptimisationRecord(
                layer=layer,
                evaluations=tuple(range(10 * number, 10 * number + facts)),
                losses=tuple(layer + number + fact / 10 for fact in range(facts)),
            )
            for layer in (1, 2)
        )
        update = {"facts": records, "optimisation": optimisation, "seconds": 1.25, "batches": (facts,), "seed": 0}
        patches.append(Patch(patch.changes, patch.manifest.model_copy(update=update)))
        patches[-1].apply(model)
    return patches


def empty(patch: Patch) -> Patch:
    """The patch of a batch without facts in the same sequence."""
    update = {"facts": (), "weights": {}, "optimisation": (), "batches": (0,)}
    return Patch({}, patch.manifest.model_copy(update=update))


def test_a_merged_patch_does_what_all_do(tiny_models: EditableModel, make_patch: MakePatch, tmp_path: Path) -> None:
    own = EditableModel(copy.deepcopy(tiny_models.model), tiny_models.tokenizer)
    fresh = EditableModel(copy.deepcopy(tiny_models.model), tiny_models.tokenizer)
    patches = sequence(own, make_patch)
    whole = Patch.load(merge(patches).save(tmp_path / "patch"))
    _assert_equal(whole, merge(patches))
    whole.apply(fresh)  # checks the hashes, which are those of the model before
    for name, value in _bits(fresh).items():
        torch.testing.assert_close(value, _bits(own)[name], rtol=1e-5, atol=1e-6)
    whole.revert(fresh)
    assert _same(_bits(fresh), _bits(tiny_models))


def test_a_merged_manifest_is_that_of_the_sequence(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    sizes = {layer: _size(own_gpt2, layer) for layer in (1, 2)}
    patches = sequence(own_gpt2, make_patch)
    whole = merge(patches)
    assert whole.facts == tuple(fact for patch in patches for fact in patch.facts)
    assert whole.manifest.batches == (3, 1, 2)
    assert whole.manifest.columns == "facts"
    assert whole.manifest.seconds == 3.75
    for name, record in whole.manifest.weights.items():
        change = whole.changes[name]
        assert isinstance(change, LowRank)
        assert change.rank == 6
        assert torch.equal(change.residual_DN, torch.cat([patch.changes[name].tensors()["residual"] for patch in patches], 1))
        dense = sum(exact(patch.changes[name]) for patch in patches)
        assert record.norm == pytest.approx(dense.norm().item(), rel=1e-5)
        assert record.relative_norm == pytest.approx(dense.norm().item() / sizes[record.layer], rel=1e-5)
        assert record.before == patches[0].manifest.weights[name].before
    for record in whole.manifest.optimisation:
        assert record.evaluations == (0, 1, 2, 10, 20, 21)
        assert record.losses == pytest.approx([record.layer + offset for offset in (0, 0.1, 0.2, 1, 2, 2.1)])
    assert [record.layer for record in whole.manifest.optimisation] == [1, 2]


def test_patches_of_no_facts_among_others(own_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path) -> None:
    patches = sequence(own_gpt2, make_patch)
    expected = merge(patches)
    first, second, third = patches
    with_empty = merge([empty(first), first, empty(first), second, third, empty(first)])
    assert with_empty.manifest.batches == (0, 3, 0, 1, 2, 0)
    assert with_empty.facts == expected.facts
    assert with_empty.manifest.weights == expected.manifest.weights
    assert with_empty.manifest.optimisation == expected.manifest.optimisation
    assert all(_same(change.tensors(), expected.changes[name].tensors()) for name, change in with_empty.changes.items())
    _assert_equal(Patch.load(with_empty.save(tmp_path / "patch")), with_empty)
    nothing = merge([empty(first), empty(first)])
    assert not nothing.changes
    assert nothing.manifest.batches == (0, 0)
    _assert_equal(Patch.load(nothing.save(tmp_path / "nothing")), nothing)


def test_merged_patches_are_merged_again(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    patches = sequence(own_gpt2, make_patch, (1, 2, 1, 3))
    whole = merge(patches)
    for cut in (1, 2, 3):
        again = merge([merge(patches[:cut]), merge(patches[cut:])])
        assert again.facts == whole.facts
        assert again.manifest.batches == whole.manifest.batches
        assert again.manifest.optimisation == whole.manifest.optimisation
        assert again.manifest.seconds == whole.manifest.seconds
        for name, record in again.manifest.weights.items():
            expected = whole.manifest.weights[name]
            assert record.before == expected.before
            assert record.relative_norm == pytest.approx(expected.relative_norm, rel=1e-9)
            assert _same(again.changes[name].tensors(), whole.changes[name].tensors())


def test_merging_one_patch_gives_it_back(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    (patch,) = sequence(own_gpt2, make_patch, (3,))
    whole = merge([patch])
    assert dict(whole.changes) == dict(patch.changes)
    for name, record in whole.manifest.weights.items():
        assert record.norm == pytest.approx(patch.manifest.weights[name].norm, rel=1e-9)
        assert record.relative_norm == pytest.approx(patch.manifest.weights[name].relative_norm, rel=1e-9)
    assert whole.manifest.model_copy(update={"weights": {}}) == patch.manifest.model_copy(update={"weights": {}})


def test_changes_of_unlike_kinds_are_merged_densely(own_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path) -> None:
    sizes = {layer: _size(own_gpt2, layer) for layer in (0, 1, 2)}
    patches = [
        mixed(own_gpt2, make_patch, seed, kinds)
        for seed, kinds in ((0, ("low rank", "masked", "dense")), (20, ("masked", "masked", "low rank")))
    ]
    whole = merge(patches)
    _assert_equal(Patch.load(whole.save(tmp_path / "patch")), whole)
    for name, change in whole.changes.items():
        dense = sum(exact(patch.changes[name]) for patch in patches)
        assert isinstance(change, Dense)
        torch.testing.assert_close(change.dense().double(), dense, rtol=1e-5, atol=1e-5)
        record = whole.manifest.weights[name]
        assert record.norm == pytest.approx(dense.norm().item(), rel=1e-5)
        assert record.relative_norm == pytest.approx(dense.norm().item() / sizes[record.layer], rel=1e-5)


def test_a_change_of_nothing_first_does_not_hide_the_size_of_the_weight(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    """A batch whose facts were known already changes nothing, and its record has no norm to take the weight's from."""
    sizes = {layer: _size(own_gpt2, layer) for layer in (1, 2)}
    patch = make_patch(own_gpt2)
    zero = {name: LowRank(0 * change.tensors()["residual"], change.tensors()["gain"]) for name, change in patch.changes.items()}
    weights = {
        name: record.model_copy(update={"norm": 0.0, "relative_norm": 0.0}) for name, record in patch.manifest.weights.items()
    }
    first = Patch(zero, patch.manifest.model_copy(update={"weights": weights}))
    for patches in ([first, patch], [patch, first]):
        for record in merge(patches).manifest.weights.values():
            assert record.relative_norm == pytest.approx(record.norm / sizes[record.layer], rel=1e-6)
    assert all(record.relative_norm == 0 for record in merge([first, first]).manifest.weights.values())


@pytest.mark.parametrize("first", ["facts", "directions"])
def test_directions_and_facts_are_merged_into_what_can_be_read(
    own_gpt2: EditableModel, make_patch: MakePatch, tmp_path: Path, first: str
) -> None:
    """A restrained sequence and a batch after it: columns of the sum are no longer one per fact."""
    (one,) = sequence(own_gpt2, make_patch, (3,))
    fewer = {
        name: LowRank(change.tensors()["residual"][:, :2], change.tensors()["gain"][:, :2])
        for name, change in one.changes.items()
    }
    other = Patch(fewer, one.manifest.model_copy(update={"columns": "directions"}))
    try:
        whole = merge([one, other] if first == "facts" else [other, one])
    except PatchError:
        return
    assert whole.manifest.columns == "directions"
    _assert_equal(Patch.load(whole.save(tmp_path / "patch")), whole)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("configuration", "another"),
        ("method", "alphaedit"),
        ("strategy", "even"),
        ("layers", (1, 2, 3)),
        ("settings", {"lambda": 6.0}),
        ("templates", ("{}", "I saw. {}")),
        ("corpus", "text:other"),
    ],
)
def test_patches_of_different_sequences_are_not_merged(
    own_gpt2: EditableModel, make_patch: MakePatch, name: str, value: object
) -> None:
    first, second = sequence(own_gpt2, make_patch, (1, 1))
    other = Patch(second.changes, second.manifest.model_copy(update={name: value}))
    with pytest.raises(PatchError, match=f"patches with different {name} are not one sequence"):
        merge([first, other])
    merge([other, other])


def test_nothing_is_not_merged() -> None:
    with pytest.raises(PatchError, match="no patch to merge"):
        merge([])


def test_merging_leaves_the_patches_as_they_were(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    patches = sequence(own_gpt2, make_patch)
    before = [
        ({name: exact(change) for name, change in patch.changes.items()}, patch.manifest.model_copy()) for patch in patches
    ]
    merge(patches)
    for patch, (changes, manifest) in zip(patches, before, strict=True):
        assert patch.manifest == manifest
        assert all(torch.equal(exact(patch.changes[name]), change) for name, change in changes.items())


def test_a_record_keeps_what_is_known_of_the_prior(own_gpt2: EditableModel, make_patch: MakePatch) -> None:
    patches = sequence(own_gpt2, make_patch, (1, 1))
    known = [
        Patch(
            patch.changes,
            patch.manifest.model_copy(
                update={
                    "weights": {
                        name: WeightRecord(**record.model_dump() | {"condition": 12.0, "null_space_rank": 7})
                        for name, record in patch.manifest.weights.items()
                    }
                }
            ),
        )
        for patch in patches
    ]
    assert {(record.condition, record.null_space_rank) for record in merge(known).manifest.weights.values()} == {(12.0, 7)}
