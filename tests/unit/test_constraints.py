"""Constraints against brute force: every entry sorted, every singular value looked at, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from torch import Tensor

import bluedit
from bluedit.editors.closed_form.constraints import (
    PRUNING,
    RELATIVE_CHANGE,
    PruneSettings,
    Pruning,
    RectSettings,
    RelativeChange,
)
from bluedit.editors.closed_form.constraints.rect import largest_entries
from bluedit.edits import Change, Dense, LowRank, Masked
from bluedit.facts import Fact
from bluedit.methods import MEMIT, PRUNE, RECT, Method
from bluedit.models import EditableModel

DTYPES = [torch.float32, torch.float64]


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def change_of(
    kind: str, rows: int, columns: int, facts: int = 3, dtype: torch.dtype = torch.float32, scale: float = 1
) -> Change:
    factors = LowRank(scale * _random(rows, facts, dtype=dtype), _random(columns, facts, seed=1, dtype=dtype))
    if kind == "low rank":
        return factors
    if kind == "masked":
        return Masked.of(factors, _random(rows, columns, seed=2) > 0)
    return Dense(factors.dense())


def brute_force(sizes: list[list[float]], share: float) -> list[list[bool]]:
    """The mask of the `share` of entries that are largest, one entry at a time; of equals the first by row and column."""
    flat = [(-size, index) for index, size in enumerate(size for row in sizes for size in row)]
    kept = {index for _, index in sorted(flat)[: int(share * len(flat))]}
    width = len(sizes[0])
    return [[row * width + column in kept for column in range(width)] for row in range(len(sizes))]


# -- RECT: which entries -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.4, 0.5, 0.999, 1])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (7, 9), (32, 48)])
def test_the_largest_entries_are_kept_and_exactly_so_many(rows: int, columns: int, share: float) -> None:
    sizes = _random(rows, columns).abs()
    mask = largest_entries(sizes, share)
    assert mask.shape == sizes.shape
    assert mask.dtype == torch.bool
    assert int(mask.sum()) == int(share * rows * columns)
    assert mask.tolist() == brute_force(sizes.tolist(), share)


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=6),
    st.floats(0, 1),
)
@hypothesis(max_examples=100, deadline=None)
def test_of_entries_that_tie_the_first_are_kept(values: list[list[int]], share: float) -> None:
    mask = largest_entries(torch.tensor(values, dtype=torch.float32), share)
    assert mask.tolist() == brute_force([[float(value) for value in row] for row in values], share)


@pytest.mark.parametrize("value", [0.0, 2.5, math.inf])
def test_entries_that_are_all_alike(value: float) -> None:
    mask = largest_entries(torch.full((5, 7), value), 0.4)
    assert mask.flatten().tolist() == [index < 14 for index in range(35)]


def test_entries_that_are_transposed_are_counted_by_row() -> None:
    """What lies in memory by column (weights of GPT-2) is not counted so."""
    sizes = torch.ones(7, 5).T
    assert largest_entries(sizes, 0.4).flatten().tolist() == [index < 14 for index in range(35)]
    sizes = _random(9, 6).abs().T
    assert torch.equal(largest_entries(sizes, 0.4), largest_entries(sizes.contiguous(), 0.4))


# -- RECT: what is left of a change ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["low rank", "masked", "dense"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
def test_the_entries_that_change_most_are_left(kind: str, dtype: torch.dtype, keep: float) -> None:
    change = change_of(kind, 32, 48, dtype=dtype)
    weight = _random(32, 48, seed=5, dtype=dtype)
    constrained = RELATIVE_CHANGE.constrain(change, weight, RectSettings(rect_keep=keep))
    sizes = (change.dense().double() / (weight.double() + 1e-8)).abs()
    mask = torch.tensor(brute_force(sizes.tolist(), keep))
    assert int(mask.sum()) == int(keep * 32 * 48)
    assert torch.equal(constrained.dense(), torch.where(mask, change.dense(), 0))
    assert constrained.shape == change.shape
    assert constrained.dense().dtype == dtype
    assert isinstance(constrained, Masked if kind == "low rank" else Dense)


@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (7, 9), (1, 17), (16, 8)])
def test_masks_of_odd_widths_keep_so_many_too(rows: int, columns: int) -> None:
    change = change_of("low rank", rows, columns)
    constrained = RELATIVE_CHANGE.constrain(change, _random(rows, columns, seed=5), RectSettings())
    assert int((constrained.dense() != 0).sum()) == int(0.4 * rows * columns)


def test_a_constrained_low_rank_change_keeps_its_factors() -> None:
    """Columns stay the facts', and the mask costs a bit an entry."""
    change = change_of("low rank", 32, 48)
    constrained = RELATIVE_CHANGE.constrain(change, _random(32, 48, seed=5), RectSettings())
    assert isinstance(constrained, Masked)
    assert constrained.factors is change
    assert constrained.nbytes == change.nbytes + 32 * 48 // 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_looked_at_in_single(dtype: torch.dtype) -> None:
    """1e-8 is nothing beside a half-precision weight, and the quotient of small ones would overflow."""
    change = change_of("low rank", 12, 20)
    weight = (1e-3 * _random(12, 20, seed=5)).to(dtype)
    constrained = RELATIVE_CHANGE.constrain(change, weight, RectSettings())
    sizes = (change.dense() / (weight.float() + 1e-8)).abs()
    assert (constrained.dense() != 0).tolist() == brute_force(sizes.tolist(), 0.4)


def test_a_weight_of_zero_changes_most() -> None:
    change = change_of("dense", 4, 5)
    weight = torch.ones(4, 5)
    weight[1, 2] = weight[3, 0] = 0
    mask = RELATIVE_CHANGE.constrain(change, weight, RectSettings(rect_keep=0.1)).dense() != 0
    assert mask.nonzero().tolist() == [[1, 2], [3, 0]]


def test_an_entry_that_would_be_divided_by_zero_is_one_entry() -> None:
    """W = -1e-8 in float32 makes the quotient infinite, or 0 / 0: still exactly so many are kept."""
    change, weight = Dense(_random(4, 5)), torch.ones(4, 5)
    weight[0, 0] = weight[2, 2] = -1e-8
    change.change_DF[2, 2] = 0
    for keep in (0.1, 0.4, 0.75):
        mask = RELATIVE_CHANGE.constrain(change, weight, RectSettings(rect_keep=keep)).dense() != 0
        assert int(mask.sum()) in (int(keep * 20), int(keep * 20) - 1), "a kept entry may be 0 itself"
        assert mask[0, 0]


def test_constraining_leaves_change_and_weight_as_they_were() -> None:
    weight = _random(12, 20, seed=5)
    before = weight.clone()
    for kind in ("low rank", "masked", "dense"):
        for constraint in (RELATIVE_CHANGE, PRUNING):
            change = change_of(kind, 12, 20, scale=30)
            dense = change.dense().clone()
            constrained = constraint.constrain(change, weight, constraint.settings())
            assert torch.equal(change.dense(), dense)
            assert not torch.equal(constrained.dense(), dense)
            assert torch.equal(weight, before)


# -- PRUNE -------------------------------------------------------------------------------------------------------------


def constrained_values(change: Tensor, weight: Tensor, base: float) -> Tensor:
    """PRUNE by a dense decomposition in float64."""
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    largest = torch.linalg.svdvals(weight.double())[0].item()
    kept = [
        math.log(value, base) - math.log(largest, base) + largest if value > largest else value for value in values.tolist()
    ]
    return left @ torch.diag(torch.tensor(kept, dtype=torch.float64)) @ right


SHAPES = [(12, 20, 3), (20, 12, 3), (8, 8, 8), (6, 9, 30), (9, 6, 30), (5, 5, 1)]


@pytest.mark.parametrize("kind", ["low rank", "masked", "dense"])
@pytest.mark.parametrize("base", [math.e, 1.2, 10.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "facts"), SHAPES)
def test_singular_values_are_constrained(
    kind: str, base: float, dtype: torch.dtype, rows: int, columns: int, facts: int
) -> None:
    """Also where there are more facts than either side of the weight has entries."""
    change = change_of(kind, rows, columns, facts, dtype, scale=5)
    weight = _random(rows, columns, seed=7, dtype=dtype)
    constrained = PRUNING.constrain(change, weight, PruneSettings(prune_base=base))
    expected = constrained_values(change.dense().double() if kind != "low rank" else _product(change), weight, base)
    error = (constrained.dense().double() - expected).norm() / expected.norm()
    assert error <= (1e-5 if dtype == torch.float32 else 1e-12)
    assert constrained.shape == change.shape
    assert all(tensor.dtype == dtype for tensor in constrained.tensors().values())
    assert isinstance(constrained, LowRank if kind == "low rank" else Dense)
    assert constrained.rank <= min(rows, columns)
    constrained.check()


def _product(change: Change) -> Tensor:
    parts = change.tensors()
    return parts["residual"].double() @ parts["gain"].double().T


def test_singular_values_below_the_weights_largest_are_left() -> None:
    """A change with one large and several small values: the small ones stay what they are."""
    weight = torch.diag(torch.tensor([4.0, 1.0, 1.0, 1.0, 1.0]))
    change = torch.diag(torch.tensor([100.0, 5.0, 3.9, 0.5, 0.0]))
    left, _, right = torch.linalg.svd(_random(5, 5))
    factors = LowRank(left @ change, right.T)
    constrained = PRUNING.constrain(factors, weight, PruneSettings())
    values = torch.linalg.svdvals(constrained.dense())
    expected = [math.log(25) + 4, math.log(1.25) + 4, 3.9, 0.5, 0]
    torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["low rank", "masked", "dense"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_change_within_the_weights_range_is_returned_as_it_is(kind: str, dtype: torch.dtype) -> None:
    change = change_of(kind, 12, 20, dtype=dtype, scale=1e-3)
    assert PRUNING.constrain(change, _random(12, 20, seed=7, dtype=dtype), PruneSettings()) is change


def test_a_change_of_nothing_is_returned_as_it_is() -> None:
    for change in (
        LowRank(torch.zeros(4, 0), torch.zeros(5, 0)),
        LowRank(torch.zeros(4, 2), _random(5, 2)),
        Dense(torch.zeros(4, 5)),
    ):
        assert PRUNING.constrain(change, _random(4, 5), PruneSettings()) is change


def test_columns_that_repeat_one_another_are_constrained_together() -> None:
    """Facts of like keys: the factors have less than full rank."""
    residual, gain = _random(6, 2), _random(9, 2, seed=1)
    change = LowRank(torch.cat([residual] * 20, 1), torch.cat([gain] * 20, 1))
    weight = _random(6, 9, seed=7)
    constrained = PRUNING.constrain(change, weight, PruneSettings())
    expected = constrained_values(_product(change), weight, math.e)
    assert (constrained.dense().double() - expected).norm() <= 1e-5 * expected.norm()


def test_half_precision_weights_have_the_singular_values_of_their_values() -> None:
    change, weight = change_of("low rank", 6, 9, scale=5), _random(6, 9, seed=7).bfloat16()
    constrained = PRUNING.constrain(change, weight, PruneSettings())
    expected = constrained_values(_product(change), weight, math.e)
    assert (constrained.dense().double() - expected).norm() <= 1e-5 * expected.norm()


def test_weights_seen_transposed_have_the_same_singular_values() -> None:
    change, stored = change_of("low rank", 6, 9, scale=5), _random(9, 6, seed=7)
    one = PRUNING.constrain(change, stored.T, PruneSettings())
    other = PRUNING.constrain(change, stored.T.contiguous(), PruneSettings())
    torch.testing.assert_close(one.dense(), other.dense(), rtol=1e-6, atol=1e-6)


# -- in methods --------------------------------------------------------------------------------------------------------

LAYERS = (0, 1, 2)


def test_what_constraints_say_of_themselves() -> None:
    assert (RELATIVE_CHANGE.when, PRUNING.when) == ("batch", "sequence")
    assert (RELATIVE_CHANGE.settings.names(), PRUNING.settings.names()) == (("rect_keep",), ("prune_base",))
    assert RelativeChange() == RELATIVE_CHANGE
    assert Pruning() == PRUNING
    assert (RECT.constraint, PRUNE.constraint) == (RELATIVE_CHANGE, PRUNING)


@pytest.mark.filterwarnings("ignore:the change of layer")
@pytest.mark.parametrize("strategy", ["even", "boundary"])
def test_rect_is_memit_with_most_entries_zeroed_in_the_end(
    tiny_models: EditableModel, moments: object, world_facts: tuple[Fact, ...], strategy: str
) -> None:
    """Layers are solved on the unconstrained changes below them: factors are MEMIT's, to the bit."""
    options = {
        "layers": LAYERS, "templates": ["{}"], "strategy": strategy, "corpus": moments(tiny_models.structure.d_ff),  # type: ignore[operator]
        "settings": {"lambda": 2.0, "v_num_grad_steps": 2},
    }  # fmt: skip
    plain = bluedit.edit(tiny_models, world_facts[:2], method=MEMIT, **options)
    constrained = bluedit.edit(tiny_models, world_facts[:2], method=RECT, **options)
    for name, change in constrained.changes.items():
        assert isinstance(change, Masked)
        assert all(torch.equal(change.factors.tensors()[part], value) for part, value in plain.changes[name].tensors().items())
        record = constrained.manifest.weights[name]
        weight = tiny_models.matrix(record.layer)
        sizes = (change.factors.dense() / (weight + 1e-8)).abs()
        assert change.mask_DF.tolist() == brute_force(sizes.tolist(), 0.4)
        assert record.norm == pytest.approx(change.dense().double().norm().item(), rel=1e-9)
        assert record.relative_norm == pytest.approx(record.norm / weight.double().norm().item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:the change of layer")
@pytest.mark.parametrize("constraint", [Pruning(when="batch"), RelativeChange(when="sequence")])
def test_constraints_act_when_they_say(
    own_gpt2: EditableModel, moments: object, world_facts: tuple[Fact, ...], constraint: Pruning | RelativeChange
) -> None:
    """The other way round from the published methods."""
    method = replace(MEMIT, name="mine", constraint=constraint)
    settings = {"lambda": 1e-3, "v_num_grad_steps": 3, "v_lr": 10.0, "clamp_norm_factor": 100.0}
    options = {"layers": LAYERS, "templates": ["{}"], "corpus": moments(48), "settings": settings}  # type: ignore[operator]
    weights = {layer: own_gpt2.matrix(layer).clone() for layer in LAYERS}
    session = bluedit.Session(own_gpt2, method=method, **options)
    plain = bluedit.edit(own_gpt2, world_facts[:2], method=MEMIT, **options)
    first = session.apply(world_facts[:2])
    for name, change in first.changes.items():
        weight = weights[first.manifest.weights[name].layer]
        expected = (
            constraint.constrain(plain.changes[name], weight, session.setup.settings)
            if constraint.when == "batch"
            else plain.changes[name]
        )
        assert torch.equal(change.dense(), expected.dense())
    session.apply(world_facts[2:4])
    unconstrained = [dict(patch.changes) for patch in session.patches]
    whole = session.finish()
    assert session.finished == (constraint.when == "sequence")
    if constraint.when == "sequence":
        for name, change in whole.changes.items():
            dense = sum(changes[name].dense() for changes in unconstrained)
            kept = change.dense() != 0
            assert int(kept.sum()) == int(0.4 * 32 * 48)
            torch.testing.assert_close(change.dense()[kept], dense[kept], rtol=1e-4, atol=1e-4)
    session.undo(2)


class _Halving:
    """A constraint of one's own: any object with these members."""

    name = "halving"
    settings = RectSettings
    when = "batch"

    def constrain(self, change: Change, weight_DF: Tensor, settings: RectSettings) -> Change:
        return Dense(change.dense() * settings.rect_keep)


@pytest.mark.filterwarnings("ignore:the change of layer")
def test_a_constraint_of_ones_own(tiny_gpt2: EditableModel, moments: object, world_facts: tuple[Fact, ...]) -> None:
    method: Method = replace(MEMIT, name="mine", constraint=_Halving())  # type: ignore[arg-type]
    assert "rect_keep" in method.uses
    options = {"layers": [1], "templates": ["{}"], "corpus": moments(48)}  # type: ignore[operator]
    settings = {"lambda": 2.0, "v_num_grad_steps": 2}
    plain = bluedit.edit(tiny_gpt2, world_facts[:2], method=MEMIT, settings=settings, **options)
    halved = bluedit.edit(tiny_gpt2, world_facts[:2], method=method, settings=settings | {"rect_keep": 0.5}, **options)
    for name, change in halved.changes.items():
        assert torch.equal(change.dense(), plain.changes[name].dense() / 2)
