"""Batched value optimisation equals one fact at a time with full forward passes and torch's own Adam."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import oracles
import pytest
import torch

from bluedit.editors.closed_form.keys import fact_keys, fact_states
from bluedit.editors.closed_form.objectives import ValueSettings
from bluedit.editors.closed_form.optimizer import optimise_values
from bluedit.editors.losses import mean_by_row, readings, weight_decay
from bluedit.errors import FactError, NumericsError, ResourceError, SettingsError
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.models.forward.prefix import Injection
from bluedit.models.inputs.templates import check_templates, context_templates

TEMPLATES = ("{}", "The old mill. {}", "I saw a dog by the quarry. {}")
SETTINGS = ValueSettings(v_lr=0.3, v_num_grad_steps=8, kl_factor=0.5, v_weight_decay=0.7)


@pytest.mark.parametrize("layer", [0, 2])
def test_values_equal_the_textbook(tiny_models: EditableModel, world_facts: list[Fact], layer: int) -> None:
    values = optimise_values(tiny_models, world_facts, layer, TEMPLATES, SETTINGS)
    for column, fact in enumerate(world_facts):
        target, evaluations, loss = oracles.optimise(tiny_models, fact, layer, TEMPLATES, SETTINGS)
        assert values.evaluations[column] == evaluations
        assert values.losses[column] == pytest.approx(loss, rel=1e-4)
        torch.testing.assert_close(values.targets_DN[:, column], target, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(values.initial_DN[:, column], oracles.state(tiny_models, fact, layer), rtol=1e-4, atol=1e-5)


def test_facts_stop_one_by_one_and_do_not_affect_each_other(tiny_gpt2: EditableModel, world_facts: list[Fact]) -> None:
    free = {"v_num_grad_steps": 20, "v_lr": 1.0, "clamp_norm_factor": 50, "kl_factor": 0, "v_weight_decay": 0}
    settings = SETTINGS.override(free)
    lowest = optimise_values(tiny_gpt2, world_facts, 1, TEMPLATES, settings).losses
    # A loss that every fact reaches, at different steps.
    settings = settings.override({"early_stop_loss": 1.02 * max(lowest)})
    together = optimise_values(tiny_gpt2, world_facts, 1, TEMPLATES, settings)
    assert len(set(together.evaluations)) > 1
    for column, fact in enumerate(world_facts):
        alone = optimise_values(tiny_gpt2, [fact], 1, TEMPLATES, settings)
        assert alone.evaluations[0] == together.evaluations[column]
        torch.testing.assert_close(alone.targets_DN[:, 0], together.targets_DN[:, column], rtol=1e-3, atol=1e-4)


def test_small_waves_change_nothing(tiny_gpt2: EditableModel, world_facts: list[Fact]) -> None:
    one = optimise_values(tiny_gpt2, world_facts, 1, TEMPLATES, SETTINGS)
    other = optimise_values(tiny_gpt2, world_facts, 1, TEMPLATES, SETTINGS, token_budget=1)
    assert one.evaluations == other.evaluations
    torch.testing.assert_close(one.targets_DN, other.targets_DN, rtol=1e-3, atol=1e-4)


def test_memory_that_runs_out_costs_time_and_nothing_else(
    tiny_gpt2: EditableModel, world_facts: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = optimise_values(tiny_gpt2, world_facts, 1, TEMPLATES, SETTINGS)
    plain, failures, finished = Injection.logits, list[int](), list[int]()

    def logits(self: Injection, *arguments: Any) -> torch.Tensor:
        if len(self.rows) > 2 * (len(TEMPLATES) + 1):
            failures.append(len(self.rows))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *arguments)

    monkeypatch.setattr(Injection, "logits", logits)
    found = optimise_values(tiny_gpt2, world_facts, 1, TEMPLATES, SETTINGS, token_budget=10_000, progress=finished.append)
    assert failures
    assert sum(finished) == len(world_facts)
    assert found.evaluations == expected.evaluations
    torch.testing.assert_close(found.targets_DN, expected.targets_DN, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(Injection, "logits", _out_of_memory)
    with pytest.raises(ResourceError, match="a single row"):
        optimise_values(tiny_gpt2, world_facts, 1, TEMPLATES, SETTINGS)


def _out_of_memory(*_: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_facts_that_finished_before_memory_ran_out_are_not_optimised_again(
    tiny_gpt2: EditableModel, world_facts: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One prompt and one target: no padding parts them, and they are optimised in one wave.
    facts = [replace(world_facts[0], subject=fact.subject, id=fact.id) for fact in world_facts]
    settings = SETTINGS.override({"v_num_grad_steps": 20, "v_lr": 1.0, "clamp_norm_factor": 50, "kl_factor": 0})
    losses = sorted(optimise_values(tiny_gpt2, facts, 1, TEMPLATES, settings).losses)
    settings = settings.override({"early_stop_loss": (losses[1] + losses[2]) / 2})
    expected = optimise_values(tiny_gpt2, facts, 1, TEMPLATES, settings)
    plain, sizes = Injection.logits, list[int]()

    def logits(self: Injection, *arguments: Any) -> torch.Tensor:
        sizes.append(len(self.rows))
        if len(set(sizes)) == 2 and len(sizes) < 25:  # a fact has left, and the others are still at work
            sizes.append(0)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *arguments)

    monkeypatch.setattr(Injection, "logits", logits)
    finished: list[int] = []
    found = optimise_values(tiny_gpt2, facts, 1, TEMPLATES, settings, token_budget=10_000, progress=finished.append)
    assert sizes[0] >= len(facts) * len(TEMPLATES), "all facts are in the first wave"
    assert 0 in sizes, "memory never ran out"
    assert sum(finished) == len(facts)
    assert found.evaluations == expected.evaluations


def test_a_start_that_is_near_saves_evaluations(tiny_models: EditableModel, world_facts: list[Fact]) -> None:
    cold = optimise_values(tiny_models, world_facts, 1, TEMPLATES, SETTINGS)
    found_DN = cold.targets_DN - cold.initial_DN
    once = SETTINGS.override({"v_num_grad_steps": 1})
    warm = optimise_values(tiny_models, world_facts, 1, TEMPLATES, once, start_DN=found_DN)
    # The last evaluation takes no step: started from where the others ended, their losses are seen again, divergence and all.
    assert warm.losses == pytest.approx(cold.losses, rel=1e-4)
    torch.testing.assert_close(warm.targets_DN, cold.targets_DN, rtol=1e-4, atol=1e-5)
    zero = optimise_values(tiny_models, world_facts, 1, TEMPLATES, SETTINGS, start_DN=torch.zeros_like(found_DN))
    torch.testing.assert_close(zero.targets_DN, cold.targets_DN, rtol=1e-3, atol=1e-4)
    far = optimise_values(tiny_models, world_facts, 1, TEMPLATES, once, start_DN=1e4 * found_DN)
    norms_N = (far.targets_DN - far.initial_DN).norm(dim=0)
    torch.testing.assert_close(norms_N, SETTINGS.clamp_norm_factor * far.initial_DN.norm(dim=0), rtol=1e-3, atol=1e-6)


def test_autocast_is_near_full_precision_and_recorded(tiny_gpt2: EditableModel, world_facts: list[Fact]) -> None:
    full = optimise_values(tiny_gpt2, world_facts, 1, TEMPLATES, SETTINGS)
    half = optimise_values(tiny_gpt2, world_facts, 1, TEMPLATES, SETTINGS.override({"v_autocast": "bfloat16"}))
    assert half.targets_DN.dtype == torch.float32
    assert not torch.equal(half.targets_DN, full.targets_DN), "nothing was run in half precision"
    for one, other in zip(full.losses, half.losses, strict=True):
        assert other == pytest.approx(one, rel=0.1)
    assert SETTINGS.override({"v_autocast": "bfloat16"}).as_dict()["v_autocast"] == "bfloat16"
    with pytest.raises(SettingsError, match="v_autocast"):
        SETTINGS.override({"v_autocast": "int8"})


def test_delta_stays_in_its_ball_and_progress_counts_every_fact(tiny_gpt2: EditableModel, world_facts: list[Fact]) -> None:
    settings = SETTINGS.override({"clamp_norm_factor": 0.01, "v_lr": 1.0})
    finished: list[int] = []
    values = optimise_values(tiny_gpt2, world_facts, 1, TEMPLATES, settings, progress=finished.append)
    norms = (values.targets_DN - values.initial_DN).norm(dim=0)
    torch.testing.assert_close(norms, 0.01 * values.initial_DN.norm(dim=0), rtol=1e-3, atol=1e-6)
    assert sum(finished) == len(world_facts)


def test_one_evaluation_takes_no_step(tiny_gpt2: EditableModel, world_facts: list[Fact]) -> None:
    values = optimise_values(tiny_gpt2, world_facts, 1, TEMPLATES, SETTINGS.override({"v_num_grad_steps": 1}))
    assert set(values.evaluations) == {1}
    assert torch.equal(values.targets_DN, values.initial_DN)


def test_no_facts_no_values(tiny_gpt2: EditableModel) -> None:
    assert optimise_values(tiny_gpt2, [], 1, TEMPLATES, SETTINGS).targets_DN.shape == (tiny_gpt2.structure.d_model, 0)


def test_a_loss_that_is_not_finite_names_its_fact(tiny_gpt2: EditableModel, world_facts: list[Fact]) -> None:
    with tiny_gpt2.restoring([3]), torch.no_grad():
        tiny_gpt2.weight(3).fill_(float("nan"))
        with pytest.raises(NumericsError, match=world_facts[0].id):
            optimise_values(tiny_gpt2, world_facts[:1], 1, TEMPLATES, SETTINGS)


def test_a_prompt_longer_than_the_context_is_refused(tiny_gpt2: EditableModel) -> None:
    fact = Fact("{} " + "and so on " * 200, "Zhand", "salt", id="long")
    with pytest.raises(FactError, match=r"'long' takes \d+ tokens.*shorten"):
        optimise_values(tiny_gpt2, [fact], 1, TEMPLATES, SETTINGS)


@pytest.mark.parametrize("templates", [TEMPLATES, TEMPLATES[:1]])
def test_keys_and_states_equal_the_textbook(
    tiny_models: EditableModel, world_facts: list[Fact], templates: tuple[str, ...]
) -> None:
    keys = fact_keys(tiny_models, world_facts, 1, templates)
    states = fact_states(tiny_models, world_facts, 2)
    for column, fact in enumerate(world_facts):
        torch.testing.assert_close(keys[:, column], oracles.key(tiny_models, fact, 1, templates), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(states[:, column], oracles.state(tiny_models, fact, 2), rtol=1e-4, atol=1e-5)


def test_context_templates_are_a_function_of_the_seed_alone(tiny_gpt2: EditableModel) -> None:
    before = torch.random.get_rng_state()
    one = context_templates(tiny_gpt2, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert context_templates(tiny_gpt2, seed=3) == one
    assert context_templates(tiny_gpt2, seed=4) != one
    assert len(one) == 6
    assert one[0] == "{}"
    assert all(template.endswith(". {}") and template.count("{}") == 1 for template in one[1:])
    assert [
        template[: len(start)] for template, start in zip(one[1:], ("The", "Therefore", "Because", "I", "You"), strict=True)
    ] == ["The", "Therefore", "Because", "I", "You"]


@pytest.mark.parametrize("templates", [[], ["I. {}"], ["{}", "no place"], ["{}", "{} and {}"]])
def test_templates_that_cannot_be_used_are_refused(templates: list[str]) -> None:
    with pytest.raises(SettingsError):
        check_templates(templates)


@pytest.mark.parametrize("first", [False, True])
def test_the_written_out_gradient_of_the_objectives_is_right(first: bool) -> None:
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    tokens, original = torch.tensor([1, 4, 0, 10, 3]), torch.randn(2, 11, dtype=torch.float64).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda x: readings(x, tokens, None if first else original)[:2], (logits,))
    half = torch.randn(3, 11, dtype=torch.bfloat16, requires_grad=True)
    nll, kl, _ = readings(half, tokens[:2], original[:1].float())
    assert nll.dtype == kl.dtype == torch.float32
    (nll.sum() + kl.sum()).backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def test_objectives_equal_their_definitions() -> None:
    logits = torch.randn(7, 11)
    tokens, rows = torch.tensor([1, 4, 0, 10, 3]), torch.tensor([0, 0, 1, 1, 1])
    log_probs, original = logits.log_softmax(-1), torch.randn(2, 11).log_softmax(-1)
    nll = -log_probs[range(5), tokens]
    found_nll, found_kl, found = readings(logits, tokens, original)
    torch.testing.assert_close(found, log_probs)
    torch.testing.assert_close(found_nll, nll)
    torch.testing.assert_close(
        mean_by_row(found_nll, rows, 3), torch.stack([nll[:2].mean(), nll[2:].mean(), torch.tensor(0.0)])
    )
    divergence = [(log_probs[5 + i].exp() * (log_probs[5 + i] - original[i])).sum() for i in range(2)]
    torch.testing.assert_close(found_kl, torch.stack(divergence))
    assert torch.equal(readings(logits, tokens, None)[1], torch.zeros(2))
    delta, initial = torch.randn(2, 6), torch.randn(2, 6)
    torch.testing.assert_close(weight_decay(delta, initial), delta.norm(dim=1) / initial.norm(dim=1) ** 2)
    zero = torch.zeros(2, 6, requires_grad=True)
    weight_decay(zero, initial).sum().backward()
    assert torch.equal(zero.grad, torch.zeros(2, 6))
