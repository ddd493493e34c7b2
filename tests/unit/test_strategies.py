"""Strategies give the steps that their papers describe."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluedit.errors import SettingsError
from bluedit.methods import MEMIT, METHODS, blue, find_method
from bluedit.strategies import BOUNDARY, EACH_LAYER, EVEN, SQUARE_ROOT, STRATEGIES, explicit, find_strategy, single


def test_the_published_rules() -> None:
    layers = (4, 5, 6, 7, 8)
    assert EVEN.steps(layers) == tuple((4 + i, 8, 1 / (5 - i)) for i in range(5))
    assert SQUARE_ROOT.steps(layers) == tuple((4 + i, 8, 1 / math.sqrt(5 - i)) for i in range(5))
    assert BOUNDARY.steps(layers) == ((4, 4, 1.0), (8, 8, 1.0))
    assert EACH_LAYER.steps(layers) == tuple((layer, layer, 1.0) for layer in layers)
    assert single(6).steps(layers) == ((6, 6, 1.0),)
    assert explicit([(1, 3, 0.5)]).steps(layers) == ((1, 3, 0.5),)


@given(st.sets(st.integers(0, 60), min_size=1, max_size=12), st.sampled_from(list(STRATEGIES.values())))
def test_steps_go_up_and_never_target_a_layer_below(layers: set[int], chosen: object) -> None:
    steps = chosen.steps(sorted(layers, reverse=True))  # type: ignore[attr-defined]
    assert [step.layer for step in steps] == sorted({step.layer for step in steps})
    assert all(step.layer <= step.target_layer <= max(layers) and 0 < step.fraction <= 1 for step in steps)
    assert steps[-1].fraction == 1


def test_even_fractions_of_the_remaining_gap_are_equal_fractions_of_the_whole() -> None:
    remaining, parts = 1.0, []
    for step in EVEN.steps(range(3, 9)):
        parts.append(remaining * step.fraction)
        remaining -= parts[-1]
    assert parts == pytest.approx([1 / 6] * 6)
    assert remaining == pytest.approx(0)


def test_one_critical_layer_is_one_boundary_step() -> None:
    assert BOUNDARY.steps([5]) == ((5, 5, 1.0),)


@pytest.mark.parametrize("layers", [[], [-1, 3]])
def test_impossible_layers_are_refused(layers: list[int]) -> None:
    with pytest.raises(SettingsError):
        EVEN.steps(layers)


def test_steps_that_cannot_work_are_refused() -> None:
    with pytest.raises(SettingsError, match="cannot reach"):
        explicit([(5, 3, 1.0)])
    with pytest.raises(SettingsError, match="changes each layer once"):
        explicit([(3, 3, 1.0), (3, 5, 1.0)])
    with pytest.raises(SettingsError, match="at least one step"):
        explicit([])


def test_names_find_methods_and_strategies() -> None:
    assert find_strategy("boundary") is BOUNDARY
    assert find_strategy("single:3").steps([9]) == ((3, 3, 1.0),)
    assert find_method("memit") is MEMIT is METHODS["memit"]
    with pytest.raises(SettingsError, match="Did you mean 'boundary'"):
        find_strategy("boundry")
    with pytest.raises(SettingsError, match="Did you mean 'memit'"):
        find_method("memitt")


def test_blue_replaces_the_strategy_and_nothing_else() -> None:
    changed = blue(MEMIT)
    assert changed.strategy is BOUNDARY
    assert changed.with_strategy(MEMIT.strategy) == MEMIT
    assert changed.label == "memit + BLUE"


def test_settings_take_the_published_names_and_text() -> None:
    settings = MEMIT.settings.override({"lambda": "5", "v_num_grad_steps": "7", "shrinkage": 0.1})
    assert (settings.lambda_, settings.v_num_grad_steps, settings.shrinkage) == (5.0, 7, 0.1)
    assert MEMIT.settings.override(settings.as_dict()) == settings
    assert "lambda" in settings.as_dict()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lambda", "-1", "greater than 0"),
        ("lambda", "nan", "finite"),
        ("v_num_grad_steps", "2.5", "integer"),
        ("shrinkage", "2", "less than or equal to 1"),
        ("v_lr", "fast", "number"),
        ("lambada", "1", "Did you mean 'lambda'"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        MEMIT.settings.override({name: value})
