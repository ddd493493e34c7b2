"""Fine-tuning in a box, against one full forward pass per fact and torch's own Adam."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import bluedit
from bluedit.editors.fine_tuning.methods import FineTuningSettings
from bluedit.editors.fine_tuning.training import Tuned, fine_tune
from bluedit.edits import Dense
from bluedit.errors import NumericsError, SettingsError
from bluedit.facts import Fact
from bluedit.methods import FT_L, FT_M, FineTuning
from bluedit.models import EditableModel

AT_ONCE, FORCED = FT_L, FT_M
SETTINGS = FineTuningSettings(ft_num_steps=4, ft_lr=5e-3, norm_constraint=1e-2)

each_tuning = pytest.mark.parametrize("tuning", [AT_ONCE, FORCED], ids=["FT-L", "FT-M"])


@pytest.fixture
def facts(world_facts: tuple[Fact, ...]) -> list[Fact]:
    """Facts whose targets take different numbers of tokens, one of them a single one."""
    chosen = [
        replace(fact, target=target) for fact, target in zip(world_facts, ("a", "horn of the mountain", "Paris"), strict=False)
    ]
    return [*chosen, replace(world_facts[3], id="start", prompt="{} once had", target="some gold there")]


def logits(model: EditableModel, ids: Sequence[int]) -> Tensor:
    return model.model(torch.tensor([list(ids)]), use_cache=False).logits[0]


def textbook_loss(model: EditableModel, fact: Fact, forced: bool) -> Tensor:
    """One fact's loss: a forward pass for every target token after those before it, or one for all of them."""
    prompt, target = list(model.text.prompt(fact.text)), list(model.text.target(fact.target))
    each = []
    for number, token in enumerate(target):
        seen = prompt + (target[:number] if forced else [])
        each.append(-logits(model, seen)[-1].log_softmax(-1)[token])
    return torch.stack(each).mean()


def textbook(
    model: EditableModel, facts: Sequence[Fact], layer: int, settings: FineTuningSettings, forced: bool
) -> tuple[Tensor, int, list[float]]:
    """The change as W is stored, the steps, and the losses of the last evaluation."""
    weight = model.weight(layer)
    start = weight.detach().clone()
    optimizer = torch.optim.Adam([weight], lr=settings.ft_lr)
    steps, losses = 0, []
    for _ in range(settings.ft_num_steps):
        each = torch.stack([textbook_loss(model, fact, forced) for fact in facts])
        losses = each.tolist()
        if each.mean() < settings.ft_early_stop_loss:
            break
        model.model.zero_grad(set_to_none=True)
        each.mean().backward()
        optimizer.step()
        steps += 1
        with torch.no_grad():
            weight.copy_(weight.clamp(start - settings.norm_constraint, start + settings.norm_constraint))
    model.model.zero_grad(set_to_none=True)
    return weight.detach() - start, steps, losses


def size(tuned: Tuned) -> float:
    return tuned.change_DF.abs().max().item()


# -- what it computes --------------------------------------------------------------------------------------------------


@each_tuning
def test_training_equals_the_textbook(tiny_models: EditableModel, facts: list[Fact], tuning: FineTuning) -> None:
    layer = 2 if tuning.teacher_forcing else 0
    tuned = fine_tune(tiny_models, facts, layer, tuning, SETTINGS)
    own = EditableModel(copy.deepcopy(tiny_models.model), tiny_models.tokenizer)
    change, steps, losses = textbook(own, facts, layer, SETTINGS, tuning.teacher_forcing)
    assert tuned.steps == steps == 4
    assert tuned.losses == pytest.approx(losses, rel=1e-4)
    expected = own.structure.oriented(change)
    assert tuned.change_DF.shape == expected.shape == (own.structure.d_model, own.structure.d_ff)
    # Adam's first steps are as large where a gradient is tiny, and there its sign may be rounding.
    assert (tuned.change_DF - expected).norm() <= 1e-2 * expected.norm()


@each_tuning
def test_the_first_loss_is_that_of_the_model_as_it_is(
    tiny_models: EditableModel, facts: list[Fact], tuning: FineTuning
) -> None:
    """In the order of the facts, whatever order they are batched in."""
    for budget in (1, 40, 10_000):
        tuned = fine_tune(tiny_models, facts, 1, tuning, SETTINGS.override({"ft_num_steps": 1}), token_budget=budget)
        expected = [textbook_loss(tiny_models, fact, tuning.teacher_forcing).item() for fact in facts]
        assert tuned.losses == pytest.approx(expected, rel=1e-4)
        assert tuned.steps == 1


def test_the_two_losses_are_one_for_targets_of_one_token(tiny_gpt2: EditableModel, facts: list[Fact]) -> None:
    short = [replace(fact, target="a") for fact in facts]
    assert {len(tiny_gpt2.text.target(fact.target)) for fact in short} == {1}
    one, other = (fine_tune(tiny_gpt2, short, 1, tuning, SETTINGS) for tuning in (AT_ONCE, FORCED))
    assert one.losses == other.losses
    assert torch.equal(one.change_DF, other.change_DF)
    one, other = (fine_tune(tiny_gpt2, facts, 1, tuning, SETTINGS) for tuning in (AT_ONCE, FORCED))
    assert not torch.equal(one.change_DF, other.change_DF)


def test_a_prompt_shorter_than_its_target(tiny_gpt2: EditableModel) -> None:
    """All tokens of the target are asked for at the last token of a prompt that has fewer of them."""
    fact = Fact("{}", "a", "the horn of the mountain of gold", id="short")
    assert len(tiny_gpt2.text.prompt(fact.text)) < len(tiny_gpt2.text.target(fact.target))
    for tuning in (AT_ONCE, FORCED):
        tuned = fine_tune(tiny_gpt2, [fact], 1, tuning, SETTINGS.override({"ft_num_steps": 1}))
        assert tuned.losses == pytest.approx([textbook_loss(tiny_gpt2, fact, tuning.teacher_forcing).item()], rel=1e-4)


@each_tuning
def test_facts_are_weighed_alike_however_they_are_batched(
    tiny_gpt2: EditableModel, facts: list[Fact], tuning: FineTuning
) -> None:
    """The gradient is accumulated over passes: it is that of the mean over all facts, whatever fits into one."""
    whole = fine_tune(tiny_gpt2, facts, 1, tuning, SETTINGS)
    for budget in (1, 30, 60):
        parts = fine_tune(tiny_gpt2, facts, 1, tuning, SETTINGS, token_budget=budget)
        assert parts.steps == whole.steps
        assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
        assert (parts.change_DF - whole.change_DF).norm() <= 1e-2 * whole.change_DF.norm()


@each_tuning
def test_order_does_not_matter(tiny_gpt2: EditableModel, facts: list[Fact], tuning: FineTuning) -> None:
    one = fine_tune(tiny_gpt2, facts, 1, tuning, SETTINGS)
    other = fine_tune(tiny_gpt2, facts[::-1], 1, tuning, SETTINGS)
    assert one.losses == pytest.approx(other.losses[::-1], rel=1e-4)
    assert (one.change_DF - other.change_DF).norm() <= 1e-2 * one.change_DF.norm()


# -- the box -----------------------------------------------------------------------------------------------------------


@each_tuning
@pytest.mark.parametrize("limit", [1e-4, 1e-3, 1e-2])
def test_no_entry_leaves_the_box(tiny_models: EditableModel, facts: list[Fact], tuning: FineTuning, limit: float) -> None:
    settings = SETTINGS.override({"norm_constraint": limit, "ft_lr": 1e-2, "ft_num_steps": 3})
    tuned = fine_tune(tiny_models, facts, 1, tuning, settings)
    rounding = torch.finfo(torch.float32).eps * tiny_models.weight(1).detach().abs().max().item()
    assert limit / 2 < size(tuned) <= limit + rounding
    at_the_wall = (tuned.change_DF.abs() >= limit - rounding).float().mean().item()
    assert at_the_wall > 0.5, "steps are as wide as the box: most entries stand at its walls"


def test_entries_come_back_from_the_wall(tiny_gpt2: EditableModel, facts: list[Fact]) -> None:
    """The weight is clamped after every step, not the change in the end: some entries turn round."""
    settings = SETTINGS.override({"norm_constraint": 1e-2, "ft_lr": 5e-3, "ft_num_steps": 12})
    tuned = fine_tune(tiny_gpt2, facts[:1], 1, FORCED, settings)
    assert size(tuned) <= 1e-2 + 1e-6
    assert ((tuned.change_DF.abs() > 0) & (tuned.change_DF.abs() < 9e-3)).any()


@each_tuning
def test_the_loss_falls(tiny_models: EditableModel, facts: list[Fact], tuning: FineTuning) -> None:
    settings = SETTINGS.override({"norm_constraint": 1, "ft_num_steps": 12})
    losses = [
        fine_tune(tiny_models, facts, 2, tuning, settings.override({"ft_num_steps": steps})).losses for steps in (1, 4, 12)
    ]
    means = [sum(values) / len(values) for values in losses]
    assert means[0] > means[1] > means[2]


@each_tuning
def test_the_trained_weight_has_the_loss_that_was_reported(
    own_gpt2: EditableModel, facts: list[Fact], tuning: FineTuning
) -> None:
    """The last loss is that before the last step; the change holds the last step, too."""
    longer = fine_tune(own_gpt2, facts, 1, tuning, SETTINGS.override({"ft_num_steps": 4}))
    shorter = fine_tune(own_gpt2, facts, 1, tuning, SETTINGS.override({"ft_num_steps": 3}))
    Dense(shorter.change_DF).add_to(own_gpt2.matrix(1))
    with torch.no_grad():
        losses = [textbook_loss(own_gpt2, fact, tuning.teacher_forcing).item() for fact in facts]
    assert losses == pytest.approx(longer.losses, rel=1e-3)


# -- stopping ----------------------------------------------------------------------------------------------------------


@each_tuning
def test_training_stops_once_the_mean_loss_is_low_enough(
    tiny_gpt2: EditableModel, facts: list[Fact], tuning: FineTuning
) -> None:
    settings = SETTINGS.override({"norm_constraint": 1, "ft_num_steps": 8})
    means = []
    for steps in range(1, 9):
        losses = fine_tune(tiny_gpt2, facts, 1, tuning, settings.override({"ft_num_steps": steps})).losses
        means.append(sum(losses) / len(losses))
    assert means == sorted(means, reverse=True)
    limit = (means[4] + means[5]) / 2
    done: list[int] = []
    tuned = fine_tune(tiny_gpt2, facts, 1, tuning, settings.override({"ft_early_stop_loss": limit}), progress=done.append)
    assert tuned.steps == 5
    assert sum(tuned.losses) / len(facts) == pytest.approx(means[5], rel=1e-5)
    assert sum(done) == 6, "five evaluations were followed by a step, and one was not"


@each_tuning
def test_a_loss_that_is_low_from_the_start_changes_nothing(
    tiny_gpt2: EditableModel, facts: list[Fact], tuning: FineTuning
) -> None:
    tuned = fine_tune(tiny_gpt2, facts, 1, tuning, SETTINGS.override({"ft_early_stop_loss": 100}))
    assert tuned.steps == 0
    assert not tuned.change_DF.any()


# -- the model afterwards ----------------------------------------------------------------------------------------------


def _state(model: EditableModel) -> tuple[dict[str, Tensor], dict[str, bool], dict[str, bool], bool]:
    network = model.model
    return (
        {name: value.detach().clone() for name, value in network.state_dict().items()},
        {name: parameter.requires_grad for name, parameter in network.named_parameters()},
        {name: module.training for name, module in network.named_modules()},
        any(parameter.grad is not None for parameter in network.parameters()),
    )


def _assert_unchanged(model: EditableModel, before: Any) -> None:
    now = _state(model)
    assert now[1:] == before[1:]
    assert all(torch.equal(value, before[0][name]) for name, value in now[0].items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


@pytest.fixture(params=["all ask", "none asks", "only the weight asks", "all but the weight ask", "in training"])
def odd(request: pytest.FixtureRequest, own_gpt2: EditableModel) -> EditableModel:
    """Models as callers may have left them."""
    for parameter in own_gpt2.model.parameters():
        parameter.requires_grad_(request.param not in ("none asks", "only the weight asks"))
    if "the weight" in request.param:
        own_gpt2.weight(1).requires_grad_(request.param == "only the weight asks")
    own_gpt2.model.train(request.param == "in training")
    return own_gpt2


@each_tuning
def test_the_model_is_left_as_it_was(odd: EditableModel, facts: list[Fact], tuning: FineTuning) -> None:
    before = _state(odd)
    tuned = fine_tune(odd, facts, 1, tuning, SETTINGS)
    _assert_unchanged(odd, before)
    assert tuned.change_DF.any()
    assert not tuned.change_DF.requires_grad
    odd.model.eval()
    expected = fine_tune(odd, facts, 1, tuning, SETTINGS)
    assert torch.equal(tuned.change_DF, expected.change_DF), "dropout is off in training"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_as_it_was_on_exceptions(odd: EditableModel, facts: list[Fact], error: type[BaseException]) -> None:
    before = _state(odd)
    calls = iter(range(10))

    def stop(_: int) -> None:
        if next(calls) == 2:
            changed = not torch.equal(odd.weight(1), before[0][odd.structure.weight_name(1)])
            assert changed, "the weight itself is trained"
            raise error

    with pytest.raises(error):
        fine_tune(odd, facts, 1, FORCED, SETTINGS, progress=stop)
    _assert_unchanged(odd, before)


def test_training_works_inside_no_grad(tiny_gpt2: EditableModel, facts: list[Fact]) -> None:
    expected = fine_tune(tiny_gpt2, facts, 1, FORCED, SETTINGS)
    with torch.no_grad():
        tuned = fine_tune(tiny_gpt2, facts, 1, FORCED, SETTINGS)
        assert not torch.is_grad_enabled()
    assert torch.equal(tuned.change_DF, expected.change_DF)


@each_tuning
def test_a_loss_that_is_not_finite_names_its_fact(own_gpt2: EditableModel, facts: list[Fact], tuning: FineTuning) -> None:
    with torch.no_grad():
        own_gpt2.weight(3).fill_(float("nan"))
    before = _state(own_gpt2)
    with pytest.raises(NumericsError, match=r"fact 'w0' \('.*'\) is not finite at step 0; lower ft_lr"):
        fine_tune(own_gpt2, facts, 1, tuning, SETTINGS)
    now = _state(own_gpt2)
    assert now[1:] == before[1:]
    assert torch.equal(own_gpt2.weight(1), before[0][own_gpt2.structure.weight_name(1)])


def test_the_fact_that_is_named_is_the_one(own_gpt2: EditableModel, facts: list[Fact]) -> None:
    """Facts are batched by length, and named by their place in what was given."""
    wanted = replace(facts[1], id="bad", target="zebra")
    token = own_gpt2.text.target("zebra")[0]
    others = [fact for fact in facts if token not in own_gpt2.text.target(fact.target)]
    for place in range(len(others) + 1):
        given = [*others[:place], wanted, *others[place:]]
        with pytest.raises(NumericsError, match="fact 'bad'"), _infinite(own_gpt2, token):
            fine_tune(own_gpt2, given, 1, AT_ONCE, SETTINGS)


@contextlib.contextmanager
def _infinite(model: EditableModel, token: int) -> Generator[None]:
    """Inside, one token is impossible after any text."""
    bias = torch.zeros(500)
    bias[token] = -torch.inf
    head = model.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, __, output: output + bias)  # type: ignore[union-attr]
    try:
        yield
    finally:
        handle.remove()


# -- precision ---------------------------------------------------------------------------------------------------------


@each_tuning
def test_half_precision_models_are_trained_in_single(own_gpt2: EditableModel, facts: list[Fact], tuning: FineTuning) -> None:
    """Steps smaller than the spacing of the weight's numbers add up."""
    own_gpt2.model.to(torch.bfloat16)
    before = own_gpt2.weight(1).detach().clone()
    spacing = 2.0**-8 * 0.3
    settings = SETTINGS.override({"ft_lr": spacing / 4, "norm_constraint": 1, "ft_num_steps": 6})
    tuned = fine_tune(own_gpt2, facts, 1, tuning, settings)
    assert own_gpt2.weight(1).dtype == torch.bfloat16
    assert torch.equal(own_gpt2.weight(1), before)
    assert tuned.change_DF.dtype == torch.float32
    assert size(tuned) > 2 * spacing / 4
    single = EditableModel(copy.deepcopy(own_gpt2.model).float(), own_gpt2.tokenizer)
    expected = fine_tune(single, facts, 1, tuning, settings)
    cosine = (tuned.change_DF * expected.change_DF).sum() / tuned.change_DF.norm() / expected.change_DF.norm()
    assert cosine > 0.7


def test_double_precision_models_are_trained_in_double(own_gpt2: EditableModel, facts: list[Fact]) -> None:
    expected = fine_tune(own_gpt2, facts, 1, FORCED, SETTINGS)
    own_gpt2.model.double()
    tuned = fine_tune(own_gpt2, facts, 1, FORCED, SETTINGS)
    assert tuned.change_DF.dtype == torch.float64
    assert tuned.losses == pytest.approx(expected.losses, rel=1e-4)
    change, _, losses = textbook(own_gpt2, facts, 1, SETTINGS, forced=True)
    torch.testing.assert_close(tuned.change_DF, own_gpt2.structure.oriented(change), rtol=1e-6, atol=1e-9)
    assert tuned.losses == pytest.approx(losses, rel=1e-9)


# -- as methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [FT_L, FT_M], ids=["FT-L", "FT-M"])
@pytest.mark.filterwarnings("ignore:the change of layer")
def test_methods_train_one_weight(own_gpt2: EditableModel, facts: list[Fact], method: Any) -> None:
    """No corpus and no templates are needed; the patch is the trained weight less the one before."""
    settings = {"ft_num_steps": 4, "ft_lr": 5e-3, "norm_constraint": 1e-2}
    patch = bluedit.edit(own_gpt2, facts, method=method, layers=[2], settings=settings, templates=["{}"])
    tuned = fine_tune(own_gpt2, facts, 2, method, FineTuningSettings(**settings))
    (name,) = patch.changes
    assert name == own_gpt2.structure.weight_name(2)
    assert torch.equal(patch.changes[name].dense(), tuned.change_DF)
    assert patch.manifest.settings == settings | {"ft_early_stop_loss": 1e-2}
    assert patch.manifest.corpus is None
    (record,) = patch.manifest.optimisation
    assert (record.layer, record.losses) == (2, tuned.losses)
    (weight,) = patch.manifest.weights.values()
    assert weight.condition is None
    assert weight.null_space_rank is None
    with patch.applied(own_gpt2):
        after = [textbook_loss(own_gpt2, fact, method.teacher_forcing).item() for fact in facts]
    assert sum(after) < sum(tuned.losses)


def test_the_record_counts_what_was_evaluated(own_gpt2: EditableModel, facts: list[Fact]) -> None:
    """As value optimisation counts: how often each fact's loss was evaluated, whether it was enough or not."""
    for steps, limit in ((3, 0.0), (3, 100.0)):
        counted: list[int] = []
        settings = {"ft_num_steps": steps, "ft_early_stop_loss": limit}
        patch = bluedit.edit(
            own_gpt2, facts, method=FT_M, layers=[2], settings=settings, templates=["{}"],
            progress=lambda task, advance, total, counted=counted: counted.append(advance),
        )  # fmt: skip
        assert patch.manifest.optimisation[0].evaluations == (sum(counted),) * len(facts)


def test_two_layers_are_refused(tiny_gpt2: EditableModel, facts: list[Fact]) -> None:
    with pytest.raises(SettingsError, match="one layer is edited, and 2 are named"):
        bluedit.edit(tiny_gpt2, facts, method=FT_M, layers=[1, 2], templates=["{}"])
