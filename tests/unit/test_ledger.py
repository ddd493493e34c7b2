"""The ledger: a model's history on disk, whatever is done to it in whatever order, with the weights that it stands for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bluedit.editing import prepare
from bluedit.editors.base import Setup
from bluedit.editors.closed_form.keys import fact_keys, fact_states
from bluedit.edits import Edit, Ledger, Patch
from bluedit.errors import InputError, LedgerError, PatchError
from bluedit.facts import Fact
from bluedit.methods import ALPHAEDIT, MEMIT, METHODS, Editor, blue
from bluedit.models import EditableModel
from bluedit.sessions import Session
from bluedit.sessions.recording import drop_from_ledger, edit_into_ledger
from bluedit.statistics import Statistics
from bluedit.storage.locks import claimed

LAYERS = (0, 1, 2)
TEMPLATES = ("{}", "The old mill. {}")

pytestmark = pytest.mark.filterwarnings("ignore:the change of layer", "ignore:.*leave")


@pytest.fixture
def model(tiny_gpt2: EditableModel) -> EditableModel:
    return _copy(tiny_gpt2)


def _copy(model: EditableModel) -> EditableModel:
    network = model.model
    return EditableModel(copy.deepcopy(network, {id(network.config): network.config}), model.tokenizer)


@pytest.fixture
def statistics(model: EditableModel, moments: Callable[[int], Statistics]) -> Statistics:
    return moments(model.structure.d_ff)


@pytest.fixture
def ledger(model: EditableModel, tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger", model, "tiny")


def _setup(model: EditableModel, statistics: Statistics, method: Editor | None = None) -> Setup:
    chosen = method or blue(MEMIT)
    fitting = {"lambda": 2.0, "shrinkage": 0.0, "v_lr": 0.3, "v_num_grad_steps": 2, "nullspace_threshold": 0.5}
    fitting = {name: value for name, value in fitting.items() if name in chosen.uses}
    return prepare(model, method=chosen, layers=LAYERS, settings=fitting, corpus=statistics, templates=TEMPLATES)


def _bits(model: EditableModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def _weights(ledger: Ledger, model: EditableModel, version: int | None = None) -> dict[str, Tensor]:
    ledger.restore(model, version)
    found = _bits(model)
    ledger.restore(model, 0)
    return found


# -- moving ------------------------------------------------------------------------------------------------------------


def test_versions_are_the_edits_one_after_the_other(
    ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    original = _bits(model)
    setup = _setup(model, statistics)
    edit_into_ledger(ledger, model, setup, world_facts[:2], note="the first two")
    edit_into_ledger(ledger, model, setup, world_facts[2:4])
    assert _same(_bits(model), original)
    assert [(one.number, one.parent, one.operation, one.facts) for one in ledger.versions] == [
        (0, None, "create", 0),
        (1, 0, "apply", 2),
        (2, 1, "apply", 4),
    ]
    assert ledger.versions[1].note == "the first two"
    first, second = ledger.edits()
    with first.applied(model), second.applied(model):
        expected = _bits(model)
    assert _same(_weights(ledger, model), expected)
    assert not _same(expected, original)
    assert _same(_weights(ledger, model, 0), original)


def test_undo_redo_and_checkout_move_the_head(
    ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    setup = _setup(model, statistics)
    for fact in world_facts[:3]:
        edit_into_ledger(ledger, model, setup, [fact])
    assert ledger.undo().number == 2
    assert ledger.undo(2).number == 0
    with pytest.raises(LedgerError, match="1 versions cannot be undone: version 0 has 0 before it"):
        ledger.undo()
    assert ledger.redo(2).number == 2
    assert ledger.redo().number == 3
    with pytest.raises(LedgerError, match="cannot be redone: none came after version 3"):
        ledger.redo()
    assert ledger.checkout(1).number == 1
    edit_into_ledger(ledger, model, setup, [world_facts[4]])  # another branch
    assert (ledger.head.number, ledger.head.parent, len(ledger.head.edits)) == (4, 1, 2)
    assert ledger.undo().number == 1
    assert ledger.redo().number == 4
    ledger.checkout(3)
    assert ledger.undo(2).number == 1
    assert ledger.redo(2).number == 3  # the branch that the head was on last
    with pytest.raises(LedgerError, match="no version 9; it has 0 to 4"):
        ledger.checkout(9)
    again = Ledger.open(ledger.folder)
    assert (again.versions, again.moves, again.head) == (ledger.versions, ledger.moves, ledger.head)
    assert [move.operation for move in again.moves[-3:]] == ["checkout", "undo", "redo"]


def test_an_edit_that_does_not_fit_the_head_changes_nothing(
    ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    setup = _setup(model, statistics)
    edit = edit_into_ledger(ledger, model, setup, world_facts[:2])
    ledger.restore(model)
    before = _bits(model)
    with pytest.raises(PatchError, match="does not hold the values"):
        ledger.apply(edit, model)
    assert _same(_bits(model), before) and len(ledger.versions) == 2


# -- sequences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memit", "alphaedit", "prune", "ft-m"])
def test_a_sequence_is_that_of_a_session(
    name: str, ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    method = METHODS[name]
    setup = (
        _setup(model, statistics, method) if name != "ft-m" else prepare(model, method=method, layers=(1,), corpus=statistics)
    )
    edit_into_ledger(ledger, model, setup, world_facts[:5], 2)
    assert ledger.session() is None
    counts = [2, 4, 5] if name != "prune" else [5]
    assert [version.facts for version in ledger.versions[1:]] == counts
    session = Session.following(model, setup)
    for start in (0, 2, 4):
        session.apply(world_facts[start : min(start + 2, 5)])
    session.finish()
    expected = _bits(model)
    session.undo(len(session))
    found = _weights(ledger, model)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_a_sequence_that_was_interrupted_resumes(
    stop: int, ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...], tmp_path: Path
) -> None:
    setup = _setup(model, statistics, blue(ALPHAEDIT))
    other = Ledger.create(tmp_path / "other", model, "tiny")
    edit_into_ledger(other, model, setup, world_facts, 2)

    class _Killed(BaseException):
        pass

    def killed(task: str, advance: int, total: int | None) -> None:
        if task == "facts" and advance == 2 and len(Ledger.open(ledger.folder).versions) > stop:
            raise _Killed

    with pytest.raises(_Killed):
        edit_into_ledger(ledger, model, setup, world_facts, 2, progress=killed)
    opened = Ledger.open(ledger.folder)
    assert len(opened.versions) - 1 in (stop, max(1, stop))
    edit_into_ledger(opened, model, setup, world_facts, 2)
    assert [one.facts for one in opened.versions] == [0, 2, 4, 6]
    assert opened.session() is None
    assert _same(_weights(opened, model), _weights(other, model))


def test_a_batch_that_the_ledger_lacks_is_added_when_the_sequence_resumes(
    ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = _setup(model, statistics)
    record, calls = Ledger.record, []

    def fails_later(self: Ledger, *given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("disk full")
        return record(self, *given, **options)

    with monkeypatch.context() as patching, pytest.raises(OSError, match="disk full"):
        patching.setattr(Ledger, "record", fails_later)
        edit_into_ledger(ledger, model, setup, world_facts, 2)
    opened = Ledger.open(ledger.folder)
    assert [one.facts for one in opened.versions] == [0, 2]
    edit_into_ledger(opened, model, setup, world_facts, 2)
    assert [one.facts for one in opened.versions] == [0, 2, 4, 6]


@pytest.mark.parametrize("size", [2, 6])
def test_a_command_that_was_killed_at_its_very_end_edits_nothing_twice(
    size: int, ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    setup = _setup(model, statistics)
    whole = edit_into_ledger(ledger, model, setup, world_facts, size)
    versions = len(ledger.versions)
    again = edit_into_ledger(Ledger.open(ledger.folder), model, setup, world_facts, size)
    assert again.facts == whole.facts
    assert len(Ledger.open(ledger.folder).versions) == versions
    # Other facts, or the same ones in another way, are another edit.
    edit_into_ledger(ledger, model, setup, world_facts[:5], size)
    other = _setup(model, statistics, blue(ALPHAEDIT))
    edit_into_ledger(ledger, model, other, world_facts[:5], 6)
    assert len(ledger.versions) == versions + (3 if size == 2 else 1) + 1


def test_another_edit_is_not_taken_for_the_end_of_a_sequence(
    ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    """PRUNE makes one version at the end; what else was applied meanwhile is not that version."""
    setup = _setup(model, statistics, METHODS["prune"])

    def killed(task: str, advance: int, total: int | None) -> None:
        if task == "facts" and advance == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit_into_ledger(ledger, model, setup, world_facts[:4], 2, progress=killed)
    other = Session.following(model, _setup(model, statistics)).apply(world_facts[4:5])
    other.revert(model)
    ledger.apply(other, model)
    ledger.restore(model, 0)
    with pytest.raises(LedgerError, match="was interrupted, and the ledger was changed since"):
        edit_into_ledger(ledger, model, setup, world_facts[:4], 2)
    assert ledger.session() is not None
    ledger.undo()
    edit_into_ledger(ledger, model, setup, world_facts[:4], 2)
    assert [fact.text for edit in ledger.edits() for fact in edit.facts] == [fact.text for fact in world_facts[:4]]


def test_a_moved_head_is_told_before_a_sequence_resumes(
    ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    setup = _setup(model, statistics)
    edit_into_ledger(ledger, model, setup, world_facts[:1])

    def killed(task: str, advance: int, total: int | None) -> None:
        if task == "facts" and advance == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit_into_ledger(ledger, model, setup, world_facts[1:], 2, progress=killed)
    assert ledger.session() is not None
    ledger.checkout(0)
    with pytest.raises(LedgerError, match=r"a sequence from version 1 on was interrupted.*log checkout"):
        edit_into_ledger(ledger, model, setup, world_facts[1:], 2)
    ledger.checkout(2)
    edit_into_ledger(ledger, model, setup, world_facts[1:], 2)
    assert ledger.head.facts == 6


# -- dropping ----------------------------------------------------------------------------------------------------------


def test_dropping_solves_the_edit_and_those_after_it(
    ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    setup = _setup(model, statistics)
    for start in (0, 2, 4):
        edit_into_ledger(ledger, model, setup, world_facts[start : start + 2])
    first, second, third = ledger.head.edits
    version = drop_from_ledger(ledger, model, [world_facts[2].id], statistics=statistics)
    assert (version.operation, version.note, version.facts) == ("drop", world_facts[2].id, 5)
    assert version.edits[0] == first and second not in version.edits and third not in version.edits
    assert [fact.id for edit in ledger.edits() for fact in edit.facts] == [
        fact.id for place, fact in enumerate(world_facts) if place != 2
    ]
    assert _same(_weights(ledger, model, 3), _rebuilt(ledger, model, 3))
    ledger.undo()
    assert ledger.head.edits == (first, second, third)


def test_dropping_a_fact_of_a_sequence_drops_its_key_from_later_batches(
    ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    setup = _setup(model, statistics, blue(ALPHAEDIT))
    edit_into_ledger(ledger, model, setup, world_facts[:4], 2)
    targets = [edit.targets for edit in ledger.edits() if isinstance(edit, Patch)]
    drop_from_ledger(ledger, model, [world_facts[0].id], statistics=statistics)
    # The same, as a session of the others with these targets.
    session = Session.following(model, setup)
    originals = ledger.edits(2)
    for edit, places in zip(originals, ([1], [0, 1]), strict=True):
        session.values = setup.method.stored_values(edit, places)
        session.apply([edit.facts[place] for place in places])
    expected = _bits(model)
    session.undo(len(session))
    found = _weights(ledger, model)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert len(targets) == 2
    # What was dropped can be dropped from again: the new edits are a sequence as well.
    assert len(ledger.sequences()) == 1
    drop_from_ledger(ledger, model, [world_facts[3].id], statistics=statistics)
    assert ledger.head.facts == 2


def test_a_fact_that_several_edits_have_is_asked_for(
    ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    setup = _setup(model, statistics)
    edit_into_ledger(ledger, model, setup, world_facts[:2])
    edit_into_ledger(ledger, model, setup, [replace(world_facts[3], id=world_facts[0].id)])
    with pytest.raises(LedgerError, match=r"several edits have a fact.*say which with --edit"):
        drop_from_ledger(ledger, model, [world_facts[0].id], statistics=statistics)
    last = ledger.head.edits[1]
    drop_from_ledger(ledger, model, [world_facts[0].id], edit=last[:8], statistics=statistics)
    assert [fact.text for edit in ledger.edits() for fact in edit.facts] == [fact.text for fact in world_facts[:2]]
    with pytest.raises(LedgerError, match="version 3 has no such fact"):
        drop_from_ledger(ledger, model, ["nobody"], statistics=statistics)


# -- whatever is done, in whatever order -------------------------------------------------------------------------------


def _rebuilt(ledger: Ledger, model: EditableModel, version: int) -> dict[str, Tensor]:
    """The weights of a version from its edits alone, added to the original weights one after the other."""
    fresh = _copy(model)
    for edit in ledger.edits(version):
        for name, change in edit.changes.items():
            weight = fresh.model.get_parameter(name).detach()
            change.add_to(fresh.structure.oriented(weight))
    return _bits(fresh)


def _from_scratch(
    model: EditableModel, stack: Sequence[tuple[Patch, tuple[int, ...]]], statistics: Statistics
) -> dict[str, Tensor]:
    """The textbook form of a stack of edits, each for some of its facts, on a copy of the model: with BLUE's two layers."""
    fresh = _copy(model)
    for patch, places in stack:
        facts = [patch.facts[place] for place in places]
        for layer in (LAYERS[0], LAYERS[-1]):
            keys = fact_keys(fresh, facts, layer, TEMPLATES).double()
            gap = patch.targets[layer][:, list(places)].double() - fact_states(fresh, facts, layer).double()
            moment = statistics.moments(model, [layer])[layer].matrix_FF
            change = gap @ keys.T @ torch.linalg.inv(2.0 * moment + keys @ keys.T)
            fresh.matrix(layer).add_(change.to(fresh.matrix(layer)))
    return _bits(fresh)


_OPERATIONS = st.lists(st.sampled_from(["edit", "edit", "drop", "undo", "redo", "checkout", "reopen"]), min_size=3, max_size=9)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=_OPERATIONS, choices=st.randoms(use_true_random=False))
def test_any_history_ends_with_the_weights_of_the_facts_that_survive(
    operations: list[str],
    choices: Any,
    tiny_gpt2: EditableModel,
    moments: Callable[[int], Statistics],
    world_facts: tuple[Fact, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = _copy(tiny_gpt2)
    original = _bits(model)
    statistics = moments(model.structure.d_ff)
    ledger = Ledger.create(tmp_path_factory.mktemp("property") / "ledger", model, "tiny")
    setup = _setup(model, statistics)
    # What every version stands for: edits as they were first made, and which of their facts are left.
    stacks: list[list[tuple[Patch, tuple[int, ...]]]] = [[]]
    solved_again = [False]
    counter = 0
    for operation in operations:
        head = ledger.head.number
        if operation == "edit":
            counter += 1
            facts = [replace(fact, id=f"{counter}-{fact.id}") for fact in choices.sample(world_facts, 2)]
            edit = edit_into_ledger(ledger, model, setup, facts)
            assert isinstance(edit, Patch)
            stacks.append([*stacks[head], (edit, (0, 1))])
            solved_again.append(solved_again[head])
        elif operation == "drop" and stacks[head]:
            place = choices.randrange(len(stacks[head]))
            patch, left = stacks[head][place]
            gone = choices.choice(left)
            drop_from_ledger(ledger, model, [patch.facts[gone].id], statistics=statistics)
            less = (patch, tuple(one for one in left if one != gone))
            stacks.append([one for one in (*stacks[head][:place], less, *stacks[head][place + 1 :]) if one[1]])
            solved_again.append(True)
        elif operation == "undo" and head:
            ledger.undo()
        elif operation == "redo" and any(one.parent == head for one in ledger.versions):
            ledger.redo()
        elif operation == "checkout":
            ledger.checkout(choices.randrange(len(ledger.versions)))
        elif operation == "reopen":
            ledger = Ledger.open(ledger.folder)
    for number in {ledger.head.number, *choices.sample(range(len(stacks)), min(2, len(stacks)))}:
        found = _weights(ledger, model, number)
        assert _same(found, _rebuilt(ledger, model, number))
        expected = _from_scratch(model, stacks[number], statistics)
        for name, weight in found.items():
            size = expected[name].norm() or 1.0
            assert ((weight - expected[name]).norm() / size).item() < 1e-6, (number, name, solved_again[number])
    assert _same(_bits(model), original)


# -- files -------------------------------------------------------------------------------------------------------------


def _edit_json(folder: Path, *, seal: bool = False, **entries: Any) -> None:
    from bluedit.storage.documents import document_text

    path = folder / "ledger.json"
    document = json.loads(path.read_text()) | entries
    path.write_text(document_text(document) if seal else json.dumps(document))


def _swap_name(folder: Path) -> None:
    document = json.loads((folder / "ledger.json").read_text())
    document["versions"][1]["edits"] = ["../../outside"]
    _edit_json(folder, seal=True, versions=document["versions"])


def test_another_model_is_refused(ledger: Ledger, other_gpt2: EditableModel) -> None:
    with pytest.raises(LedgerError, match="is of another model"):
        ledger.restore(other_gpt2)


def test_two_processes_do_not_disturb_each_other(
    ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    edit_into_ledger(ledger, model, _setup(model, statistics), world_facts[:1])
    other = Ledger.open(ledger.folder)
    ledger.undo()
    with pytest.raises(LedgerError, match=r"changed by another process.*open it again"):
        other.undo()
    with claimed(ledger.folder / "ledger.json"), pytest.raises(InputError, match="is being written by another"):
        Ledger.open(ledger.folder).redo()
    assert Ledger.open(ledger.folder).head.number == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "ledger.json").unlink(), "is not a ledger"),
        (lambda folder: (folder / "ledger.json").write_text("{"), "is not JSON"),
        (lambda folder: _edit_json(folder, head=7), "does not hold"),
        (lambda folder: _edit_json(folder, seal=True, head=7), "names versions that it does not have"),
        (lambda folder: _edit_json(folder, seal=True, format_version=9), "version 9"),
        (lambda folder: _edit_json(folder, seal=True, versions=[]), "versions"),
        (_swap_name, "by something else than digests"),
    ],
)
def test_a_damaged_ledger_is_refused(
    damage: Callable[[Path], object],
    message: str,
    ledger: Ledger,
    model: EditableModel,
    statistics: Statistics,
    world_facts: tuple[Fact, ...],
) -> None:
    edit_into_ledger(ledger, model, _setup(model, statistics), world_facts[:1])
    damage(ledger.folder)
    with pytest.raises(LedgerError, match=message):
        Ledger.open(ledger.folder)


def test_an_edit_put_in_anothers_place_is_noticed(
    ledger: Ledger, model: EditableModel, statistics: Statistics, world_facts: tuple[Fact, ...]
) -> None:
    setup = _setup(model, statistics)
    edit_into_ledger(ledger, model, setup, world_facts[:1])
    edit_into_ledger(ledger, model, setup, world_facts[1:2])
    one, other = (ledger.folder / "patches" / f"{digest}.safetensors" for digest in ledger.head.edits)
    one.write_bytes(other.read_bytes())
    with pytest.raises(LedgerError, match="another edit, put in its place"):
        ledger.restore(model)
    assert isinstance(ledger.edits(0), tuple) and not any(isinstance(edit, Edit) for edit in ledger.edits(0))
