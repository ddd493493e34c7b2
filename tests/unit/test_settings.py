"""Settings: each part declares its own, a method's are their union, and a part of another package is the equal of ours."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import ValidationError

import bluedit
from bluedit.editors.base import Editor
from bluedit.editors.closed_form.constraints import RELATIVE_CHANGE, PruneSettings, RectSettings
from bluedit.editors.closed_form.inverse_metric import InverseMetric
from bluedit.editors.closed_form.objectives import ValueSettings
from bluedit.editors.closed_form.priors import NULL_SPACE, SecondMomentSettings
from bluedit.editors.closed_form.recipe import SolverSettings
from bluedit.editors.settings import Search, Setting, Settings, current_names, declared_names, setting, union
from bluedit.errors import SettingsError
from bluedit.facts import Fact
from bluedit.methods import FT_L, MEMIT, METHODS, RECT, ROME, Method
from bluedit.models import EditableModel
from bluedit.reports.settings import page_table, settings_of
from bluedit.statistics import SecondMoment, Statistics
from bluedit.tuning.search import Axis

each_method = pytest.mark.parametrize("known", METHODS.values(), ids=METHODS)


class ColdSettings(Settings):
    """Settings as a part has them."""

    chill: float = setting(2.0, "How cold it is.", unit="degrees", gt=-10, le=40, search=Search(factor=2, lowest=1, highest=9))
    layers_of_ice: int = setting(3, "How many layers of ice there are.", ge=0)
    kind: Literal["dry", "wet"] = setting("dry", "What falls.", quiet=True)
    from_: float = setting(1.0, "Where it comes from.", alias="from", gt=0)


class WarmSettings(Settings):
    """Settings of another part."""

    sun: float = setting(0.5, "How much the sun shines.", ge=0, le=1)


# -- one part ----------------------------------------------------------------------------------------------------------


def test_a_declaration_says_all_there_is_to_say() -> None:
    described = ColdSettings.described()
    assert list(described) == list(ColdSettings.names()) == ["chill", "layers_of_ice", "kind", "from"]
    search = Search(factor=2, lowest=1, highest=9)
    assert described["chill"] == Setting("chill", "float", 2.0, "> -10, <= 40", "degrees", "How cold it is.", search, False)
    ice = Setting("layers_of_ice", "int", 3, ">= 0", "", "How many layers of ice there are.", None, False)
    assert described["layers_of_ice"] == ice
    assert described["kind"] == Setting("kind", "text", "dry", "dry or wet", "", "What falls.", None, True)
    assert described["from"].name == "from"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("chill", (-10, 40.1, "nan", "inf", "cold")),
        ("layers_of_ice", (-1, 1.5, "")),
        ("kind", ("damp", 1)),
        ("from", (0, "-inf")),
    ],
)
def test_declared_bounds_hold(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(SettingsError, match=f"setting {name}="):
            ColdSettings().override({name: value})


def test_settings_are_frozen_and_know_their_names() -> None:
    settings = ColdSettings().override({"from": "3", "chill": "40"})
    assert settings.as_dict() == {"chill": 40.0, "layers_of_ice": 3, "kind": "dry", "from": 3.0}
    assert settings.from_ == 3.0
    with pytest.raises(ValidationError):
        settings.chill = 1.0
    with pytest.raises(SettingsError, match=r"unknown setting 'chil'\. Did you mean 'chill'"):
        settings.override({"chil": 1})


def test_a_quiet_setting_is_recorded_once_it_differs() -> None:
    settings = ColdSettings()
    assert settings.recorded(ColdSettings.names()) == {"chill": 2.0, "layers_of_ice": 3, "from": 1.0}
    assert settings.override({"kind": "wet"}).recorded(("chill", "kind")) == {"chill": 2.0, "kind": "wet"}
    assert settings.override({"kind": "wet"}).recorded(()) == {}


# -- several parts -----------------------------------------------------------------------------------------------------


def test_a_union_has_the_settings_of_its_parts_in_their_order() -> None:
    parts = (ColdSettings, WarmSettings, RectSettings)
    for order in itertools.permutations(parts):
        made = union(*order)
        assert made.names() == tuple(name for part in order for name in part.names())
        assert made.parts == order
        assert list(made.described().values()) == [one for part in order for one in part.described().values()]
        assert all(isinstance(made(), part) for part in parts)
        assert made().override({"sun": 0.25, "from": 4}).as_dict() == made().as_dict() | {"sun": 0.25, "from": 4.0}
        with pytest.raises(SettingsError, match="setting sun=2"):
            made().override({"sun": 2})
    assert union(*parts) is union(*parts), "equal parts make one class: settings of two methods can be compared"


def test_a_union_of_one_or_none_is_that() -> None:
    assert union(ColdSettings) is ColdSettings
    assert union(ColdSettings, ColdSettings) is ColdSettings
    assert union(WarmSettings, ColdSettings, WarmSettings).names() == ("sun", *ColdSettings.names())
    assert union()().as_dict() == {}


def test_two_parts_with_one_name_are_refused() -> None:
    class OtherSettings(Settings):
        """It says `chill`, too."""

        chill: float = setting(1.0, "Another.")

    with pytest.raises(SettingsError, match="ColdSettings and OtherSettings both declare the setting 'chill'; rename it"):
        union(ColdSettings, OtherSettings)

    class OtherAliases(Settings):
        """What users write counts."""

        origin: float = setting(1.0, "Another.", alias="from")

    with pytest.raises(SettingsError, match="both declare the setting 'from'"):
        union(ColdSettings, OtherAliases)


def test_what_was_chosen_is_carried_to_another_class() -> None:
    chosen = union(ColdSettings, WarmSettings)().override({})
    assert chosen.carried(WarmSettings) == WarmSettings()
    some = union(ColdSettings, WarmSettings)(sun=0.75)
    assert some.carried(union(WarmSettings, RectSettings)).as_dict() == {"sun": 0.75, "rect_keep": 0.4}
    # A default of one part is no choice, and does not replace that of another: shrinkage is in both priors.
    mine = replace(ROME, name="mine", prior=NULL_SPACE)
    assert mine.settings.as_dict() == {
        **NULL_SPACE.settings().as_dict(), **SolverSettings().as_dict(), **ValueSettings().as_dict(),
        "v_lr": 0.5, "v_num_grad_steps": 20, "clamp_norm_factor": 4.0,
    }  # fmt: skip


# -- the published methods ---------------------------------------------------------------------------------------------


@each_method
def test_every_setting_of_every_method_is_explained(known: Editor) -> None:
    described = known.settings.described()
    assert tuple(described) == known.settings.names()
    for name, one in described.items():
        assert one.name == name
        assert one.type in ("float", "int", "text")
        assert one.sentence[0].isupper() or one.sentence.startswith(("||", "a in"))
        assert one.sentence.endswith(".")
        assert one.bounds, f"{name} takes anything"
        assert type(one.default) is {"float": float, "int": int, "text": str}[one.type]
        if one.type == "int":
            assert one.unit, f"nobody knows what {name} counts"
        if one.type == "text":
            assert one.default in one.bounds.split(" or ")
        if one.search:
            assert one.type == "float"
            assert one.search.factor > 1
            assert one.search.lowest < one.search.highest
            assert known.settings.override({name: one.search.lowest}).override({name: one.search.highest})


@each_method
def test_what_is_shown_of_a_method_is_what_it_uses_with_its_own_defaults(known: Editor) -> None:
    shown = settings_of(known)
    assert tuple(one.name for one in shown) == known.uses
    assert {one.name: one.default for one in shown} == {name: known.settings.as_dict()[name] for name in known.uses}


def test_defaults_of_a_method_are_its_own() -> None:
    assert {one.name: one.default for one in settings_of(ROME)}["clamp_norm_factor"] == 4.0
    assert {one.name: one.default for one in settings_of(MEMIT)}["clamp_norm_factor"] == 0.75


def test_only_what_came_after_publication_is_quiet() -> None:
    quiet = {one.name for known in METHODS.values() for one in known.settings.described().values() if one.quiet}
    assert quiet == {"lambda_scale"}


# -- earlier names -----------------------------------------------------------------------------------------------------


def test_an_earlier_name_works_and_warns() -> None:
    with pytest.warns(UserWarning, match="the setting v_warm_after is now called warm_start_after; the old name goes"):
        assert MEMIT.override({"v_warm_after": "64"}).as_dict()["warm_start_after"] == 64
    with pytest.warns(UserWarning, match="v_warm_after"):
        assert ValueSettings().override({"v_warm_after": 3}).warm_start_after == 3
    with pytest.warns(UserWarning), pytest.raises(SettingsError, match="ft-l does not use the setting 'warm_start_after'"):
        FT_L.override({"v_warm_after": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert current_names({"v_warm_after": 3, "lambda": 1}, warn=False) == {"warm_start_after": 3, "lambda": 1}
        assert MEMIT.override({"warm_start_after": 3}).as_dict()["warm_start_after"] == 3


# -- a part of another package -----------------------------------------------------------------------------------------


class RidgeSettings(Settings):
    """Settings of a prior of another package."""

    ridge: float = setting(
        0.1, "Weight of ||D||^2.", unit="keys", gt=0, search=Search(factor=3, lowest=0.01, highest=100, heading=-1, usual=1)
    )


@dataclass(frozen=True)
class Ridge:
    """B = I / ridge."""

    name: ClassVar[str] = "ridge"
    settings: ClassVar[type[Settings]] = RidgeSettings
    scale: ClassVar[tuple[str, ...]] = ("ridge",)

    def inverse(self, moment: SecondMoment, settings: RidgeSettings) -> InverseMetric:
        return InverseMetric(torch.eye(len(moment.matrix_FF), dtype=torch.float64) / settings.ridge)


MINE: Method = replace(RECT, name="mine", prior=Ridge())


def test_its_settings_join_those_of_the_other_parts() -> None:
    assert MINE.uses == ("ridge", "metric_dtype", *ValueSettings.names(), "rect_keep")
    assert "ridge" in declared_names()
    assert MINE.override({"ridge": "7"}).as_dict()["ridge"] == 7.0
    assert "ridge" not in replace(MINE, noise=0.0).uses, "it only scales the metric"
    with pytest.raises(SettingsError, match="setting ridge=-1"):
        MINE.override({"ridge": -1})
    with pytest.raises(SettingsError, match="mine does not use the setting 'lambda'"):
        MINE.override({"lambda": 1})
    with pytest.raises(SettingsError, match="memit does not use the setting 'ridge'"):
        MEMIT.override({"ridge": 1})
    # What is known of a model is for all methods, and may be for others.
    assert MINE.override({"lambda": 3.0, "v_lr": 0.7, "ridge": 2.0}, {}).as_dict()["ridge"] == 2.0
    assert "ridge" not in MEMIT.override({"ridge": 2.0}, {}).as_dict()


def test_its_settings_are_shown_and_searched_over() -> None:
    assert settings_of(MINE)[0] == RidgeSettings.described()["ridge"]
    assert "| `ridge` | 0.1 |" in page_table(MINE)
    axis = Axis.named("ridge", MINE)
    assert axis == Axis(name="ridge", factor=3, lowest=0.01, highest=100, heading=-1)
    assert axis.value(0.1, 2) == 0.3
    with pytest.raises(SettingsError, match="memit does not use the setting 'ridge'"):
        Axis.named("ridge", MEMIT)
    with pytest.raises(SettingsError, match="unknown setting to vary"):
        Axis.named("metric_dtype", MINE)
    with pytest.raises(SettingsError, match="unknown setting to vary"):
        Axis.named("rigde", MINE)


def test_its_settings_make_a_difference_to_an_edit_and_are_recorded(
    tiny_gpt2: EditableModel, moments: Callable[[int], Statistics], world_facts: tuple[Fact, ...]
) -> None:
    options: Any = {"layers": [1], "templates": ["{}"], "corpus": moments(48), "strategy": "single"}
    norms = []
    for ridge in (0.1, 1000.0):
        patch = bluedit.edit(
            tiny_gpt2, world_facts[:2], method=MINE, settings={"ridge": ridge, "v_num_grad_steps": 2, "rect_keep": 1}, **options
        )
        assert patch.manifest.settings["ridge"] == ridge
        norms += [record.norm for record in patch.manifest.weights.values()]
    assert norms[0] > norms[1]


def test_a_constraint_is_added_by_its_settings() -> None:
    both = union(SecondMomentSettings, SolverSettings, ValueSettings, PruneSettings)
    assert type(METHODS["prune"].settings) is both
    assert type(replace(MEMIT, constraint=RELATIVE_CHANGE).settings) is type(RECT.settings)
