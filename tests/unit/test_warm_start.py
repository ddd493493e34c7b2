"""Warm starts: the ridge regression is the textbook's, and an optimisation that uses it is made of plain ones."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from bluedit.editors.closed_form.keys import fact_states
from bluedit.editors.closed_form.objectives import ValueSettings
from bluedit.editors.closed_form.optimizer import optimise_values
from bluedit.editors.closed_form.warm_start import predict_deltas, spread
from bluedit.facts import Fact
from bluedit.methods import MLP_AND_ATTENTION, MLP_OUTPUT, Objective
from bluedit.models import EditableModel

TEMPLATES = ("{}", "It rained. {}")
SETTINGS = ValueSettings(v_num_grad_steps=5, v_lr=0.3, early_stop_loss=0.0)


@pytest.mark.parametrize(("count", "total"), [(1, 1), (3, 10), (7, 7), (128, 400)])
def test_places_are_spread_evenly(count: int, total: int) -> None:
    places = spread(count, total)
    assert len(set(places)) == count
    assert (min(places), max(places) < total) == (0, True)
    gaps = {later - earlier for earlier, later in pairwise(places)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_predictions_are_the_textbooks_ridge_regression(tiny_models: EditableModel, world_facts: tuple[Fact, ...]) -> None:
    seen, new = world_facts[:-3], world_facts[-3:]
    generator = torch.Generator().manual_seed(0)
    delta_DN = torch.randn(tiny_models.structure.d_model, len(seen), generator=generator)
    initial_DN, initial_DM = (fact_states(tiny_models, facts, 1) for facts in (seen, new))
    head = tiny_models.model.get_output_embeddings().weight.detach().double()  # type: ignore[union-attr, operator]

    def features(facts: tuple[Fact, ...], states_DN: torch.Tensor) -> torch.Tensor:
        rows = []
        for fact, state_D in zip(facts, states_DN.T.double(), strict=True):
            target_D = head[tiny_models.text.target(fact.target, fact.text)[0]]
            rows.append(torch.cat([state_D / state_D.norm(), target_D / target_D.norm(), torch.ones(1).double()]))
        return torch.stack(rows)

    known_NX, new_MX = features(seen, initial_DN), features(new, initial_DM)
    relative_ND = (delta_DN.double() / initial_DN.double().norm(dim=0)).T
    system_XX = known_NX.T @ known_NX + torch.eye(known_NX.shape[1], dtype=torch.float64)
    expected_DM = (new_MX @ torch.linalg.solve(system_XX, known_NX.T @ relative_ND)).T * initial_DM.norm(dim=0)
    found_DM = predict_deltas(tiny_models, seen, initial_DN, delta_DN, new, initial_DM)
    assert found_DM.dtype == delta_DN.dtype
    torch.testing.assert_close(found_DM.double(), expected_DM, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("objective", [Objective(), MLP_OUTPUT, MLP_AND_ATTENTION], ids=["layer", "mlp", "two components"])
def test_it_is_made_of_plain_optimisations(
    tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...], objective: Objective
) -> None:
    facts, count = world_facts[:6], 4
    warm = optimise_values(tiny_gpt2, facts, 1, TEMPLATES, SETTINGS.override({"warm_start_after": count}), objective)
    first = spread(count, len(facts))
    rest = [place for place in range(len(facts)) if place not in first]
    seen, new = [facts[place] for place in first], [facts[place] for place in rest]
    cold = optimise_values(tiny_gpt2, seen, 1, TEMPLATES, SETTINGS, objective)
    initial_DM = fact_states(tiny_gpt2, new, 1, objective.components[0])
    start_DM = predict_deltas(tiny_gpt2, seen, cold.initial_DN, cold.targets_DN - cold.initial_DN, new, initial_DM)
    half = SETTINGS.override({"v_num_grad_steps": 3})
    others = optimise_values(tiny_gpt2, new, 1, TEMPLATES, half, objective, start_DN=start_DM)
    torch.testing.assert_close(warm.targets_DN[:, first], cold.targets_DN)
    torch.testing.assert_close(warm.targets_DN[:, rest], others.targets_DN, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(warm.initial_DN, fact_states(tiny_gpt2, facts, 1, objective.components[0]), atol=1e-5, rtol=1e-4)
    assert [warm.evaluations[place] for place in first] == [5] * count
    assert [warm.evaluations[place] for place in rest] == [3] * len(rest)
    assert [warm.losses[place] for place in rest] == pytest.approx(others.losses, rel=1e-4)


@pytest.mark.parametrize("count", [3, 4, 100])
def test_few_facts_are_all_optimised_from_zero(tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...], count: int) -> None:
    facts = world_facts[:3]
    plain = optimise_values(tiny_gpt2, facts, 1, TEMPLATES, SETTINGS)
    warm = optimise_values(tiny_gpt2, facts, 1, TEMPLATES, SETTINGS.override({"warm_start_after": count}))
    assert warm.targets_DN.equal(plain.targets_DN)
    assert warm.evaluations == plain.evaluations


def test_progress_counts_every_fact_once(tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...]) -> None:
    done: list[int] = []
    optimise_values(tiny_gpt2, world_facts[:5], 1, TEMPLATES, SETTINGS.override({"warm_start_after": 2}), progress=done.append)
    assert sum(done) == 5
