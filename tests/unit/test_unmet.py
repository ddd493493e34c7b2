"""What was asked for and what was met: measured after an edit, kept in the patch, warned of; and lambda that counts in d_ff.

A single fact with key k and M = lambda C is met by q / (1 + q), q = k^T C^-1 k / lambda, in closed form.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

import bluedit
from bluedit.editing import plan_edit, run_plan
from bluedit.editors.cautions import UnmetWarning, told_together
from bluedit.editors.closed_form.keys import fact_keys, fact_states
from bluedit.editors.closed_form.optimizer import optimise_values
from bluedit.editors.closed_form.priors import SECOND_MOMENT, SecondMomentSettings
from bluedit.edits import Patch, merge
from bluedit.edits.manifest import OptimisationRecord, WeightRecord
from bluedit.facts import Fact
from bluedit.methods import MEMIT, PMET, RECT
from bluedit.models import EditableModel
from bluedit.statistics import SecondMoment, Statistics

pytestmark = pytest.mark.filterwarnings("ignore:the change of layer")

LAYER = 1


def edited(
    model: EditableModel,
    statistics: Statistics,
    facts: tuple[Fact, ...],
    method: bluedit.Method | str = "memit",
    **settings: float,
) -> Patch:
    return bluedit.edit(
        model, facts, method=method, strategy="single:1", templates=["{}"], corpus=statistics,
        settings={"v_num_grad_steps": 4, **settings},
    )  # fmt: skip


def test_one_fact_is_met_by_its_fraction_in_closed_form(
    tiny_gpt2: EditableModel, moments: Callable[[int], Statistics], world_facts: tuple[Fact, ...]
) -> None:
    statistics = moments(48)
    key_F1 = fact_keys(tiny_gpt2, world_facts[:1], LAYER, ["{}"]).double()
    moment_FF = statistics.moments(tiny_gpt2, [LAYER])[LAYER].matrix_FF
    for weight in (0.5, 20.0, 400.0):
        patch = edited(tiny_gpt2, statistics, world_facts[:1], **{"lambda": weight})
        q = float(key_F1.T @ torch.linalg.solve(moment_FF.double(), key_F1)) / weight
        (record,) = patch.manifest.weights.values()
        (optimised,) = patch.manifest.optimisation
        assert record.met == pytest.approx(q / (1 + q), rel=1e-3)
        # The state after the layer moves by just what the change gives at the bare prompt.
        assert optimised.remaining == pytest.approx([1 / (1 + q)], rel=1e-3)


def test_what_remains_is_measured_on_the_written_weights(
    tiny_models: EditableModel, moments: Callable[[int], Statistics], world_facts: tuple[Fact, ...]
) -> None:
    model = tiny_models
    plan = plan_edit(
        model, world_facts, method="memit", strategy="boundary", layers=(0, 2), templates=["{}", "So it is. {}"],
        corpus=moments(model.structure.d_ff), settings={"v_num_grad_steps": 3, "lambda": 3},
    )  # fmt: skip
    patch = run_plan(model, plan)
    first = patch.manifest.optimisation[0]
    assert first.remaining is not None
    assert len(first.remaining) == len(world_facts)
    before_DN = fact_states(model, plan.facts, 0)
    values = optimise_values(model, plan.facts, 0, plan.templates, plan.settings)
    with patch.applied(model):
        after_DN = fact_states(model, plan.facts, 0)
    expected = (values.targets_DN - after_DN).norm(dim=0) / (values.targets_DN - before_DN).norm(dim=0)
    assert first.remaining == pytest.approx(expected.tolist(), rel=1e-2)
    sizes = (values.targets_DN - before_DN).norm(dim=0)
    assert first.asked == pytest.approx(sizes.tolist(), rel=1e-2)
    assert first.left_open == pytest.approx(float((values.targets_DN - after_DN).norm(dim=0).sum() / sizes.sum()), rel=1e-2)


@pytest.mark.parametrize("method", [RECT, PMET, bluedit.PRUNE, bluedit.ALPHAEDIT])
def test_every_closed_form_says_what_it_met(
    method: bluedit.Method, tiny_gpt2: EditableModel, moments: Callable[[int], Statistics], world_facts: tuple[Fact, ...]
) -> None:
    given = {"nullspace_threshold": 0.5} if method is bluedit.ALPHAEDIT else {"lambda": 2.0}
    patch = edited(tiny_gpt2, moments(48), world_facts, method, **given)
    assert all(record.met is not None and 0 < record.met < 1.01 for record in patch.manifest.weights.values())
    assert all(record.remaining is not None for record in patch.manifest.optimisation)


def test_rect_leaves_more_open_than_memit(
    tiny_gpt2: EditableModel, moments: Callable[[int], Statistics], world_facts: tuple[Fact, ...]
) -> None:
    whole, part = (
        edited(tiny_gpt2, moments(48), world_facts, method, **{"lambda": 1.0}, **more)
        for method, more in ((MEMIT, {}), (RECT, {"rect_keep": 0.2}))
    )
    (one,), (other,) = whole.manifest.weights.values(), part.manifest.weights.values()
    assert one.met is not None
    assert other.met is not None
    assert other.met < one.met


def test_fine_tuning_asks_for_no_residual(tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...]) -> None:
    patch = bluedit.edit(
        tiny_gpt2,
        world_facts[:1],
        method="ft-m",
        layers=[1],
        templates=["{}"],
        corpus=Statistics(),
        settings={"ft_num_steps": 1},
    )
    assert [record.met for record in patch.manifest.weights.values()] == [None]
    assert [record.remaining for record in patch.manifest.optimisation] == [None]


@pytest.mark.filterwarnings("default:the written weights leave")
def test_an_edit_that_gives_little_warns_and_says_what_to_do(
    tiny_gpt2: EditableModel, moments: Callable[[int], Statistics], world_facts: tuple[Fact, ...]
) -> None:
    with pytest.warns(
        UnmetWarning, match=r"leave \d+% of what the facts ask for at layer 1 open; lower lambda \(it is 1e\+06\)"
    ):
        edited(tiny_gpt2, moments(48), world_facts, **{"lambda": 1e6})
    with pytest.warns(UnmetWarning, match="lower L2"):
        edited(tiny_gpt2, moments(48), world_facts, bluedit.ALPHAEDIT, nullspace_threshold=0.5, L2=1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnmetWarning)
        edited(tiny_gpt2, moments(48), world_facts, **{"lambda": 1e-3})


def test_several_layers_are_told_in_one_line() -> None:
    found = [
        UnmetWarning(layer=layer, amount=0.6 + layer / 10, origin="memit, boundary", advice="lower it") for layer in (1, 3)
    ]
    assert told_together(found) == [
        "memit, boundary: the written weights leave 70 to 90% of what the facts ask for at layers 1 and 3 open; lower it"
    ]


def test_records_of_batches_are_put_together(make_patch: Callable[..., Patch], tiny_gpt2: EditableModel) -> None:
    def with_records(patch: Patch, met: float | None, remaining: tuple[float, ...] | None) -> Patch:
        weights = {name: one.model_copy(update={"met": met}) for name, one in patch.manifest.weights.items()}
        record = OptimisationRecord(layer=1, evaluations=(1, 1, 1), losses=(0.1, 0.1, 0.1), remaining=remaining)
        manifest = patch.manifest.model_copy(update={"weights": weights, "optimisation": (record,)})
        return Patch(patch.changes, manifest)

    one, other = make_patch(tiny_gpt2, seed=1), make_patch(tiny_gpt2, seed=2)
    both = merge([with_records(one, 0.5, (0.1, 0.2, 0.3)), with_records(other, 1.0, (0.4, 0.5, 0.6))])
    assert both.manifest.optimisation[0].remaining == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert {record.met for record in both.manifest.weights.values()} == {0.75}
    # One of an older version was not measured: nothing is said of the whole.
    both = merge([with_records(one, 0.5, (0.1, 0.2, 0.3)), with_records(other, None, None)])
    assert both.manifest.optimisation[0].remaining is None
    assert {record.met for record in both.manifest.weights.values()} == {None}


def test_a_fact_that_asks_for_little_counts_little() -> None:
    """Layers below may have given all of it; what is left is then many times what was asked for."""
    record = OptimisationRecord(layer=8, evaluations=(9, 1), losses=(0.1, 0.0), remaining=(0.2, 30.0), asked=(10.0, 0.01))
    assert record.left_open == pytest.approx(2.3 / 10.01)
    nothing = record.model_copy(update={"asked": (0.0, 0.0)})
    assert nothing.left_open == 0.0


def test_older_records_are_read() -> None:
    old = WeightRecord.model_validate({"layer": 1, "before": "x", "norm": 1.0, "relative_norm": 0.1})
    assert old.met is None
    assert OptimisationRecord.model_validate({"layer": 1, "evaluations": [1], "losses": [0.5]}).remaining is None


# -- lambda in d_ff ----------------------------------------------------------------------------------------------------


def test_a_relative_lambda_counts_in_d_ff() -> None:
    generator = torch.Generator().manual_seed(0)
    keys_TF = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    moment = SecondMoment(keys_TF.T @ keys_TF / len(keys_TF), len(keys_TF))
    relative = SECOND_MOMENT.inverse(moment, SecondMomentSettings(lambda_=2.0, lambda_scale="relative"))
    absolute = SECOND_MOMENT.inverse(moment, SecondMomentSettings(lambda_=24.0))
    assert torch.equal(relative.matrix_FF, absolute.matrix_FF)
    # The mean of k^T B k over the text is 1 / lambda, whatever the size and the number of keys' entries.
    energies_T = (keys_TF @ relative.matrix_FF * keys_TF).sum(1)
    assert energies_T.mean().item() == pytest.approx(1 / 2.0)


def test_a_published_scale_is_not_recorded(
    tiny_gpt2: EditableModel, moments: Callable[[int], Statistics], world_facts: tuple[Fact, ...]
) -> None:
    assert "lambda_scale" not in edited(tiny_gpt2, moments(48), world_facts[:1]).manifest.settings
    patch = edited(tiny_gpt2, moments(48), world_facts[:1], lambda_scale="relative", **{"lambda": 0.5})  # type: ignore[arg-type]
    assert patch.manifest.settings["lambda_scale"] == "relative"
    assert patch.manifest.settings["lambda"] == 0.5
