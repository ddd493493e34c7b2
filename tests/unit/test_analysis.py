"""Analyses against independent definitions: plain forward passes with an own hook, dense matrices, numbers made by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bluedit.analysis import bounds as bounds_module
from bluedit.analysis.bounds import batch_sizes, measure_bounds, product_norm, weight_shift
from bluedit.analysis.figures import draw
from bluedit.analysis.hidden_states import measure_hidden_states, shift
from bluedit.analysis.residuals import measure_cosine, measure_gap
from bluedit.analysis.running import analyse
from bluedit.analysis.scored import measure_pairs, measure_single_layer
from bluedit.analysis.simulated import measure_contribution, simulated_probabilities
from bluedit.analysis.steps import measure_steps
from bluedit.analysis.study import Study
from bluedit.analysis.style import styled
from bluedit.analysis.words import in_words
from bluedit.datasets import Case
from bluedit.editing import prepare, run_plan
from bluedit.editors.closed_form.optimizer import optimise_values
from bluedit.errors import InputError, SettingsError
from bluedit.evaluation import intervals, score_cases
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.results.analysis import BoundsResult
from bluedit.statistics import Statistics
from bluedit.strategies import BOUNDARY

pytestmark = pytest.mark.filterwarnings("ignore:the change of layer", "ignore:the written weights leave")

TEMPLATES = ("{}", "I know that. {}")
LAYERS = (0, 1, 2)  # at the last layer of all nothing can be said of tokens to come


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here looks at how wide an interval is."""
    monkeypatch.setattr(intervals, "_RESAMPLES", 40)


@pytest.fixture(scope="module")
def cases(world_records: list[dict[str, Any]]) -> tuple[Case, ...]:
    found: list[Case] = []
    for number, record in enumerate(world_records[:4]):
        rewrite = record["requested_rewrite"]
        fact = Fact(rewrite["prompt"], rewrite["subject"], rewrite["target_new"]["str"], id=f"w{number}")
        found.append(
            Case(
                fact=fact,
                true_target=rewrite["target_true"]["str"],
                paraphrases=tuple(record["paraphrase_prompts"][:1]),
                neighborhood=tuple(record["neighborhood_prompts"][:1]),
                neighborhood_target=rewrite["target_true"]["str"],
            )
        )
    return tuple(found)


Make = Callable[..., Study]


@pytest.fixture
def make(tiny_gpt2: EditableModel, cases: tuple[Case, ...], moments: Callable[[int], Statistics]) -> Make:
    """A study of the tiny model in float64, or of another one."""

    def make(model: EditableModel | None = None, *, method: str = "memit", **changes: Any) -> Study:
        network = model or EditableModel(copy.deepcopy(tiny_gpt2.model).double(), tiny_gpt2.tokenizer)
        chosen = {"v_num_grad_steps": 4, "lambda": 5, "v_lr": 0.5} | changes
        setup = prepare(
            network, method=method, layers=LAYERS, settings=chosen, corpus=moments(network.structure.d_ff), templates=TEMPLATES
        )
        return Study(network, cases, setup, "world")

    return make


def probability(model: EditableModel, fact: Fact, layer: int, site: str, vector: Tensor | None) -> float:
    """The mean over templates of exp(mean log p of the target's tokens), prompt by prompt, the vector added by an own hook."""
    found: list[float] = []
    module = model.layer(layer) if site == "layer" else model.projection(layer)
    for template in TEMPLATES:
        row = model.text.row(fact, template, with_target=True)

        def add(_: Any, __: Any, output: Any, place: int = row.subject) -> Any:
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            if vector is not None:
                hidden[0, place] += vector.to(hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        hook = module.register_forward_hook(add)
        try:
            with torch.no_grad(), model.frozen():
                log_probs = model.model(input_ids=torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
        finally:
            hook.remove()
        tokens = [log_probs[place, token].item() for place, token in zip(row.target_positions, row.target, strict=True)]
        found.append(math.exp(sum(tokens) / len(tokens)))
    return sum(found) / len(found)


# -- simulated editing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["layer", "mlp"])
def test_simulated_edits_are_forward_passes_with_the_vector_added(
    tiny_models: EditableModel, cases: tuple[Case, ...], site: str
) -> None:
    model, facts = tiny_models, [case.fact for case in cases]
    added = 3 * torch.randn(model.structure.d_model, len(facts), generator=torch.Generator().manual_seed(0))
    found = simulated_probabilities(model, facts, TEMPLATES, 1, site, [torch.zeros_like(added), added])
    for number, fact in enumerate(facts):
        vectors = (None, added[:, number])
        for row, vector in zip(found, vectors, strict=True):
            assert row[number].item() == pytest.approx(probability(model, fact, 1, site, vector), rel=1e-3)


@pytest.mark.parametrize(("method", "site", "shares"), [("memit", "layer", (1 / 3, 1 / 2, 1)), ("pmet", "mlp", None)])
def test_contribution_is_the_gain_in_probability(make: Make, method: str, site: str, shares: tuple[float, ...] | None) -> None:
    study = make(method=method)
    shares = shares or (1 / math.sqrt(3), 1 / math.sqrt(2), 1)
    facts = [case.fact for case in study.cases]

    def deltas(layer: int) -> Tensor:
        objective, chosen = study.setup.method.objective, study.setup.settings  # type: ignore[attr-defined]
        values = optimise_values(study.model, facts, layer, TEMPLATES, chosen, objective)  # type: ignore[arg-type]
        return values.targets_DN - values.initial_DN

    found = measure_contribution(study)
    last_DN = deltas(LAYERS[-1])
    for layer, share, one in zip(LAYERS, shares, found["by_layer"], strict=True):  # type: ignore[call-overload]
        own_DN = deltas(layer)
        assert one["layer"] == layer
        assert one["share"] == pytest.approx(share)
        gains: dict[str, list[float]] = {"computed": [], "distributed": []}
        for number, fact in enumerate(facts):
            before = probability(study.model, fact, layer, site, None)
            for name, vector in (("computed", own_DN[:, number]), ("distributed", share * last_DN[:, number])):
                gains[name].append(probability(study.model, fact, layer, site, vector) - before)
        for name, values in gains.items():
            assert one[name].value == pytest.approx(100 * np.mean(values), rel=1e-4)
            assert one[name].n == len(facts)
        difference = 100 * (np.mean(gains["computed"]) - np.mean(gains["distributed"]))
        assert one["difference"].value == pytest.approx(difference, rel=1e-3, abs=1e-6)
    assert found["by_layer"][-1]["difference"].value == 0  # type: ignore[index]


# -- residuals -------------------------------------------------------------------------------------------------------


def test_cosine_and_gap_are_those_of_the_optimised_residuals(make: Make) -> None:
    study = make(early_stop_loss=0)  # else some residual may be 0
    deltas = {layer: study.residuals(layer).numpy() for layer in LAYERS}
    last = deltas[LAYERS[-1]]
    cosines, gaps = measure_cosine(study)["by_layer"], measure_gap(study)["by_layer"]
    for layer, cosine, gap in zip(LAYERS, cosines, gaps, strict=True):
        own = deltas[layer]
        angles = [float(a @ b / np.sqrt((a @ a) * (b @ b))) for a, b in zip(own.T, last.T, strict=True)]
        assert cosine["cosine"].value == pytest.approx(np.mean(angles), abs=1e-4)
        assert cosine["by_fact"] == pytest.approx(angles, abs=1e-4)
        norms = np.sqrt(np.square(own - last).sum(0))
        assert gap["gap"].value == pytest.approx(norms.mean(), rel=1e-4, abs=1e-9)
        size = np.sqrt(np.square(last).sum(0)).mean()
        assert gap["relative"].value == pytest.approx(norms.mean() / size, rel=1e-4, abs=1e-9)
        assert gap["spectral"] == pytest.approx(np.linalg.norm(own - last, 2), rel=1e-4, abs=1e-9)
        assert gap["computed"].value == pytest.approx(np.sqrt(np.square(own).sum(0)).mean(), rel=1e-4)
    assert cosines[-1]["cosine"].value == pytest.approx(1)
    assert gaps[-1]["gap"].value == 0
    assert min(cosine["cosine"].value for cosine in cosines) < 0.999, (
        "the layers' residuals must differ for this to say anything"
    )


def test_a_fact_without_a_residual_has_no_cosine(make: Make) -> None:
    found = measure_cosine(make(early_stop_loss=1e9))["by_layer"]
    assert [(one["cosine"], one["by_fact"]) for one in found] == [(None, [None] * 4)] * 3


# -- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stop", "steps", "updates", "unfinished"), [(1e9, 0, 0, 0), (0.0, 4, 3, 100)])
def test_steps_of_facts_that_are_done_at_once_or_never(
    make: Make, stop: float, steps: int, updates: int, unfinished: int
) -> None:
    found = measure_steps(make(early_stop_loss=stop))
    assert (found["most"], found["early_stop_loss"]) == (4, stop)
    assert [one["layer"] for one in found["by_layer"]] == list(LAYERS)
    for one in found["by_layer"]:
        assert one["by_fact"] == [steps] * 4
        assert [one[name].value for name in ("steps", "updates", "unfinished")] == [steps, updates, unfinished]


def test_steps_in_between_are_the_evaluations_that_did_not_end_a_fact(make: Make) -> None:
    study = make(v_num_grad_steps=12, early_stop_loss=0)
    facts = [case.fact for case in study.cases]
    values = optimise_values(study.model, facts, 0, TEMPLATES, study.setup.settings)  # type: ignore[arg-type]
    middle = 1.001 * min(values.losses)  # one fact comes below this, others do not
    values = optimise_values(
        study.model, facts, 0, TEMPLATES, study.setup.settings.override({"early_stop_loss": middle})  # type: ignore[arg-type]
    )  # fmt: skip
    expected = [count - (loss < middle) for count, loss in zip(values.evaluations, values.losses, strict=True)]
    first = measure_steps(make(v_num_grad_steps=12, early_stop_loss=middle))["by_layer"][0]
    assert first["by_fact"] == expected
    assert 0 < first["unfinished"].value < 100


# -- the bound -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 8), st.integers(1, 6), st.floats(-6, 6), st.integers(0, 2**32 - 1))
def test_the_bound_holds_for_all_matrices(D: int, F: int, N: int, left: int, scale: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    computed, last, gain = random.normal(size=(D, N)) * 10**scale, random.normal(size=(D, N)), random.normal(size=(F, N))
    found = weight_shift(*(torch.tensor(one) for one in (computed, last)), 1 / left, torch.tensor(gain))
    error = np.linalg.norm((computed - last / left) @ gain.T, 2)
    norms = [np.linalg.norm(one, 2) for one in (computed - last, last / left, gain)]
    assert found.error == pytest.approx(error, rel=1e-9, abs=1e-12)
    assert found.bound == pytest.approx((norms[0] + (left - 1) * norms[1]) * norms[2], rel=1e-9)
    assert error <= found.bound * (1 + 1e-9)


def test_the_bound_is_met_where_layers_ask_for_the_same_along_one_direction() -> None:
    last, gain = torch.tensor([[3.0], [4.0]]), torch.tensor([[2.0], [0.0], [0.0]])
    found = weight_shift(last, last, 1 / 4, gain)
    assert (found.first, found.error, found.bound) == pytest.approx((0, 3 / 4 * 5 * 2, 3 / 4 * 5 * 2))


def test_the_norm_of_a_product_needs_no_product() -> None:
    left, right = torch.randn(5, 9, dtype=torch.float64), torch.randn(7, 9, dtype=torch.float64)
    assert product_norm(left, right) == pytest.approx(torch.linalg.matrix_norm(left @ right.T, 2).item())


def test_batch_sizes() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(2) == [1, 2]
    assert batch_sizes(20) == [1, 2, 5, 10, 20]
    assert batch_sizes(30) == [1, 2, 5, 10, 20, 30]


@pytest.mark.parametrize("method", ["memit", "memit-seq", "pmet"])
def test_the_error_is_how_far_the_changes_of_two_edits_are_apart(make: Make, method: str) -> None:
    study = make(method=method)
    found = measure_bounds(study, batch_size=2)
    for one in found["by_layer"]:
        layer = one["layer"]
        patches = [run_plan(study.model, study.planned(study.alone(layer, computed=kind))) for kind in (True, False)]
        dense = [next(iter(patch.changes.values())).dense() for patch in patches]
        apart = torch.linalg.matrix_norm((dense[0] - dense[1]).double(), 2).item()
        assert one["error"] == pytest.approx(apart, rel=1e-4, abs=1e-9)
        assert one["distance"] == len(LAYERS) - 1 - LAYERS.index(layer)
    assert found["by_layer"][-1]["error"] == found["by_layer"][-1]["bound"] == 0
    assert [one["facts"] for one in found["by_batch"]] == [1, 2, 4]
    assert [len(one["errors"]) for one in found["by_batch"]] == [4, 2, 1]
    assert found["by_batch"][-1]["error"] == found["by_layer"][0]["error"]
    assert [one["batches"] for one in found["by_sequence"]] == [1, 2]
    assert found["by_sequence"][0]["error"] == pytest.approx(found["by_batch"][1]["errors"][0], rel=1e-5)
    assert found["by_sequence"][1]["bound"] > found["by_sequence"][0]["bound"]
    assert (found["checked"], found["violated"]) == (3 + 7 + 2, 0)


# -- scored edits ----------------------------------------------------------------------------------------------------


def test_single_layers_are_edited_with_either_residual(make: Make) -> None:
    study = make()
    found = measure_single_layer(study)
    assert found["before"] == score_cases(study.model, study.cases).as_dict()
    first = found["by_layer"][0]
    explicit = replace(study.plan, method=study.setup.method.with_strategy(study.alone(0, computed=False)))
    patch = run_plan(study.model, explicit)
    with patch.applied(study.model, check=False):
        assert first["distributed"] == score_cases(study.model, study.cases).as_dict()
    assert [record.layer for record in patch.manifest.optimisation] == [LAYERS[-1]]
    assert first["distributed_norm"] != first["computed_norm"]
    last = found["by_layer"][-1]
    assert last["distributed"] == last["computed"]
    assert all(one["value"] == 0 for one in last["difference"].values())


def test_pairs_are_blue_at_two_layers(make: Make) -> None:
    study = make()
    found = measure_pairs(study)
    assert [(one["first"], one["last"]) for one in found["pairs"]] == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    patch = run_plan(study.model, replace(study.plan, method=study.setup.method.with_strategy(BOUNDARY)))
    with patch.applied(study.model, check=False):
        assert found["pairs"][2]["scores"] == score_cases(study.model, study.cases).as_dict()
    assert found["best"] in found["equal"]


# -- hidden states ---------------------------------------------------------------------------------------------------


def test_a_shift_is_counted_in_radii_of_the_cloud() -> None:
    before = torch.tensor([[11.0, 0.0], [9.0, 0.0], [10.0, 1.0], [10.0, -1.0]])  # every point is 1 from the mean
    moved = shift(before, before + torch.tensor([0.0, 3.0]))
    assert moved["shift"].value == pytest.approx(3)
    assert moved["moved"].value == pytest.approx(
        100 * np.mean([3 / 11, 3 / 9, 3 / math.sqrt(101), 3 / math.sqrt(101)]), rel=1e-4
    )
    wider = shift(before, torch.tensor([[13.0, 0.0], [7.0, 0.0], [10.0, 3.0], [10.0, -3.0]]))
    assert wider["shift"].value == pytest.approx(0, abs=1e-9)
    assert wider["moved"].value > 0


def test_hidden_states_are_those_of_the_edited_model(make: Make, world_records: list[dict[str, Any]]) -> None:
    pytest.importorskip("sklearn")
    study = make()
    prompts = [replace(study.cases[0], fact=Fact("{} was born in", f"Subject {number}", "x")) for number in range(12)]
    found = measure_hidden_states(study, prompts=prompts, batch_size=2)
    assert (found["layer"], found["prompts"], found["batch_size"]) == (2, 12, 2)
    assert [one["strategy"] for one in found["by_strategy"]] == ["even", "boundary"]
    assert {name: len(points) for name, points in found["points"].items()} == {"before": 12, "even": 12, "boundary": 12}
    assert all(one["shift"].value > 0 for one in found["by_strategy"])
    with pytest.raises(InputError, match="too few for a map"):
        measure_hidden_states(study, prompts=prompts[:3])


def test_methods_without_residuals_are_refused(make: Make) -> None:
    for method, layers in (("ft-m", (1,)), ("rome", (1,))):
        study = make()
        setup = prepare(study.model, method=method, layers=layers, corpus=study.setup.statistics, templates=TEMPLATES)
        with pytest.raises(SettingsError, match="distributes no residual"):
            Study(study.model, study.cases, setup, "world")


def test_a_violated_bound_is_shown(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    original = weight_shift

    def halved(*arguments: Any) -> Any:
        found = original(*arguments)
        return found._replace(first=found.first / 1000, second=found.second / 1000)

    study = make()
    assert "the bound holds in all" in in_words(analyse("bounds", study, batch_size=4)).remarks[0]
    monkeypatch.setattr(bounds_module, "weight_shift", halved)
    result = analyse("bounds", study, batch_size=4)
    assert isinstance(result, BoundsResult)
    assert result.violated > 0
    assert not result.by_layer[0].holds
    assert result.by_layer[0].tightness > 1
    words = in_words(result)
    assert "THE BOUND IS VIOLATED" in words.remarks[0]
    assert any("VIOLATED" in cell for row in words.rows for cell in row)
    with styled():
        figure = draw(result)
    assert "violated" in [line.get_label() for axes in figure.axes for line in axes.lines]
