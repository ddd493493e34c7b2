"""The table of methods, their settings, methods of other packages, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import GPT2Config, GPTJConfig, LlamaConfig

import bluedit
from bluedit.editing import plan_edit
from bluedit.editors.base import Editor
from bluedit.editors.closed_form.constraints import PRUNING, RELATIVE_CHANGE, PruneSettings, RectSettings
from bluedit.editors.closed_form.method import SolverSettings
from bluedit.editors.closed_form.objectives import ValueSettings
from bluedit.editors.closed_form.priors import NULL_SPACE, SECOND_MOMENT, NullSpaceSettings, SecondMomentSettings
from bluedit.editors.fine_tuning.methods import FineTuningSettings
from bluedit.editors.presets import PRESETS, Preset, find_preset
from bluedit.errors import SettingsError
from bluedit.facts import Fact
from bluedit.methods import (
    ALPHAEDIT,
    FT_L,
    FT_M,
    HIDDEN_STATE,
    MEMIT,
    METHODS,
    MLP_AND_ATTENTION,
    MLP_OUTPUT,
    ROME,
    FineTuning,
    Method,
    Settings,
    blue,
    find_method,
    installed_methods,
)
from bluedit.models import EditableModel
from bluedit.statistics import Statistics
from bluedit.strategies import BOUNDARY, EACH_LAYER, EVEN, SINGLE, SQUARE_ROOT, explicit, single

each_method = pytest.mark.parametrize("known", METHODS.values(), ids=METHODS)

# -- the table ---------------------------------------------------------------------------------------------------------

# name: strategy, prior, noise, past keys, objective, constraint, largest batch
FAMILY: dict[str, tuple[Any, ...]] = {
    "memit": (EVEN, SECOND_MOMENT, 1, False, HIDDEN_STATE, None, None),
    "memit-seq": (EVEN, SECOND_MOMENT, 1, True, HIDDEN_STATE, None, None),
    "alphaedit": (EVEN, NULL_SPACE, 1, True, HIDDEN_STATE, None, None),
    "emmet": (EVEN, SECOND_MOMENT, 0, False, HIDDEN_STATE, None, None),
    "rome": (SINGLE, SECOND_MOMENT, 0, False, MLP_OUTPUT, None, 1),
    "r-rome": (SINGLE, SECOND_MOMENT, 0, False, MLP_OUTPUT, None, 1),
    "rect": (EVEN, SECOND_MOMENT, 1, False, HIDDEN_STATE, RELATIVE_CHANGE, None),
    "prune": (EVEN, SECOND_MOMENT, 1, False, HIDDEN_STATE, PRUNING, None),
    "pmet": (SQUARE_ROOT, SECOND_MOMENT, 1, False, MLP_AND_ATTENTION, None, None),
}

VALUE = (
    "v_lr",
    "v_num_grad_steps",
    "v_weight_decay",
    "kl_factor",
    "clamp_norm_factor",
    "early_stop_loss",
    "v_autocast",
    "warm_start_after",
)
MOMENT = ("shrinkage", "metric_dtype")
TUNING = ("ft_lr", "ft_num_steps", "ft_early_stop_loss", "norm_constraint")
USES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("memit", "memit-seq", "pmet"), ("lambda", "lambda_scale", *MOMENT, *VALUE)),
    "rect": ("lambda", "lambda_scale", *MOMENT, *VALUE, "rect_keep"),
    "prune": ("lambda", "lambda_scale", *MOMENT, *VALUE, "prune_base"),
    "alphaedit": ("L2", "nullspace_threshold", "nullspace_scale", *MOMENT, *VALUE),
    # The scale of the metric cancels where residuals are met exactly.
    **dict.fromkeys(("emmet", "rome", "r-rome"), (*MOMENT, *VALUE)),
    **dict.fromkeys(("ft-l", "ft-m"), TUNING),
}


def test_the_published_methods_are_the_table() -> None:
    assert {*FAMILY, "ft-l", "ft-m"} == set(METHODS)
    for name, parts in FAMILY.items():
        known = METHODS[name]
        assert isinstance(known, Method)
        found = (
            known.strategy, known.prior, known.noise, known.caches_keys, known.objective, known.constraint, known.largest_batch,
        )  # fmt: skip
        assert found == parts, name
        assert known.reads_bare_prompt == (name == "rome")
    for name, forced in (("ft-l", False), ("ft-m", True)):
        known = METHODS[name]
        assert isinstance(known, FineTuning)
        assert known.teacher_forcing is forced
        assert known.strategy is SINGLE
        assert known.largest_batch is None


@each_method
def test_every_method_explains_itself(known: Editor) -> None:
    assert METHODS[known.name] is known
    assert known.name == known.name.lower()
    assert known.summary
    assert not known.summary.endswith(".")
    assert any(character.isdigit() for character in known.reference), "the paper has a year"
    assert known.name in known.label
    assert getattr(bluedit, known.name.upper().replace("-", "_")) is known
    with pytest.raises(dataclasses.FrozenInstanceError):
        known.name = "other"  # type: ignore[misc]


@each_method
def test_settings_that_make_a_difference_are_listed_in_the_order_of_the_parts(known: Editor) -> None:
    assert known.uses == USES[known.name]


def test_names_that_are_exported_are_there() -> None:
    for name in bluedit.__all__:
        assert getattr(bluedit, name) is not None
    assert dir(bluedit) == sorted(bluedit.__all__)
    with pytest.raises(AttributeError, match="MIMIT"):
        bluedit.MIMIT  # noqa: B018


# -- settings ----------------------------------------------------------------------------------------------------------


DEFAULTS: dict[type[Settings], dict[str, Any]] = {
    SecondMomentSettings: {"lambda": 15000.0, "lambda_scale": "absolute", "shrinkage": 0.0},
    NullSpaceSettings: {"L2": 10.0, "nullspace_threshold": 2e-2, "nullspace_scale": "absolute", "shrinkage": 0.0},
    SolverSettings: {"metric_dtype": "float64"},
    ValueSettings: {
        "v_lr": 0.1, "v_num_grad_steps": 25, "v_weight_decay": 0.5, "kl_factor": 0.0625, "clamp_norm_factor": 0.75,
        "early_stop_loss": 0.05, "v_autocast": "off", "warm_start_after": 0,
    },
    RectSettings: {"rect_keep": 0.4},
    PruneSettings: {"prune_base": math.e},
    FineTuningSettings: {"ft_lr": 5e-4, "ft_num_steps": 25, "ft_early_stop_loss": 1e-2, "norm_constraint": 5e-4},
}  # fmt: skip
EVERY: dict[str, Any] = {name: value for defaults in DEFAULTS.values() for name, value in defaults.items()}
"""Every setting of the published methods, with its default."""


@pytest.mark.parametrize("part", DEFAULTS)
def test_defaults_are_the_common_published_settings(part: type[Settings]) -> None:
    assert part().as_dict() == DEFAULTS[part]
    assert part.names() == tuple(DEFAULTS[part])


@each_method
def test_a_methods_settings_are_those_of_its_parts(known: Editor) -> None:
    parts = [part.settings for part in known.parts.values()]
    assert known.settings.names() == tuple(name for part in parts for name in DEFAULTS[part])
    own = {"v_lr": 0.5, "v_num_grad_steps": 20, "clamp_norm_factor": 4.0} if "rome" in known.name else {}
    assert known.settings.as_dict() == {name: EVERY[name] for name in known.settings.names()} | own
    assert all(isinstance(known.settings, part) for part in parts)


VALUES = {
    "lambda": 5.0, "lambda_scale": "relative",
    "shrinkage": 0.25, "L2": 3.0, "nullspace_threshold": 0.5, "nullspace_scale": "relative",
    "metric_dtype": "float32", "v_lr": 0.7, "v_num_grad_steps": 3, "v_weight_decay": 0.0, "kl_factor": 0.0,
    "clamp_norm_factor": 2.0, "early_stop_loss": 0.0, "v_autocast": "bfloat16", "warm_start_after": 64,
    "rect_keep": 0.9, "prune_base": 1.2,
    "ft_lr": 1e-3, "ft_num_steps": 2, "ft_early_stop_loss": 0.0, "norm_constraint": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_each_setting_is_replaced_alone(name: str) -> None:
    """Also as text from a command line; a written form comes back the same."""
    owners = [known.settings for known in METHODS.values() if name in known.settings.names()]
    assert owners
    for settings in owners:
        before = settings.as_dict()
        changed = settings.override({name: VALUES[name]})
        assert changed.as_dict() == before | {name: VALUES[name]}
        assert settings.override({name: str(VALUES[name])}) == changed
        assert type(settings).model_validate_json(changed.model_dump_json(by_alias=True)) == changed
        assert settings.override(changed.as_dict()) == changed
        assert settings.override({}) == settings
        assert settings.as_dict() == before, "settings are values: the ones overridden are as they were"
        assert before[name] != VALUES[name]


def test_lambda_has_two_spellings_in_python_and_one_for_users() -> None:
    assert SecondMomentSettings(lambda_=3.0) == SecondMomentSettings(**{"lambda": 3.0})
    assert SecondMomentSettings(lambda_=3.0).lambda_ == 3.0
    with pytest.raises(SettingsError, match=r"unknown setting 'lambda_'\. Did you mean 'lambda'"):
        SecondMomentSettings().override({"lambda_": 3})
    with pytest.raises(ValidationError):
        SecondMomentSettings(lamda=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        ValueSettings().v_lr = 1.0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, (0, -1, "nan", "inf", "")) for name in ("lambda", "L2", "nullspace_threshold", "v_lr", "clamp_norm_factor")),
        *((name, (0, -1, "nan", "inf")) for name in ("ft_lr", "norm_constraint")),
        *((name, (-1e-9, "nan", "inf")) for name in ("v_weight_decay", "kl_factor", "early_stop_loss", "ft_early_stop_loss")),
        *((name, (-0.1, 1.1, "nan")) for name in ("shrinkage", "rect_keep")),
        *((name, (0, -1, 1.5, "many", None)) for name in ("v_num_grad_steps", "ft_num_steps")),
        ("prune_base", (1, 0.5, 0, "inf", "nan")),
        ("nullspace_scale", ("mean", 1)),
        ("metric_dtype", ("float16", "double")),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, values: tuple[Any, ...]) -> None:
    owners = [known.settings for known in METHODS.values() if name in known.settings.names()]
    assert owners
    for value in values:
        for settings in owners:
            with pytest.raises(SettingsError, match=f"setting {name}="):
                settings.override({name: value})


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SettingsError, match=r"setting lambda=-1: .*; setting v_lr='fast': "):
        MEMIT.settings.override({"v_lr": "fast", "lambda": -1})


@each_method
def test_overrides_of_what_a_method_uses_are_taken(known: Editor) -> None:
    for name in known.uses:
        settings = known.override({name: VALUES[name]})
        assert settings.as_dict() == known.settings.as_dict() | {name: VALUES[name]}


@each_method
def test_overrides_of_what_a_method_does_not_use_are_refused(known: Editor) -> None:
    for name in EVERY.keys() - set(known.uses):
        message = f"{known.name} does not use the setting '{name}'; it uses {', '.join(known.uses)}"
        with pytest.raises(SettingsError) as caught:
            known.override({name: VALUES[name]})
        assert str(caught.value) == message
        # Even where the value is the default, and where it is out of range.
        with pytest.raises(SettingsError, match="does not use"):
            known.override({name: EVERY[name]})
        with pytest.raises(SettingsError, match="does not use"):
            known.override({name: -1})


def test_names_that_are_unknown_are_told_as_such() -> None:
    for known in METHODS.values():
        last = known.uses[-1]
        with pytest.raises(SettingsError, match=rf"unknown setting '{last}x'\. Did you mean '{last}'"):
            known.override({f"{last}x": 1})
    with pytest.raises(SettingsError, match=r"unknown setting 'lamda'\. Did you mean 'lambda'"):
        MEMIT.override({"lamda": 1})
    with pytest.raises(SettingsError, match="unknown setting 'lamda'"):
        MEMIT.override({"lamda": 1}, {})


def test_what_is_known_of_a_model_counts_less_than_what_is_asked_for() -> None:
    """And may hold what a method does not use: it is for all of them."""
    settings = MEMIT.override({"v_lr": 0.5, "L2": 3.0}, {"v_lr": 0.6}, {"lambda": "7"})
    assert settings.as_dict() == MEMIT.settings.as_dict() | {"v_lr": 0.6, "lambda": 7.0}
    assert MEMIT.override({"lambda": 1.0}, {}).as_dict()["lambda"] == 1.0
    assert ROME.override({}).as_dict()["clamp_norm_factor"] == 4.0
    with pytest.raises(SettingsError, match="lambda"):
        MEMIT.override({"lambda": -1}, {})


def test_edits_refuse_settings_that_change_nothing(tiny_gpt2: EditableModel) -> None:
    options = {"layers": [1], "templates": ["{}"], "corpus": Statistics()}
    with pytest.raises(SettingsError, match="rect does not use the setting 'L2'"):
        bluedit.edit(tiny_gpt2, [], method="rect", settings={"L2": 1}, **options)
    with pytest.raises(SettingsError, match="ft-m does not use the setting 'lambda'"):
        bluedit.edit(tiny_gpt2, [], method="ft-m", settings={"lambda": 1}, **options)
    with pytest.raises(SettingsError, match="rome does not use the setting 'lambda'"):
        bluedit.edit(tiny_gpt2, [], method="rome", settings={"lambda": 1}, **options)


def test_settings_given_whole_are_taken_as_they_are(tiny_gpt2: EditableModel) -> None:
    chosen = ROME.settings.override({"v_lr": 0.9})
    plan = plan_edit(tiny_gpt2, [], method="rome", settings=chosen, layers=[1], templates=["{}"])
    assert plan.settings is chosen


def test_patches_hold_the_settings_that_made_a_difference(
    tiny_gpt2: EditableModel, moments: Callable[[int], Statistics], world_facts: tuple[Fact, ...]
) -> None:
    for name, known in METHODS.items():
        given = {"ft_num_steps": 1} if isinstance(known, FineTuning) else {"v_num_grad_steps": 1}
        given |= {"nullspace_threshold": 0.5} if name == "alphaedit" else {}
        patch = bluedit.edit(
            tiny_gpt2, world_facts[:1], method=known, layers=[1], templates=["{}"], corpus=moments(48), settings=given
        )
        expected = known.settings.as_dict() | given
        assert patch.manifest.settings == {setting: expected[setting] for setting in known.uses if setting != "lambda_scale"}
        assert patch.manifest.method == name


@pytest.mark.filterwarnings("ignore:the change of layer")
@pytest.mark.parametrize("name", ["memit", "rect", "ft-m"])
def test_a_weight_of_zeros_is_edited(
    own_gpt2: EditableModel, moments: Callable[[int], Statistics], world_facts: tuple[Fact, ...], name: str
) -> None:
    """Some models begin so: a change of it has no relative size, which is no reason to fail."""
    with torch.no_grad():
        own_gpt2.weight(1).zero_()
    given = {"ft_num_steps": 1} if name == "ft-m" else {"v_num_grad_steps": 2, "lambda": 2}
    patch = bluedit.edit(
        own_gpt2, world_facts[:1], method=name, layers=[1], templates=["{}"], corpus=moments(48), settings=given
    )
    (record,) = patch.manifest.weights.values()
    assert record.norm > 0


# -- BLUE --------------------------------------------------------------------------------------------------------------


@each_method
def test_blue_replaces_the_strategy_and_nothing_else(known: Editor) -> None:
    if isinstance(known, FineTuning):
        with pytest.raises(SettingsError, match=f"{known.name} trains one weight.*strategy 'boundary'.*strategy single"):
            blue(known)
        return
    changed = blue(known)
    assert changed == replace(known, strategy=BOUNDARY)
    assert changed.label == f"{known.name} + BLUE"
    assert known.label == f"{known.name}, {known.strategy.name}"
    assert changed.uses == known.uses
    assert blue(changed) == changed
    assert changed.with_strategy(known.strategy) == known


@pytest.mark.parametrize("strategy", [EVEN, SQUARE_ROOT, BOUNDARY, EACH_LAYER, explicit([(1, 1, 1.0), (2, 2, 1.0)])])
@pytest.mark.parametrize("known", [FT_L, FT_M])
def test_fine_tuning_has_no_residual_to_distribute(known: FineTuning, strategy: Any, tiny_gpt2: EditableModel) -> None:
    with pytest.raises(SettingsError, match=f"{known.name} trains one weight and has no residual"):
        known.with_strategy(strategy)
    with pytest.raises(SettingsError, match="trains one weight and has no residual"):
        bluedit.edit(tiny_gpt2, [], method=known, strategy=strategy, layers=[1, 2], templates=["{}"])


def test_fine_tuning_takes_a_single_layer(tiny_gpt2: EditableModel) -> None:
    assert FT_L.with_strategy(single(3)).strategy.steps((0,)) == ((3, 3, 1.0),)
    plan = plan_edit(tiny_gpt2, [], method="ft-l", strategy="single:3", templates=["{}"])
    assert plan.layers == (3,)


# -- methods of one's own ----------------------------------------------------------------------------------------------


def test_parts_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(SettingsError, match="noise=-1 of method 'mine' is negative"):
        Method(name="mine", strategy=EVEN, noise=-1)
    with pytest.raises(SettingsError, match="'mine' keeps past keys, which join the prior with noise 1; it has noise 0"):
        Method(name="mine", strategy=EVEN, noise=0, caches_keys=True)
    with pytest.raises(SettingsError, match="trains one weight and has no residual"):
        FineTuning(name="mine", strategy=EVEN, teacher_forcing=True)
    assert FineTuning(name="mine", strategy=single(2), teacher_forcing=True).uses == TUNING


def test_a_batch_that_is_too_large_is_refused() -> None:
    ROME.check_batch(0)
    ROME.check_batch(1)
    with pytest.raises(SettingsError, match=r"rome solves for 1 fact at a time, and was given 2; .*emmet"):
        ROME.check_batch(2)
    for known in METHODS.values():
        if known.largest_batch is None:
            known.check_batch(10_000)


def test_a_constraint_adds_its_settings() -> None:
    mine = replace(ALPHAEDIT, name="mine", constraint=PRUNING)
    assert mine.uses == (*USES["alphaedit"], "prune_base")
    assert mine.override({"prune_base": 1.5}).as_dict()["prune_base"] == 1.5


def test_a_part_that_is_replaced_keeps_what_was_chosen_for_the_others() -> None:
    mine = replace(ROME, name="mine", prior=NULL_SPACE)
    assert mine.settings.as_dict()["clamp_norm_factor"] == 4.0
    assert set(mine.settings.names()) == {*NullSpaceSettings.names(), *SolverSettings.names(), *VALUE}


def test_names_find_methods() -> None:
    for name, known in METHODS.items():
        assert find_method(name) is known
        assert find_method(known) is known
    mine = replace(MEMIT, name="mine")
    assert find_method(mine) is mine
    with pytest.raises(SettingsError, match=r"unknown method 'alphaedti'\. Did you mean 'alphaedit'"):
        find_method("alphaedti")
    with pytest.raises(SettingsError, match=r"unknown method 'qqqqq'\. Known: alphaedit, emmet, ft-l"):
        find_method("qqqqq")


# -- methods of other packages -----------------------------------------------------------------------------------------


@dataclass
class Entry:
    """An entry point, as importlib.metadata gives them."""

    name: str
    load: Callable[[], Any]
    value: str = "package.module:MINE"
    dist: Any = dataclasses.field(default_factory=lambda: SimpleNamespace(name="some-package"))


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes entry points look installed."""

    def put(*entries: Entry) -> None:
        def found(*, group: str) -> tuple[Entry, ...]:
            assert group == "bluedit.methods"
            return entries

        monkeypatch.setattr("bluedit.methods.entry_points", found)
        installed_methods.cache_clear()

    installed_methods.cache_clear()
    yield put
    installed_methods.cache_clear()


MINE = Method(name="mine", strategy=EVEN, noise=0.5, summary="one of a package", settings=SecondMomentSettings(lambda_=7))


def test_an_installed_method_is_found_by_its_name(install: Install) -> None:
    """The method's name counts, not that of the entry point."""
    install(Entry("entry", lambda: MINE), Entry("other", lambda: replace(MINE, name="other")))
    assert installed_methods() == {"mine": MINE, "other": replace(MINE, name="other")}
    assert find_method("mine") is MINE
    assert find_method("other").name == "other"
    with pytest.raises(SettingsError, match=r"unknown method 'mne'\. Did you mean 'mine'"):
        find_method("mne")
    with pytest.raises(SettingsError, match="unknown method 'entry'"):
        find_method("entry")
    assert find_method("memit") is MEMIT


def test_packages_are_looked_at_once_and_when_needed(install: Install) -> None:
    calls: list[int] = []

    def load() -> Method:
        calls.append(1)
        return MINE

    install(Entry("mine", load))
    find_method("memit")
    assert not calls, "published methods need no look"
    find_method("mine")
    find_method("mine")
    assert calls == [1]


@pytest.mark.parametrize("error", [ImportError("no module named torch2"), AttributeError("no MINE"), RuntimeError("broken")])
def test_a_method_that_cannot_be_loaded_names_its_package(install: Install, error: Exception) -> None:
    def load() -> Method:
        raise error

    install(Entry("mine", load))
    with pytest.raises(
        SettingsError, match=r"the method 'mine' of some-package cannot be loaded \(.*\); fix or uninstall"
    ) as caught:
        find_method("mine")
    assert str(error) in str(caught.value)
    assert find_method("memit") is MEMIT, "a broken package is no reason to refuse the others"


def test_a_method_whose_making_is_refused_names_its_package(install: Install) -> None:
    install(Entry("mine", lambda: replace(MINE, noise=0, caches_keys=True)))
    with pytest.raises(SettingsError, match=r"of some-package cannot be loaded .*keeps past keys"):
        installed_methods()


@pytest.mark.parametrize("value", [None, "memit", Settings(), lambda: MINE, Method])
def test_what_is_no_method_names_its_package(install: Install, value: Any) -> None:
    install(Entry("mine", lambda: value))
    with pytest.raises(SettingsError, match=r"package\.module:MINE of some-package.*must be a bluedit\.Method"):
        installed_methods()


@pytest.mark.parametrize("name", ["memit", "ft-l"])
def test_a_published_name_is_taken(install: Install, name: str) -> None:
    install(Entry("mine", lambda: replace(MINE, name=name)))
    with pytest.raises(SettingsError, match=f"some-package brings a method named '{name}', which exists already"):
        installed_methods()
    assert find_method(name) is METHODS[name]


def test_two_packages_cannot_bring_one_name(install: Install) -> None:
    other = SimpleNamespace(name="other-package")
    install(Entry("mine", lambda: MINE), Entry("also", lambda: replace(MINE, noise=1), dist=other))
    with pytest.raises(SettingsError, match="other-package brings a method named 'mine', which exists already"):
        find_method("mine")


def test_a_package_without_a_name(install: Install) -> None:
    install(Entry("mine", lambda: None, dist=None))
    with pytest.raises(SettingsError, match="an installed package"):
        installed_methods()


def test_a_failure_is_not_remembered(install: Install) -> None:
    """What was fixed is found without a new process."""
    state = {"broken": True}

    def load() -> Method:
        if state["broken"]:
            raise ImportError("not yet")
        return MINE

    install(Entry("mine", load))
    with pytest.raises(SettingsError):
        find_method("mine")
    state["broken"] = False
    assert find_method("mine") is MINE


@pytest.mark.filterwarnings("ignore:the change of layer")
def test_an_installed_method_edits_and_resumes(
    install: Install,
    tiny_gpt2: EditableModel,
    moments: Callable[[int], Statistics],
    world_facts: tuple[Fact, ...],
    tmp_path: Path,
) -> None:
    install(Entry("mine", lambda: MINE))
    options = {"layers": [1, 2], "templates": ["{}"], "corpus": moments(48), "settings": {"v_num_grad_steps": 2}}
    patch = bluedit.edit(tiny_gpt2, world_facts[:1], method="mine", strategy="boundary", **options)
    assert (patch.manifest.method, patch.manifest.strategy) == ("mine", "boundary")
    assert patch.manifest.settings["lambda"] == 7
    session = bluedit.Session(tiny_gpt2, method="mine", **options)
    session.save(tmp_path / "run")
    assert bluedit.Session.resume(tmp_path / "run", tiny_gpt2).setup.method == MINE


# -- known models ------------------------------------------------------------------------------------------------------

CONFIGURATIONS = {
    "gpt2-xl": lambda: GPT2Config(n_layer=48, n_embd=1600, n_head=25),
    "gpt-j-6b": GPTJConfig,
    "llama-3-8b": lambda: LlamaConfig(num_hidden_layers=32, hidden_size=4096, vocab_size=128256, pad_token_id=None),
}

BY_NAME = {known.name: known for known in PRESETS}
CLOSED_FORMS = ("memit", "memit-seq", "alphaedit", "emmet", "rect", "prune", "pmet")

COMMON = {"clamp_norm_factor": 0.75, "v_weight_decay": 0.5, "kl_factor": 0.0625, "nullspace_threshold": 2e-2, "shrinkage": 0}

# model: layers, steps, v_lr, lambda, L2 of AlphaEdit, L2 with BLUE, PMET's own, PMET's own with BLUE
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "llama-3-8b": ((4, 5, 6, 7, 8), 25, 0.1, 15000, 10, 1, {"lambda": 15000}, {"lambda": 15000}),
    "gpt-j-6b": ((3, 4, 5, 6, 7, 8), 25, 0.5, 15000, 10, 95, {"lambda": 15000}, {"lambda": 1000}),
    "gpt2-xl": (
        (13, 14, 15, 16, 17), 20, 0.5, 20000, 10, 80,
        {"lambda": 10000, "clamp_norm_factor": 2}, {"lambda": 10000, "clamp_norm_factor": 2},
    ),
}  # fmt: skip

# model: layer, steps, v_lr, decay
PUBLISHED_ROME = {"gpt2-xl": (17, 20, 0.5, 0.5), "gpt-j-6b": (5, 20, 0.5, 0.5), "llama-3-8b": (5, 25, 0.5, 1e-3)}

# model: layer, norm constraint
PUBLISHED_FINE_TUNING = {"gpt2-xl": (0, 5e-4), "gpt-j-6b": (0, 5e-5)}


def effective(model: str, name: str, boundary: bool = False) -> dict[str, Any]:
    """The settings that an edit of a known model starts from."""
    known = blue(METHODS[name]) if boundary else METHODS[name]
    return known.override(BY_NAME[model].settings_for(known.name, known.strategy.name), {}).as_dict()


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("boundary", [False, True], ids=["", "BLUE"])
def test_known_settings_are_the_published_ones(model: str, name: str, boundary: bool) -> None:
    layers, steps, rate, weight, ridge, ridge_with_blue, pmet, pmet_with_blue = PUBLISHED[model]
    assert BY_NAME[model].layers == layers
    expected = COMMON | {"v_num_grad_steps": steps, "v_lr": rate, "lambda": weight}
    if name == "alphaedit":
        expected["L2"] = ridge_with_blue if boundary else ridge
    if name == "pmet":
        expected |= pmet_with_blue if boundary else pmet
    found = effective(model, name, boundary)
    expected = {setting: value for setting, value in expected.items() if setting in found}
    assert {setting: found[setting] for setting in expected} == expected
    assert found.get("rect_keep") == (0.4 if name == "rect" else None)
    assert found.get("prune_base") == (math.e if name == "prune" else None)


@pytest.mark.parametrize("model", PUBLISHED)
def test_boundary_layers_are_the_published_ones(model: str) -> None:
    first, last = {"llama-3-8b": (4, 8), "gpt-j-6b": (3, 8), "gpt2-xl": (13, 17)}[model]
    assert [step.layer for step in BOUNDARY.steps(BY_NAME[model].layers)] == [first, last]


@pytest.mark.parametrize("model", PUBLISHED_ROME)
@pytest.mark.parametrize("name", ["rome", "r-rome"])
def test_known_settings_of_rome_are_the_published_ones(model: str, name: str) -> None:
    layer, steps, rate, decay = PUBLISHED_ROME[model]
    assert BY_NAME[model].one_layer[name] == layer
    found = effective(model, name)
    expected = {"v_num_grad_steps": steps, "v_lr": rate, "v_weight_decay": decay, "clamp_norm_factor": 4, "kl_factor": 0.0625}
    assert {setting: found[setting] for setting in expected} == expected


@pytest.mark.parametrize("model", PUBLISHED)
@pytest.mark.parametrize("name", ["ft-l", "ft-m"])
def test_known_settings_of_fine_tuning_are_the_published_ones(model: str, name: str) -> None:
    if model not in PUBLISHED_FINE_TUNING:
        assert name not in BY_NAME[model].one_layer
        return
    layer, constraint = PUBLISHED_FINE_TUNING[model]
    assert BY_NAME[model].one_layer[name] == layer
    found = effective(model, name)
    expected = {"ft_lr": 5e-4, "ft_num_steps": 25, "ft_early_stop_loss": 1e-2, "norm_constraint": constraint}
    assert {setting: found[setting] for setting in expected} == expected


@pytest.mark.parametrize("model", CONFIGURATIONS)
def test_known_models_are_told_by_their_shape(model: str) -> None:
    config = CONFIGURATIONS[model]()
    assert find_preset(config) is BY_NAME[model]
    config._name_or_path = "somebody/something-else"
    assert find_preset(config) is BY_NAME[model]
    config.num_hidden_layers -= 1
    assert find_preset(config) is None


def test_unknown_models_are_not_known(tiny_models: EditableModel) -> None:
    assert find_preset(tiny_models.model.config) is None
    assert find_preset(LlamaConfig(num_hidden_layers=32, hidden_size=4096, vocab_size=32000, pad_token_id=None)) is None
    assert find_preset(object()) is None


@pytest.mark.parametrize("known", PRESETS, ids=BY_NAME)
def test_every_known_setting_reaches_a_method(known: Preset) -> None:
    """A name with a slip in it would be passed over in silence."""
    assert list(known.layers) == sorted(set(known.layers))
    depth = known.shape["num_hidden_layers"]
    assert all(0 <= layer < depth for layer in (*known.layers, *known.one_layer.values()))
    assert all(METHODS[name].strategy is SINGLE for name in known.one_layer)
    for key, overrides in known.settings.items():
        name, _, strategy = key.partition("+")
        assert strategy in ("", "boundary")
        assert name in METHODS or not key
        used = METHODS[name].uses if name else EVERY
        assert set(overrides) <= set(used), f"{key} sets what it does not use"
        for method in [METHODS[name]] if name else METHODS.values():
            method.override(overrides, {})


def test_overrides_go_from_the_general_to_the_special() -> None:
    known = Preset(
        name="any",
        shape={},
        layers=(1,),
        settings={"": {"lambda": 1, "v_lr": 1, "L2": 1}, "alphaedit": {"v_lr": 2, "L2": 2}, "alphaedit+boundary": {"L2": 3}},
    )
    assert known.settings_for("memit") == {"lambda": 1, "v_lr": 1, "L2": 1}
    assert known.settings_for("memit", "boundary") == {"lambda": 1, "v_lr": 1, "L2": 1}
    assert known.settings_for("alphaedit", "even") == {"lambda": 1, "v_lr": 2, "L2": 2}
    assert known.settings_for("alphaedit", "boundary") == {"lambda": 1, "v_lr": 2, "L2": 3}


# -- plans -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def known_model(monkeypatch: pytest.MonkeyPatch) -> Preset:
    """Makes every model a known one of four layers."""
    known = Preset(
        name="tiny",
        shape={},
        layers=(1, 2, 3),
        one_layer={"rome": 2, "ft-l": 0},
        settings={"": {"lambda": 3.0, "v_lr": 0.2}, "memit+boundary": {"lambda": 4.0}},
    )
    monkeypatch.setattr("bluedit.editors.plan.find_preset", lambda config: known)
    return known


@pytest.mark.usefixtures("known_model")
def test_plans_of_known_models_are_filled_in(tiny_gpt2: EditableModel) -> None:
    def plan(**options: Any) -> Any:
        return plan_edit(tiny_gpt2, [], templates=["{}"], corpus=Statistics(), **options)

    default = plan()
    assert default.method == blue(MEMIT)
    assert default.layers == (1, 2, 3)
    assert (default.settings.lambda_, default.settings.v_lr) == (4.0, 0.2)
    assert plan(strategy="even", method="memit").settings.lambda_ == 3.0
    assert plan(settings={"lambda": "9"}).settings.lambda_ == 9.0
    assert plan(layers=[3, 1, 3]).layers == (1, 3)
    assert plan(method="rome").layers == (2,)
    assert plan(method="ft-l").layers == (0,)
    assert plan(method="rome", strategy="even").layers == (1, 2, 3)
    assert plan(method="memit", strategy="single:3").layers == (3,)
    assert plan(strategy=explicit([(0, 2, 1.0)])).layers == (0,)
    assert plan(method="rome", layers=[3]).layers == (3,)
    for name in ("r-rome", "ft-m"):
        with pytest.raises(SettingsError, match=f"are not known for {name}; name them, as in --layers 5"):
            plan(method=name)
    with pytest.raises(SettingsError, match="not known for memit"):
        plan(method="memit", strategy="single")


def test_plans_that_cannot_be_are_refused(tiny_gpt2: EditableModel) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(SettingsError, match=message):
            plan_edit(tiny_gpt2, [], **{"templates": ["{}"], "corpus": Statistics(), "layers": [1]} | options)

    refused("layers of this model .of 4 layers. are not known", layers=None)
    refused("layer 4 is not in this model: it has layers 0 to 3", layers=[1, 4])
    refused("counted from 0", layers=[-1])
    refused("not understood", layers="4-8")
    refused("not understood", layers=[1.0])
    refused("not understood", layers=[True])
    refused("at least one", layers=[])
    refused("layer 9 is not in this model", strategy="single:9", layers=None)
    refused("layer 7 is not in this model", strategy=explicit([(1, 7, 1.0)]), layers=None)
    refused("one layer is edited, and 2 are named", method="rome", layers=[1, 2])
    refused("unknown method", method="rme")
    refused("unknown strategy", strategy="evn")
    refused("unknown setting", settings={"lamda": 1})
    refused("bare prompt", templates=["I. {}"])
    refused("exactly one", templates=["{}", "{} {}"])
