"""The battery that every editor passes with every strategy, on tiny models of several architectures.

Editors are the published methods and :data:`fake_editor.SHIFT`, which changes no weight. The textbook forms are of the
published methods only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import fake_editor
import oracles
import pytest
import torch
from fake_editor import SHIFT
from transformers.models.gptj.modeling_gptj import GPTJAttention
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import bluedit
from bluedit.edits import Edit, Patch, load_edit
from bluedit.errors import FactError, NumericsError, SessionError, SettingsError
from bluedit.facts import Fact
from bluedit.methods import METHODS, Editor, FineTuning, Method
from bluedit.models import EditableModel
from bluedit.sessions import Session
from bluedit.statistics import SecondMoment, Statistics
from bluedit.strategies import NO_LAYERS, SINGLE, STRATEGIES, Strategy, single

LAYERS = (0, 1, 2)
TEMPLATES = ("{}", "The old mill. {}", "I saw a dog. {}")
SETTINGS: dict[str, Any] = {
    "lambda": 2.0,
    "L2": 2.0,
    "nullspace_threshold": 1.2,  # about half of the directions of `statistics`
    "v_lr": 0.3,
    "v_num_grad_steps": 4,
    "prune_base": 1.5,
    "ft_lr": 0.02,
    "ft_num_steps": 4,
    "norm_constraint": 0.05,
    "shift_size": 2.0,
    "shift_layer": 2,
}
# PRUNE acts on changes that are large beside the weight.
SETTINGS_BY_METHOD: dict[str, dict[str, Any]] = {"prune": {"lambda": 1e-4, "v_lr": 10.0, "clamp_norm_factor": 100.0}}
ARCHITECTURES = ("gpt2", "gptj", "llama")

# Random weights are small, and some changes outgrow them: that is not what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:the change of layer")


def strategies_of(method: Editor) -> list[Strategy]:
    """Every strategy that means something to the editor; those that edit one layer with a layer to edit."""
    if method.strategy == NO_LAYERS:
        return [NO_LAYERS]
    if isinstance(method, FineTuning):
        return [SINGLE, single(1)]
    return [*STRATEGIES.values(), *([SINGLE] if method.strategy == SINGLE else [])]


def combinations(editors: Iterable[Editor]) -> pytest.MarkDecorator:
    found = [(method, strategy) for method in editors for strategy in strategies_of(method)]
    return pytest.mark.parametrize(
        ("method", "strategy"), found, ids=[f"{method.name}-{strategy.name}" for method, strategy in found]
    )


EDITORS: dict[str, Editor] = {**METHODS, SHIFT.name: SHIFT}
each_method = pytest.mark.parametrize("method", EDITORS.values(), ids=EDITORS)
each_combination = combinations(EDITORS.values())
each_published = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_published_combination = combinations(METHODS.values())


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, _models: dict[str, EditableModel]) -> EditableModel:
    return _models[request.param]


@pytest.fixture(scope="module")
def exact(_models: dict[str, EditableModel]) -> Callable[[EditableModel], EditableModel]:
    """A float64 twin of a model: what is left of differences is then no rounding."""
    twins: dict[int, EditableModel] = {}

    def twin(model: EditableModel) -> EditableModel:
        if id(model) not in twins:
            network = copy.deepcopy(model.model).double()
            for module in network.modules():
                if isinstance(module, GPTJAttention):
                    module._attn = partial(_attention, module)
                if isinstance(module, LlamaRMSNorm):
                    module.forward = partial(_norm, module)
            twins[id(model)] = EditableModel(network, model.tokenizer)
        return twins[id(model)]

    return twin


def _attention(
    module: GPTJAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """GPT-J's attention in its inputs' precision; its own narrows them to float32."""
    scores = query @ key.transpose(-1, -2) / module.scale_attn
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return weights @ value, weights


def _norm(module: LlamaRMSNorm, hidden: torch.Tensor) -> torch.Tensor:
    """Llama's norm in its input's precision; its own narrows it to float32."""
    return module.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + module.variance_epsilon)


def statistics(model: EditableModel) -> Statistics:
    """Well conditioned second moments, the same in every call."""
    generator = torch.Generator().manual_seed(5)
    size = model.structure.d_ff
    known = {}
    for layer in range(model.structure.depth):
        samples = torch.randn(3 * size, size, generator=generator, dtype=torch.float64)
        known[layer] = SecondMoment(samples.T @ samples / len(samples), len(samples))
    return Statistics(precomputed=known)


def settings_of(method: Editor) -> dict[str, Any]:
    return {name: value for name, value in SETTINGS.items() if name in method.uses} | SETTINGS_BY_METHOD.get(method.name, {})


def options(model: EditableModel, method: Editor, strategy: Strategy, **changes: Any) -> dict[str, Any]:
    """What an edit or a session takes: few steps, settings that make every ingredient act."""
    return {
        "method": method.with_strategy(strategy),
        "templates": TEMPLATES,
        "layers": LAYERS[1:2] if strategy.one_layer else LAYERS,
        "settings": settings_of(method),
        "corpus": statistics(model),
    } | changes


def batch(method: Editor, facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
    """As many of the facts as the method takes at once."""
    return facts[: method.largest_batch]


def edit(model: EditableModel, facts: tuple[Fact, ...], method: Editor, strategy: Strategy, **changes: Any) -> Any:
    return bluedit.edit(model, batch(method, facts), **options(model, method, strategy, **changes))


def weights(model: EditableModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_edits(one: Edit, other: Edit) -> bool:
    return type(one) is type(other) and same_bits(one.tensors(), other.tensors())


def dense(edit: Edit) -> dict[str, torch.Tensor]:
    """What an edit adds, whole: changes of weights, or what is stored of other kinds."""
    return {name: change.dense() for name, change in edit.changes.items()} or edit.tensors()


def logits(model: EditableModel, facts: tuple[Fact, ...]) -> torch.Tensor:
    """Of the network alone, on one fact's prompt: whatever an edit installs has its part in them."""
    with torch.no_grad():
        return model.model(torch.tensor([model.text.row(facts[0]).ids])).logits


def textbook(model: EditableModel, method: Editor, strategy: Strategy) -> oracles.TextbookSession:
    settings = method.override(options(model, method, strategy)["settings"])
    known = {layer: moment.matrix_FF for layer, moment in statistics(model).precomputed.items()}
    return oracles.TextbookSession(model, method.name, known, TEMPLATES, settings)


def assert_equal(patch: Patch, expected: dict[int, torch.Tensor], tolerance: float = 1e-6) -> None:
    assert {record.layer for record in patch.manifest.weights.values()} == set(expected)
    for name, record in patch.manifest.weights.items():
        dense = patch.changes[name].dense().double()
        assert (dense - expected[record.layer]).norm() <= tolerance * expected[record.layer].norm(), name
        assert record.norm == pytest.approx(dense.norm().item(), rel=1e-5)


@each_published_combination
def test_low_rank_equals_the_dense_textbook_edit(
    model: EditableModel,
    exact: Callable[[EditableModel], EditableModel],
    world_facts: tuple[Fact, ...],
    method: Editor,
    strategy: Strategy,
) -> None:
    """The whole loop in float64, against one fact at a time with full forward passes and dense solves: relative 1e-6."""
    model, facts = exact(model), world_facts[:3]  # the textbook takes a second or two for them
    patch = edit(model, facts, method, strategy)
    book = textbook(model, method, strategy)
    layers = options(model, method, strategy)["layers"]
    with model.restoring(LAYERS):
        changes = oracles.edit(
            model, batch(method, facts), strategy.steps(layers), book.moments, TEMPLATES, book.settings, method.name
        )
    assert_equal(patch, changes)


@each_published
def test_a_sequence_equals_the_dense_textbook_sequence(
    model: EditableModel, exact: Callable[[EditableModel], EditableModel], world_facts: tuple[Fact, ...], method: Editor
) -> None:
    """Batches in a session, with past keys where the method keeps them, against the textbook forms with Kp written out."""
    model = exact(model)
    strategy = method.strategy
    batches = (
        [world_facts[:1], world_facts[1:2]] if method.largest_batch else [world_facts[:3], world_facts[3:4], world_facts[4:]]
    )
    session, book = Session(model, **options(model, method, strategy)), textbook(model, method, strategy)
    steps = strategy.steps(session.setup.layers)
    patches = [session.apply(facts) for facts in batches]
    if method.ends_sequence:
        total = session.finish()
    session.undo(len(session))
    with model.restoring(LAYERS):
        before = {layer: book._weight(layer).double() for layer in LAYERS}
        for patch, facts in zip(patches, batches, strict=True):
            assert_equal(patch, book.apply(facts, steps))
    if method.name == "prune":
        base = book.settings.prune_base
        restrained = {
            layer: oracles.restrain_singular_values(change, before[layer], base) for layer, change in book.totals.items()
        }
        assert any((restrained[layer] - change).norm() > 0.01 * change.norm() for layer, change in book.totals.items())
        assert_equal(total, restrained)


@each_combination
def test_edit_leaves_the_model_and_revert_restores_it(
    model: EditableModel, world_facts: tuple[Fact, ...], method: Editor, strategy: Strategy
) -> None:
    before, said = weights(model), logits(model, world_facts)
    patch = edit(model, world_facts, method, strategy)
    assert same_bits(weights(model), before)
    assert torch.equal(logits(model, world_facts), said)
    patch.apply(model)
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == set(patch.weights)
    assert not torch.equal(logits(model, world_facts), said)
    patch.revert(model)
    assert same_bits(weights(model), before)
    assert torch.equal(logits(model, world_facts), said)


@each_combination
def test_equal_seeds_give_equal_patches(
    tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...], method: Editor, strategy: Strategy
) -> None:
    one, other = (edit(tiny_gpt2, world_facts, method, strategy, templates=None, seed=7) for _ in range(2))
    assert one.manifest.templates == other.manifest.templates
    assert same_edits(one, other)


@each_combination
def test_an_edit_of_nothing_is_the_identity(
    tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...], method: Editor, strategy: Strategy
) -> None:
    before, said = weights(tiny_gpt2), logits(tiny_gpt2, world_facts)
    patch = edit(tiny_gpt2, (), method, strategy)
    with patch.applied(tiny_gpt2):
        assert same_bits(weights(tiny_gpt2), before)
        assert torch.equal(logits(tiny_gpt2, world_facts), said)
    assert not patch.changes
    assert not patch.tensors()


@each_combination
def test_order_inside_a_batch_does_not_matter(
    tiny_gpt2: EditableModel,
    exact: Callable[[EditableModel], EditableModel],
    world_facts: tuple[Fact, ...],
    method: Editor,
    strategy: Strategy,
) -> None:
    model = exact(tiny_gpt2)
    one = dense(edit(model, world_facts, method, strategy))
    other = dense(edit(model, batch(method, world_facts)[::-1], method, strategy))
    assert one.keys() == other.keys()
    for name, change in one.items():
        assert (change - other[name]).norm() <= 1e-6 * change.norm()


@each_combination
def test_an_exception_in_the_middle_leaves_the_model_as_it_was(
    tiny_gpt2: EditableModel,
    world_facts: tuple[Fact, ...],
    method: Editor,
    strategy: Strategy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last step of the strategy fails, after the earlier ones have written their layers, or what an edit without steps
    does last, with its hook in the model; a session survives it."""
    session = Session(tiny_gpt2, **options(tiny_gpt2, method, strategy))
    before, said = weights(tiny_gpt2), logits(tiny_gpt2, world_facts)
    steps = strategy.steps(session.setup.layers)
    original = EditableModel.matrix
    seen: list[bool] = []

    def fail(self: EditableModel, layer: int) -> torch.Tensor:
        if layer == steps[-1].layer:
            seen.append(same_bits(weights(tiny_gpt2), before))
            raise RuntimeError("in the middle")
        return original(self, layer)

    def fail_reading(*_: Any) -> tuple[float, ...]:
        seen.append(torch.equal(logits(tiny_gpt2, world_facts), said))
        raise RuntimeError("in the middle")

    with monkeypatch.context() as failing:
        if steps:
            failing.setattr(EditableModel, "matrix", fail)
        else:
            failing.setattr(fake_editor, "losses", fail_reading)
        with pytest.raises(RuntimeError, match="in the middle"):
            session.apply(batch(method, world_facts))
    assert seen == [len(steps) == 1]
    assert same_bits(weights(tiny_gpt2), before)
    assert torch.equal(logits(tiny_gpt2, world_facts), said)
    after_failure = session.apply(batch(method, world_facts))
    session.undo()
    fresh = Session(tiny_gpt2, **options(tiny_gpt2, method, strategy))
    assert same_edits(after_failure, fresh.apply(batch(method, world_facts)))
    fresh.undo()


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_edited_in_float32(
    tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...], method: Editor, dtype: torch.dtype
) -> None:
    half = EditableModel(copy.deepcopy(tiny_gpt2.model).to(dtype), tiny_gpt2.tokenizer)
    before, said = weights(half), logits(half, world_facts)
    session = Session(half, **options(half, method, method.strategy))
    patch = session.apply(batch(method, world_facts))
    floating = [part for part in patch.tensors().values() if part.is_floating_point()]
    assert {part.dtype for part in floating} == {torch.float32}
    assert half.weight(1).dtype == dtype
    assert same_bits(weights(half), before) == (not patch.weights)
    assert not torch.equal(logits(half, world_facts), said)
    session.undo()
    assert same_bits(weights(half), before)
    assert torch.equal(logits(half, world_facts), said)


@each_method
def test_two_sessions_in_one_process_do_not_see_each_other(
    tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...], method: Editor
) -> None:
    """Interleaved with another session on another model, a session makes the same patches bit for bit."""
    first, second = batch(method, world_facts[:3]), batch(method, world_facts[3:])
    alone = Session(tiny_gpt2, **options(tiny_gpt2, method, method.strategy))
    expected = [alone.apply(first), alone.apply(second)]
    alone.undo(2)
    other_model = EditableModel(copy.deepcopy(tiny_gpt2.model), tiny_gpt2.tokenizer)
    with torch.no_grad():
        other_model.weight(0).mul_(1.5)
    mixed, other = (Session(model, **options(model, method, method.strategy)) for model in (tiny_gpt2, other_model))
    patches = []
    for facts, others in ((first, second), (second, first)):
        other.apply(others)
        patches.append(mixed.apply(facts))
    mixed.undo(2)
    assert all(same_edits(one, two) for one, two in zip(expected, patches, strict=True))


@each_method
def test_every_patch_survives_its_file(
    tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...], method: Editor, tmp_path: Any
) -> None:
    patch = edit(tiny_gpt2, world_facts, method, method.strategy)
    loaded = load_edit(patch.save(tmp_path / "patch.safetensors"))
    assert loaded.manifest == patch.manifest
    assert same_edits(loaded, patch)


@each_method
def test_the_manifest_holds_the_settings_that_count_and_no_others(
    tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...], method: Editor
) -> None:
    """Quiet ones are named where they have another value than their default, which here they do not."""
    manifest = edit(tiny_gpt2, world_facts, method, method.strategy).manifest
    quiet = {name for name, one in method.settings.described().items() if one.quiet}
    assert set(manifest.settings) == set(method.uses) - quiet
    assert manifest.method == method.name
    assert manifest.settings | settings_of(method) == manifest.settings


@pytest.mark.parametrize("name", ["memit-seq", "alphaedit"])
def test_past_keys_protect_earlier_batches(tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...], name: str) -> None:
    """What a batch does at the keys of the batch before is smaller with past keys than without."""
    method = METHODS[name]
    disturbed: dict[bool, float] = {}
    for keeps in (True, False):
        session = Session(tiny_gpt2, **options(tiny_gpt2, replace(method, caches_keys=keeps), single(1)))
        session.apply(world_facts[:3])
        keys_FN = bluedit.editors.closed_form.keys.fact_keys(tiny_gpt2, world_facts[:3], 1, TEMPLATES)
        second = session.apply(world_facts[3:])
        disturbed[keeps] = (next(iter(second.changes.values())).dense() @ keys_FN).norm().item()
        session.undo(2)
    assert disturbed[True] < 0.9 * disturbed[False]


def test_a_plain_transformers_model_is_edited_with_its_tokenizer(
    tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...]
) -> None:
    memit = METHODS["memit"]
    given = options(tiny_gpt2, memit, memit.strategy) | {"method": None}
    plain = bluedit.edit(tiny_gpt2.model, world_facts, tokenizer=tiny_gpt2.tokenizer, **given)
    wrapped = bluedit.edit(tiny_gpt2, world_facts, **given)
    assert plain.manifest.strategy == "boundary"
    assert same_edits(plain, wrapped)


def test_a_method_of_ones_own_is_a_value(tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...]) -> None:
    """Parts of several methods, put together: null space, two components, past keys, RECT's constraint, BLUE's strategy."""
    mine = Method(
        name="mine",
        strategy=bluedit.BOUNDARY,
        prior=bluedit.NULL_SPACE,
        caches_keys=True,
        objective=bluedit.MLP_AND_ATTENTION,
        constraint=bluedit.RELATIVE_CHANGE,
    )
    session = Session(tiny_gpt2, **options(tiny_gpt2, mine, mine.strategy))
    for facts in (world_facts[:3], world_facts[3:]):
        patch = session.apply(facts)
        assert {change.kind for change in patch.changes.values()} == {"masked"}
    # A constraint moves the weights after the keys were measured: past keys are those of the restrained model.
    kept = session._batches[-1].memory["2"]
    torch.testing.assert_close(kept, bluedit.editors.closed_form.keys.fact_keys(tiny_gpt2, world_facts[3:], 2, TEMPLATES))
    session.undo(2)


def test_what_cannot_be_edited_is_refused(tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...]) -> None:
    memit = METHODS["memit"]
    with pytest.raises(SettingsError, match="layers of this model"):
        edit(tiny_gpt2, world_facts, memit, memit.strategy, layers=None)
    with pytest.raises(SettingsError, match="layer 9 is not in this model"):
        edit(tiny_gpt2, world_facts, memit, memit.strategy, layers=(1, 9))
    with pytest.raises(SettingsError, match=r"'lamda'.*Did you mean 'lambda'"):
        edit(tiny_gpt2, world_facts, memit, memit.strategy, settings={"lamda": 1})
    with pytest.raises(SettingsError, match="memit does not use the setting 'L2'; it uses lambda"):
        edit(tiny_gpt2, world_facts, memit, memit.strategy, settings={"L2": 1})
    with pytest.raises(FactError, match="two targets"):
        edit(tiny_gpt2, (world_facts[0], replace(world_facts[0], id="again", target="x")), memit, memit.strategy)
    with pytest.raises(SettingsError, match=r"'mimit'.*Did you mean 'memit'"):
        bluedit.edit(tiny_gpt2, world_facts, method="mimit")


def test_combinations_that_make_no_sense_are_refused_with_the_reason(
    tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...]
) -> None:
    rome = METHODS["rome"]
    with pytest.raises(SettingsError, match=r"rome solves for 1 fact at a time, and was given 6.*emmet"):
        bluedit.edit(tiny_gpt2, world_facts, **options(tiny_gpt2, rome, rome.strategy))
    with pytest.raises(SettingsError, match=r"one layer is edited, and 3 are named"):
        edit(tiny_gpt2, world_facts, rome, rome.strategy, layers=LAYERS)
    with pytest.raises(SettingsError, match=r"ft-l trains one weight and has no residual.*'boundary'"):
        bluedit.blue(METHODS["ft-l"])
    session = Session(tiny_gpt2, **options(tiny_gpt2, METHODS["prune"], bluedit.BOUNDARY))
    session.apply(world_facts)
    with pytest.raises(SessionError, match=r"prune acts at the end of the sequence.*finish\(\)"):
        session.merged()
    session.undo()
    emmet = METHODS["emmet"]
    twins = (world_facts[0], Fact(world_facts[0].prompt, world_facts[0].subject, "x", id="twin"))
    with pytest.raises(FactError, match="two targets"):
        edit(tiny_gpt2, twins, emmet, emmet.strategy)
    # Two facts of one subject have one key, whatever is asked: with eps = 0 their residuals cannot both be met.
    twins = tuple(Fact(prompt, "Zhara Vrelk", "x", id=prompt) for prompt in ("{} is a", "{} was born in"))
    with pytest.raises(NumericsError, match=r"facts '\{\} is a' and '\{\} was born in' nearly coincide"):
        edit(tiny_gpt2, twins, emmet, emmet.strategy, templates=("{}",))


def test_a_change_that_outgrows_its_weight_is_warned_of(tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...]) -> None:
    tiny = Statistics(
        precomputed={
            layer: SecondMoment(1e-9 * m.matrix_FF, m.tokens) for layer, m in statistics(tiny_gpt2).precomputed.items()
        }
    )
    with tiny_gpt2.restoring(LAYERS), torch.no_grad():
        for layer in LAYERS:
            tiny_gpt2.weight(layer).mul_(1e-4)
        with pytest.warns(UserWarning, match=r"times as large as the weight.*shrinkage"):
            edit(tiny_gpt2, world_facts, METHODS["memit"], METHODS["memit"].strategy, corpus=tiny)


def test_a_singular_second_moment_stops_the_edit_and_leaves_the_model(
    tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...]
) -> None:
    size = tiny_gpt2.structure.d_ff
    flat = Statistics(precomputed={layer: SecondMoment(torch.zeros(size, size, dtype=torch.float64), 4) for layer in LAYERS})
    before = weights(tiny_gpt2)
    with pytest.raises(NumericsError, match="not positive definite"):
        edit(tiny_gpt2, world_facts, METHODS["memit"], METHODS["memit"].strategy, corpus=flat)
    assert same_bits(weights(tiny_gpt2), before)
