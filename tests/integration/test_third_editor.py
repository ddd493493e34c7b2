"""Sessions, experiments, tuning, the ledger and the command line with an editor that none of them knows: a fake third family.

It changes no weights (:mod:`fake_editor`); the conformance battery is its own file's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import Run
from fake_editor import SHIFT, Shift, ShiftEdit, ShiftState
from torch import Tensor

import bluedit
from bluedit.datasets import Case
from bluedit.editing import Plan, plan_edit
from bluedit.edits import Patch, applied_patches, load_edit, merge
from bluedit.errors import PatchError, SessionError, SettingsError
from bluedit.experiments import Experiment, read_recipe
from bluedit.experiments.sharing import SharedValues
from bluedit.facts import Fact
from bluedit.methods import MEMIT, blue, find_method, installed_methods
from bluedit.models import EditableModel
from bluedit.reports.tables import markdown
from bluedit.sessions import SESSION_MARKER, Session, describe_session, edit_in_sequence
from bluedit.strategies import NO_LAYERS

Bits = dict[str, Tensor]
LAYER = "transformer.h.2"
OPTIONS: dict[str, Any] = {"method": SHIFT, "templates": ("{}",), "settings": {"shift_size": 2.0, "shift_layer": 2}}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The editor as another package would bring it."""
    entry = SimpleNamespace(
        name="shift", value="fake_editor:SHIFT", load=lambda: SHIFT, dist=SimpleNamespace(name="some-package")
    )
    monkeypatch.setattr("bluedit.methods.entry_points", lambda **_: (entry,))
    installed_methods.cache_clear()
    yield
    installed_methods.cache_clear()


@pytest.fixture
def batches(world_facts: tuple[Fact, ...]) -> list[tuple[Fact, ...]]:
    return [world_facts[:2], world_facts[2:4], world_facts[4:]]


@pytest.fixture
def fresh(tiny_gpt2: EditableModel) -> Callable[[], EditableModel]:
    return lambda: EditableModel(copy.deepcopy(tiny_gpt2.model), tiny_gpt2.tokenizer)


def state(model: EditableModel) -> Bits:
    """All weights, and what the network makes of a text."""
    with torch.no_grad():
        said = model.model(torch.arange(1, 12)[None]).logits
    return {**{name: value.detach().clone() for name, value in model.model.state_dict().items()}, "logits": said}


def same(one: Bits, other: Bits) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def hooks(model: EditableModel) -> int:
    return sum(len(module._forward_hooks) for module in model.model.modules())


def assert_alike(one: Session, other: Session) -> None:
    """Two sessions that cannot be told apart: models, edits, what is remembered of each batch, the state."""
    assert same(state(one.model), state(other.model))
    assert (len(one), one.facts) == (len(other), other.facts)
    for first, second in zip(one.patches, other.patches, strict=True):
        assert same(first.tensors(), second.tensors())
        assert first.manifest.model_copy(update={"seconds": 0.0}) == second.manifest.model_copy(update={"seconds": 0.0})
    mine, theirs = one._state, other._state
    assert isinstance(mine, ShiftState)
    assert isinstance(theirs, ShiftState)
    assert same(mine.asked, theirs.asked)
    assert mine.batches == theirs.batches


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_a_session_that_is_killed_after_every_batch_goes_on_to_the_same_bits(
    fresh: Callable[[], EditableModel], batches: list[tuple[Fact, ...]], tmp_path: Path
) -> None:
    whole = Session(fresh(), **OPTIONS)
    for batch in batches:
        whole.apply(batch)
    Session(fresh(), **OPTIONS).save(tmp_path / "run")
    for batch in batches:
        stopped = Session.resume(tmp_path / "run", fresh(), method=SHIFT)
        stopped.apply(batch)
        stopped.save(tmp_path / "run")
        stopped.apply(batches[0])  # and lost with the process
    resumed = Session.resume(tmp_path / "run", fresh(), method=SHIFT)
    assert_alike(resumed, whole)
    alone = bluedit.edit(fresh(), batches[1], **OPTIONS)
    assert not same(alone.tensors(), whole.patches[1].tensors()), "what is remembered makes no difference"
    assert describe_session(tmp_path / "run")["batches"] == [2, 2, 2]
    with pytest.raises(bluedit.InputError, match="unknown method 'shift'"):
        Session.resume(tmp_path / "run", fresh())


def test_undo_and_the_same_batches_again(
    fresh: Callable[[], EditableModel], batches: list[tuple[Fact, ...]], tmp_path: Path
) -> None:
    model = fresh()
    before = state(model)
    session, expected = Session(model, **OPTIONS), Session(fresh(), **OPTIONS)
    for batch in batches:
        session.apply(batch)
    session.save(tmp_path / "run")
    expected.apply(batches[0])
    session.undo(2)
    assert_alike(session, expected)
    session.save(tmp_path / "run")
    resumed = Session.resume(tmp_path / "run", fresh(), method=SHIFT)
    assert_alike(resumed, expected)
    for one in (session, resumed, expected):
        one.apply(batches[2])
    assert_alike(session, expected)
    assert_alike(resumed, expected)
    session.undo(2)
    assert same(state(model), before)
    assert not hooks(model)


def test_a_finished_sequence_is_one_edit_that_does_what_the_batches_do(
    fresh: Callable[[], EditableModel], batches: list[tuple[Fact, ...]]
) -> None:
    model = fresh()
    session = Session(model, **OPTIONS)
    edits = [session.apply(batch) for batch in batches]
    whole = session.finish()
    assert isinstance(whole, ShiftEdit)
    torch.testing.assert_close(whole.vectors[LAYER], sum(edit.tensors()[LAYER] for edit in edits))
    assert whole.manifest.batches == (2, 2, 2)
    edited = state(model)
    session.undo(3)
    with whole.applied(model):
        torch.testing.assert_close(state(model)["logits"], edited["logits"])


def test_a_sequence_in_one_call_goes_on_in_its_folder(
    fresh: Callable[[], EditableModel], batches: list[tuple[Fact, ...]], world_facts: tuple[Fact, ...], tmp_path: Path
) -> None:
    model = fresh()
    before = state(model)
    setup = Session(model, **OPTIONS).setup
    started = Session(fresh(), **OPTIONS)
    started.apply(batches[0])
    started.save(tmp_path / "run")
    at_once = edit_in_sequence(model, setup, world_facts, 2)
    resumed = edit_in_sequence(model, setup, world_facts, 2, tmp_path / "run")
    assert same(at_once.tensors(), resumed.tensors())
    assert resumed.facts == world_facts
    assert same(state(model), before)
    assert not applied_patches(model)
    other = Session(model, **OPTIONS | {"settings": {"shift_size": 1.0}}).setup
    with pytest.raises(SessionError, match="a session with other settings"):
        edit_in_sequence(model, other, world_facts, 2, tmp_path / "run")


def test_a_damaged_session_is_refused_and_the_model_left(
    fresh: Callable[[], EditableModel], batches: list[tuple[Fact, ...]], tmp_path: Path
) -> None:
    session = Session(fresh(), **OPTIONS)
    session.apply(batches[0])
    session.save(tmp_path / "run")
    kinds = sorted(path.name.split("-")[0] for path in (tmp_path / "run").iterdir())
    assert kinds == ["asked", "keys", "patch", SESSION_MARKER, "weights"]
    (file,) = (tmp_path / "run").glob("asked-*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    model = fresh()
    before = state(model)
    with pytest.raises(SessionError, match="damaged"):
        Session.resume(tmp_path / "run", model, method=SHIFT)
    assert same(state(model), before)


# -- beside a patch ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:the change of layer")
def test_it_is_applied_beside_a_patch_and_either_can_go_first(
    own_gpt2: EditableModel, batches: list[tuple[Fact, ...]], moments: Any
) -> None:
    before = state(own_gpt2)
    patch = bluedit.edit(
        own_gpt2,
        batches[0],
        method=blue(MEMIT),
        layers=(1, 2),
        templates=("{}",),
        corpus=moments(48),
        settings={"v_num_grad_steps": 2},
    )
    shift = bluedit.edit(own_gpt2, batches[1], **OPTIONS)
    alone: list[Bits] = []
    for one in (patch, shift):
        with one.applied(own_gpt2):
            alone.append(state(own_gpt2))
    for first, second, left in ((patch, shift, alone[1]), (shift, patch, alone[0])):
        patch.apply(own_gpt2)
        shift.apply(own_gpt2)
        assert applied_patches(own_gpt2) == (patch, shift)
        assert hooks(own_gpt2) == 1
        both = state(own_gpt2)
        first.revert(own_gpt2)
        assert same(state(own_gpt2), left)
        second.revert(own_gpt2)
        assert same(state(own_gpt2), before)
        shift.apply(own_gpt2)
        patch.apply(own_gpt2)
        assert same(state(own_gpt2), both)
        first.revert(own_gpt2)
        second.revert(own_gpt2)
    assert same(state(own_gpt2), before)
    assert not hooks(own_gpt2)
    with pytest.raises(PatchError, match="different kinds cannot be merged"):
        merge([patch, shift])


def test_a_patch_that_does_not_fit_leaves_the_hook_where_it_is(
    own_gpt2: EditableModel, batches: list[tuple[Fact, ...]], make_patch: Callable[..., Patch]
) -> None:
    """All or nothing: the patch makes a weight infinite."""
    shift = bluedit.edit(own_gpt2, batches[0], **OPTIONS)
    huge = make_patch(own_gpt2, (1,), scale=1e38)
    shift.apply(own_gpt2)
    edited = state(own_gpt2)
    with pytest.raises(PatchError, match="would not be finite"):
        huge.apply(own_gpt2)
    assert same(state(own_gpt2), edited)
    assert hooks(own_gpt2) == 1
    shift.revert(own_gpt2)


# -- files -------------------------------------------------------------------------------------------------------------


def test_its_file_is_of_its_kind(own_gpt2: EditableModel, batches: list[tuple[Fact, ...]], tmp_path: Path) -> None:
    shift = bluedit.edit(own_gpt2, batches[0], **OPTIONS)
    for name in ("shift.safetensors", "folder"):
        loaded = load_edit(shift.save(tmp_path / name))
        assert isinstance(loaded, ShiftEdit)
        assert loaded.summary()["kind"] == "shift"
        assert loaded.digest == shift.digest
        with pytest.raises(PatchError, match="is an edit of kind 'shift', not 'weights'"):
            Patch.load(tmp_path / name)
    strange = ShiftEdit(shift.vectors, shift.manifest.model_copy(update={"kind": "shfit"}))
    with pytest.raises(PatchError, match=r"'shfit'.*Did you mean 'shift'.* Install the package that brings it"):
        load_edit(strange.save(tmp_path / "strange"))


def test_another_strategy_and_layers_mean_nothing_to_it(own_gpt2: EditableModel, batches: list[tuple[Fact, ...]]) -> None:
    with pytest.raises(SettingsError, match="shift changes no layer's weight"):
        bluedit.edit(own_gpt2, batches[0], **OPTIONS, strategy="boundary")
    edit = bluedit.edit(own_gpt2, batches[0], **OPTIONS, layers="auto")
    assert (edit.manifest.layers, edit.manifest.strategy) == ((), NO_LAYERS.name)


# -- experiments and tuning --------------------------------------------------------------------------------------------


def test_an_experiment_runs_it_beside_a_method(
    installed: None, tiny_gpt2: EditableModel, corpus_file: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        "name = 'tiny'\nmodel = 'tiny'\ndataset = 'world:counterfact:0:0:person'\nfacts = 4\nbatch_size = 2\n"
        f"corpus = 'text:{corpus_file}'\n"
        "[[runs]]\nmethod = 'shift'\nsettings = { shift_size = 2.0, shift_layer = 2 }\n"
        "[[runs]]\nmethod = 'ft-m'\nlayers = '1'\nsettings = { ft_num_steps = 1 }\n"
    )
    folder = tmp_path / "out"
    document = Experiment(read_recipe(recipe), tiny_gpt2, folder).run()
    shift, trained = document["runs"]
    assert (shift["label"], shift["layers"], shift["drift"]) == ("shift, none", [], {})
    assert shift["settings"] == {"shift_size": 2.0, "shift_layer": 2}
    assert shift["scores"] != document["before"]["scores"]
    assert trained["drift"]
    assert isinstance(load_edit(folder / shift["name"] / "patch.safetensors"), ShiftEdit)
    assert "- shift, none: shift_size 2, shift_layer 2" in markdown(document)
    row = next(line for line in markdown(document).splitlines() if line.startswith("| shift, none"))
    assert row.split("|")[-3].strip() == "-"
    assert Experiment(read_recipe(recipe), tiny_gpt2, folder).run() == document


@dataclass(frozen=True)
class Vector:
    """A value that runs may share."""

    vector_D: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"vector": self.vector_D}

    def record(self) -> dict[str, Any]:
        return {"length": len(self.vector_D)}


@dataclass(frozen=True, kw_only=True)
class Sharing(Shift):
    """Shares a vector at a layer, and says nothing of what it depends on."""

    def restore_values(
        self, model: EditableModel, layer: int, record: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Vector:
        return Vector(tensors["vector"][: record["length"]])


def test_values_of_a_family_of_its_own_are_shared_by_equal_editors_only(
    own_gpt2: EditableModel, batches: list[tuple[Fact, ...]], tmp_path: Path
) -> None:
    def plan(editor: Shift, size: float = 2.0) -> Plan:
        return plan_edit(own_gpt2, batches[0], method=editor, templates=("{}",), settings={"shift_size": size})

    sharing = Sharing(name="sharing", strategy=NO_LAYERS)
    shared = SharedValues(tmp_path / "values", own_gpt2.fingerprint(), ())
    shared.keep(own_gpt2, plan(sharing), 1, Vector(torch.arange(3.0)), 2.5)
    found = shared.recall(own_gpt2, plan(sharing), 1)
    assert found is not None
    assert (found[0].vector_D.tolist(), found[1]) == ([0, 1, 2], 2.5)
    assert shared.recall(own_gpt2, plan(sharing, 3.0), 1) is None
    assert shared.recall(own_gpt2, plan(replace(sharing, name="other")), 1) is None
    assert shared.recall(own_gpt2, plan(replace(sharing, largest_batch=9)), 1) is None
    with pytest.raises(ValueError, match="shift stores no values"):
        SHIFT.restore_values(own_gpt2, 1, {}, {})


def test_its_setting_is_tuned(tiny_gpt2: EditableModel, tmp_path: Path) -> None:
    cases: list[Case] = bluedit.read_dataset("world:counterfact:0:5:person", 40)
    tuning = bluedit.tune(tiny_gpt2, cases, method=SHIFT, templates=("{}",), trials=3, count=10, out=tmp_path / "tuning.json")
    assert tuning.varied == ("shift_size",)
    assert (tuning.layers, tuning.strategy) == ((), "none")
    assert [trial.problem for trial in tuning.trials] == [None] * 3
    assert len({trial.objective for trial in tuning.trials}) > 1
    assert all(trial.relative_norm == 0 for trial in tuning.trials)
    assert bluedit.read_tuning(tmp_path / "tuning.json").settings_for(tiny_gpt2, SHIFT) == tuning.settings


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("installed")
def test_the_command_line_edits_shows_and_evaluates(
    run: Run, facts: Path, templates: Path, saved_tiny_gpt2: Path, tmp_path: Path
) -> None:
    assert find_method("shift") is SHIFT
    out = tmp_path / "shift.safetensors"
    common = ("--model", saved_tiny_gpt2, "--templates", templates, "--method", "shift", "--set", "shift_layer=2")
    edit = ("edit", *common, "--set", "shift_size=2", "--facts", facts, "--out", out)
    said = run(*edit, "--batch-size", 4)
    assert said.code == 0, said.stderr
    assert "6 facts edited into" in said.stdout
    assert "critical layers" not in said.stdout
    document = run(*edit, "--batch-size", 4, "--force", "--json").document
    assert (document["strategy"], document["layers"], document["weights"]) == ("none", [], {})
    assert document["settings"] == {"shift_size": 2.0, "shift_layer": 2}
    assert document["evaluations"]["2"] == dict.fromkeys((fact["id"] for fact in document["facts"]), 1)
    assert isinstance(load_edit(out), ShiftEdit)

    shown = run("patch", "show", out, "--json").document
    assert (shown["kind"], shown["weights"]) == ("shift", {})
    table = run("patch", "show", out)
    assert table.code == 0, table.stderr
    assert "shift_size=2" in table.stdout
    assert "||D||" not in table.stdout

    evaluate = ("evaluate", "--model", saved_tiny_gpt2, "--dataset", facts, "--json")
    plain, edited = run(*evaluate).document, run(*evaluate, "--patch", out).document
    assert plain["scores"] != edited["scores"]
    assert edited["protocol"]["edit"]["method"] == "shift"

    refused = run("patch", "apply", out, "--model", saved_tiny_gpt2, "--out", tmp_path / "checkpoint")
    assert refused.code == 2
    assert "an edit of kind 'shift' is applied, which changes no weights: a checkpoint cannot hold it" in " ".join(
        refused.stderr.split()
    )
    assert not (tmp_path / "checkpoint").exists()
    other = run(*edit, "--force", "--strategy", "boundary")
    assert (other.code, "shift changes no layer's weight" in other.stderr) == (2, True)


@pytest.mark.usefixtures("installed")
def test_the_doctor_and_the_list_of_methods_know_it(run: Run, saved_tiny_gpt2: Path) -> None:
    listed = {one["name"]: one for one in run("methods", "--json").document["methods"]}
    assert listed["shift"]["installed"]
    assert listed["shift"]["settings"] == {"shift_size": 0.5, "shift_layer": 1}
    examined = run("doctor", saved_tiny_gpt2, "--method", "shift", "--json").document
    checks = {check["name"]: check for check in examined["checks"]}
    assert examined["editable"]
    assert checks["layers"]["details"]["edited"] == []
    assert checks["memory"]["details"]["bytes"]["metrics"] == 0
    assert checks["time"]["message"] == "not estimated: shift works on no layer's weight"
    assert "corpus" not in checks
