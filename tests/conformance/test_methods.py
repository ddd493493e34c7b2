"""The battery that every method passes with every strategy, on tiny models of several architectures."""

from __future__ import annotations

import copy
from dataclasses import replace

import oracles
import pytest
import torch

import bluedit
from bluedit.errors import FactError, NumericsError, SettingsError
from bluedit.facts import Fact
from bluedit.methods import METHODS, Method
from bluedit.models import EditableModel
from bluedit.statistics import SecondMoment, Statistics
from bluedit.strategies import STRATEGIES, Strategy

LAYERS = (0, 1, 2)
TEMPLATES = ("{}", "The old mill. {}", "I saw a dog. {}")
SETTINGS = {"lambda": 2.0, "v_lr": 0.3, "v_num_grad_steps": 5}

# Random weights are small, and some changes outgrow them: that is not what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:the change of layer")

each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def statistics(model: EditableModel) -> Statistics:
    """Well conditioned second moments, the same in every call."""
    generator = torch.Generator().manual_seed(5)
    size = model.structure.d_ff
    known = {}
    for layer in range(model.structure.depth):
        samples = torch.randn(3 * size, size, generator=generator, dtype=torch.float64)
        known[layer] = SecondMoment(samples.T @ samples / len(samples), len(samples))
    return Statistics(known=known)


def edit(model: EditableModel, facts: list[Fact], method: Method, strategy: Strategy, **options: object) -> bluedit.Patch:
    options = {"templates": TEMPLATES, "layers": LAYERS, "settings": SETTINGS, "corpus": statistics(model)} | options
    return bluedit.edit(model, facts, method=method, strategy=strategy, **options)


def weights(model: EditableModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@each_method
@each_strategy
def test_low_rank_equals_the_dense_textbook_edit(
    tiny_models: EditableModel, world_facts: list[Fact], method: Method, strategy: Strategy
) -> None:
    """The whole loop, against one fact at a time with full forward passes and dense solves."""
    patch = edit(tiny_models, world_facts, method, strategy)
    settings = method.settings.override(SETTINGS)
    known = {layer: moment.matrix_FF for layer, moment in statistics(tiny_models).known.items()}
    with tiny_models.restoring(LAYERS):
        changes = oracles.edit(tiny_models, world_facts, strategy.steps(LAYERS), known, TEMPLATES, settings)
    assert {record.layer for record in patch.manifest.weights.values()} == set(changes)
    for name, record in patch.manifest.weights.items():
        dense, expected = patch.changes[name].dense().double(), changes[record.layer]
        assert (dense - expected).norm() <= 1e-2 * expected.norm()
        assert record.norm == pytest.approx(dense.norm().item(), rel=1e-5)


@each_method
@each_strategy
def test_edit_leaves_the_model_and_revert_restores_it(
    tiny_models: EditableModel, world_facts: list[Fact], method: Method, strategy: Strategy
) -> None:
    before = weights(tiny_models)
    patch = edit(tiny_models, world_facts, method, strategy)
    assert same_bits(weights(tiny_models), before)
    patch.apply(tiny_models)
    changed = {name for name, value in weights(tiny_models).items() if not torch.equal(value, before[name])}
    assert changed == set(patch.changes)
    patch.revert(tiny_models)
    assert same_bits(weights(tiny_models), before)


@each_method
@each_strategy
def test_equal_seeds_give_equal_patches(
    tiny_gpt2: EditableModel, world_facts: list[Fact], method: Method, strategy: Strategy
) -> None:
    one, other = (edit(tiny_gpt2, world_facts, method, strategy, templates=None, seed=7) for _ in range(2))
    assert one.manifest.templates == other.manifest.templates
    for name, change in one.changes.items():
        assert torch.equal(change.residual_DN, other.changes[name].residual_DN)
        assert torch.equal(change.gain_FN, other.changes[name].gain_FN)


@each_method
@each_strategy
def test_an_edit_of_nothing_is_the_identity(tiny_gpt2: EditableModel, method: Method, strategy: Strategy) -> None:
    before = weights(tiny_gpt2)
    patch = edit(tiny_gpt2, [], method, strategy)
    with patch.applied(tiny_gpt2):
        assert same_bits(weights(tiny_gpt2), before)
    assert not patch.changes


@each_method
@each_strategy
def test_order_inside_a_batch_does_not_matter(
    tiny_gpt2: EditableModel, world_facts: list[Fact], method: Method, strategy: Strategy
) -> None:
    one = edit(tiny_gpt2, world_facts, method, strategy)
    other = edit(tiny_gpt2, world_facts[::-1], method, strategy)
    for name, change in one.changes.items():
        dense = change.dense()
        assert (dense - other.changes[name].dense()).norm() <= 1e-3 * dense.norm()


@each_method
@each_strategy
def test_an_exception_in_the_middle_leaves_the_model_as_it_was(
    tiny_gpt2: EditableModel, world_facts: list[Fact], method: Method, strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of the strategy fails, after the earlier ones have written their layers."""
    before = weights(tiny_gpt2)
    last = strategy.steps(LAYERS)[-1].layer
    original = EditableModel.matrix

    def fail(self: EditableModel, layer: int) -> torch.Tensor:
        if layer == last:
            assert not same_bits(weights(tiny_gpt2), before)
            raise RuntimeError("in the middle")
        return original(self, layer)

    monkeypatch.setattr(EditableModel, "matrix", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        edit(tiny_gpt2, world_facts, method, strategy)
    assert same_bits(weights(tiny_gpt2), before)


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_edited_in_float32(
    tiny_gpt2: EditableModel, world_facts: list[Fact], method: Method, dtype: torch.dtype
) -> None:
    half = EditableModel(copy.deepcopy(tiny_gpt2.model).to(dtype), tiny_gpt2.tokenizer)
    before = weights(half)
    patch = edit(half, world_facts, method, method.strategy)
    assert all(change.residual_DN.dtype == torch.float32 for change in patch.changes.values())
    with patch.applied(half):
        assert half.weight(1).dtype == dtype
        assert not same_bits(weights(half), before)
    assert same_bits(weights(half), before)


@each_method
def test_two_models_in_one_process_do_not_see_each_other(
    tiny_gpt2: EditableModel, world_facts: list[Fact], method: Method
) -> None:
    alone = edit(tiny_gpt2, world_facts, method, method.strategy)
    other = EditableModel(copy.deepcopy(tiny_gpt2.model), tiny_gpt2.tokenizer)
    with torch.no_grad():
        other.weight(0).mul_(1.5)
    edit(other, world_facts[::-1], method, method.strategy).apply(other)
    again = edit(tiny_gpt2, world_facts, method, method.strategy)
    for name, change in alone.changes.items():
        assert torch.equal(change.residual_DN, again.changes[name].residual_DN)


def test_a_plain_transformers_model_is_edited_with_its_tokenizer(tiny_gpt2: EditableModel, world_facts: list[Fact]) -> None:
    options = {"layers": LAYERS, "templates": TEMPLATES, "settings": SETTINGS, "corpus": statistics(tiny_gpt2)}
    plain = bluedit.edit(tiny_gpt2.model, tiny_gpt2.tokenizer, world_facts, **options)
    wrapped = bluedit.edit(tiny_gpt2, world_facts, **options)
    assert plain.manifest.strategy == "boundary"
    assert all(torch.equal(plain.changes[name].gain_FN, change.gain_FN) for name, change in wrapped.changes.items())


def test_what_cannot_be_edited_is_refused(tiny_gpt2: EditableModel, world_facts: list[Fact]) -> None:
    memit = METHODS["memit"]
    with pytest.raises(SettingsError, match="layers of this model"):
        edit(tiny_gpt2, world_facts, memit, memit.strategy, layers=None)
    with pytest.raises(SettingsError, match="layer 9 is not in this model"):
        edit(tiny_gpt2, world_facts, memit, memit.strategy, layers=(1, 9))
    with pytest.raises(SettingsError, match=r"'lamda'.*Did you mean 'lambda'"):
        edit(tiny_gpt2, world_facts, memit, memit.strategy, settings={"lamda": 1})
    with pytest.raises(FactError, match="two targets"):
        edit(tiny_gpt2, [world_facts[0], replace(world_facts[0], id="again", target="x")], memit, memit.strategy)
    with pytest.raises(SettingsError, match=r"'mimit'.*Did you mean 'memit'"):
        bluedit.edit(tiny_gpt2, world_facts, method="mimit")


def test_a_change_that_outgrows_its_weight_is_warned_of(tiny_gpt2: EditableModel, world_facts: list[Fact]) -> None:
    tiny = Statistics(
        known={layer: SecondMoment(1e-9 * m.matrix_FF, m.tokens) for layer, m in statistics(tiny_gpt2).known.items()}
    )
    with tiny_gpt2.restoring(LAYERS), torch.no_grad():
        for layer in LAYERS:
            tiny_gpt2.weight(layer).mul_(1e-4)
        with pytest.warns(UserWarning, match=r"times as large as the weight.*shrinkage"):
            edit(tiny_gpt2, world_facts, METHODS["memit"], METHODS["memit"].strategy, corpus=tiny)


def test_a_singular_second_moment_stops_the_edit_and_leaves_the_model(
    tiny_gpt2: EditableModel, world_facts: list[Fact]
) -> None:
    size = tiny_gpt2.structure.d_ff
    flat = Statistics(known={layer: SecondMoment(torch.zeros(size, size, dtype=torch.float64), 4) for layer in LAYERS})
    before = weights(tiny_gpt2)
    with pytest.raises(NumericsError, match="not positive definite"):
        edit(tiny_gpt2, world_facts, METHODS["memit"], METHODS["memit"].strategy, corpus=flat)
    assert same_bits(weights(tiny_gpt2), before)
