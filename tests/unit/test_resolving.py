"""Facts taken out of edits, and edits merged: solved again with stored targets, and compared with the textbook form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bluedit
from bluedit.editors.closed_form.keys import fact_keys, fact_states
from bluedit.edits import Patch, load_edit
from bluedit.errors import PatchError
from bluedit.facts import Fact
from bluedit.methods import FT_M, MEMIT, METHODS, Editor, Settings, blue
from bluedit.models import EditableModel
from bluedit.sessions import Session
from bluedit.sessions.resolving import drop_facts, merge_edits
from bluedit.statistics import Statistics

LAYERS = (0, 1, 2)
TEMPLATES = ("{}", "The old mill. {}")
Make = Callable[..., Patch]

pytestmark = pytest.mark.filterwarnings("ignore:the change of layer", "ignore:.*leave")


@pytest.fixture
def model(tiny_gpt2: EditableModel) -> EditableModel:
    network = tiny_gpt2.model
    return EditableModel(copy.deepcopy(network, {id(network.config): network.config}), tiny_gpt2.tokenizer)


@pytest.fixture
def statistics(model: EditableModel, moments: Callable[[int], Statistics]) -> Statistics:
    return moments(model.structure.d_ff)


@pytest.fixture
def make(model: EditableModel, statistics: Statistics) -> Make:
    """Edits facts with few and cheap steps: one batch, or several."""

    def run(method: Editor, *batches: Sequence[Fact], **options: Any) -> Patch:
        fitting = {"lambda": 2.0, "v_lr": 0.3, "v_num_grad_steps": 2, "nullspace_threshold": 0.5, "ft_num_steps": 2}
        if "prune_base" in method.uses:
            fitting |= {"lambda": 1e-3, "v_lr": 20.0, "clamp_norm_factor": 100.0}
        settings = {name: value for name, value in fitting.items() if name in method.uses} | options.pop("settings", {})
        layers = (1,) if method.strategy.one_layer else LAYERS
        session = Session(
            model, method=method, layers=layers, settings=settings, corpus=statistics, templates=TEMPLATES, **options
        )
        for batch in batches:
            session.apply(batch)
        whole = session.finish()
        session.undo(len(session))
        assert isinstance(whole, Patch)
        return whole

    return run


def close(one: Patch, other: Patch, tolerance: float = 1e-5) -> None:
    assert list(one.changes) == list(other.changes)
    for name, change in one.changes.items():
        expected = other.changes[name].dense()
        assert ((change.dense() - expected).norm() / expected.norm()).item() < tolerance, name


def bits(model: EditableModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


def textbook(
    model: EditableModel, patch: Patch, facts: Sequence[Fact], statistics: Statistics, scale: float
) -> dict[str, Tensor]:
    """MEMIT with BLUE for these facts, in float64: D = (z - h) K^T (scale C + K K^T)^-1 at the first and last layer."""
    places = [[one.text for one in patch.facts].index(fact.text) for fact in facts]
    changes: dict[str, Tensor] = {}
    with model.restoring([LAYERS[0], LAYERS[-1]]):
        for layer in (LAYERS[0], LAYERS[-1]):
            keys = fact_keys(model, facts, layer, TEMPLATES).double()
            gap = patch.targets[layer][:, places].double() - fact_states(model, facts, layer).double()
            moment = statistics.moments(model, [layer])[layer].matrix_FF
            change = gap @ keys.T @ torch.linalg.inv(scale * moment + keys @ keys.T)
            changes[model.structure.weight_name(layer)] = change
            model.matrix(layer).add_(change.to(model.matrix(layer)))
    return changes


@pytest.mark.parametrize("name", ["memit", "memit-seq", "alphaedit", "rect", "prune", "pmet"])
@pytest.mark.parametrize("sequence", [False, True])
def test_solving_for_all_facts_again_is_the_edit(
    name: str, sequence: bool, make: Make, model: EditableModel, world_facts: tuple[Fact, ...], statistics: Statistics
) -> None:
    batches = [world_facts[:2], world_facts[2:4]] if sequence else [world_facts[:4]]
    edit = make(METHODS[name], *batches)
    before = bits(model)
    again = drop_facts(model, edit, [], statistics=statistics)
    assert isinstance(again, Patch)
    close(again, edit)
    assert again.manifest.batches == edit.manifest.batches
    assert again.manifest.facts == edit.manifest.facts
    assert all(torch.equal(value, before[key]) for key, value in bits(model).items())


def test_dropping_is_the_textbook_form_of_the_others(
    make: Make, model: EditableModel, world_facts: tuple[Fact, ...], statistics: Statistics
) -> None:
    edit = make(blue(MEMIT), world_facts[:4], settings={"shrinkage": 0.0})
    less = drop_facts(model, edit, [edit.facts[1].id], statistics=statistics)
    stay = [fact for place, fact in enumerate(edit.facts) if place != 1]
    assert less.facts == tuple(stay)
    expected = textbook(model, edit, stay, statistics, 2.0)
    for name, change in less.changes.items():
        assert ((change.dense().double() - expected[name]).norm() / expected[name].norm()).item() < 1e-4
        # The fact that went made a difference.
        assert ((change.dense() - edit.changes[name].dense()).norm() / edit.changes[name].norm()).item() > 0.05
    assert less.manifest.optimisation[0].losses == tuple(
        loss for place, loss in enumerate(edit.manifest.optimisation[0].losses) if place != 1
    )


def test_the_targets_survive_saving(
    make: Make, model: EditableModel, world_facts: tuple[Fact, ...], statistics: Statistics, tmp_path: Path
) -> None:
    edit = make(blue(MEMIT), world_facts[:2], world_facts[2:4])
    for place in (tmp_path / "folder", tmp_path / "file.safetensors"):
        edit.save(place)
        loaded = load_edit(place)
        less = drop_facts(model, loaded, [edit.facts[0].id], statistics=statistics)
        close(less, drop_facts(model, edit, [edit.facts[0].id], statistics=statistics), 1e-7)
        assert less.manifest.batches == (1, 2)


def test_dropping_all_leaves_the_empty_edit(
    make: Make, model: EditableModel, world_facts: tuple[Fact, ...], statistics: Statistics
) -> None:
    edit = make(blue(MEMIT), world_facts[:2])
    nothing = drop_facts(model, edit, [fact.id for fact in edit.facts], statistics=statistics)
    assert nothing.facts == () and not nothing.changes


def test_merging_is_the_textbook_form_of_both(
    make: Make, model: EditableModel, world_facts: tuple[Fact, ...], statistics: Statistics
) -> None:
    options = {"settings": {"shrinkage": 0.0}}
    one, other = make(blue(MEMIT), world_facts[:2], **options), make(blue(MEMIT), world_facts[2:4], **options)
    both = merge_edits(model, one, other, statistics=statistics)
    assert [fact.text for fact in both.facts] == [fact.text for fact in world_facts[:4]]
    assert both.manifest.batches == (4,)
    joined = bluedit.edits.merge([one, other])
    assert isinstance(joined, Patch)
    expected = textbook(model, joined, world_facts[:4], statistics, 2.0)
    for name, change in both.changes.items():
        assert ((change.dense().double() - expected[name]).norm() / expected[name].norm()).item() < 1e-4


def test_merging_counts_a_repeated_fact_once(
    make: Make, model: EditableModel, world_facts: tuple[Fact, ...], statistics: Statistics
) -> None:
    one, other = make(blue(MEMIT), world_facts[:2]), make(blue(MEMIT), world_facts[1:3])
    both = merge_edits(model, one, other, statistics=statistics)
    assert [fact.text for fact in both.facts] == [fact.text for fact in world_facts[:3]]


def test_merging_renames_ids_that_repeat(
    make: Make, model: EditableModel, world_facts: tuple[Fact, ...], statistics: Statistics
) -> None:
    first, second, third = (replace(fact, id=name) for fact, name in zip(world_facts, ("a", "a~1", "a"), strict=False))
    one, other = make(blue(MEMIT), [first, second]), make(blue(MEMIT), [third])
    both = merge_edits(model, one, other, statistics=statistics)
    assert [fact.id for fact in both.facts] == ["a", "a~1", "a~2"]


@pytest.mark.parametrize(("prefer", "place"), [("first", 0), ("second", 1)])
def test_contradictions_are_named_and_resolved(
    prefer: Any, place: int, make: Make, model: EditableModel, world_facts: tuple[Fact, ...], statistics: Statistics
) -> None:
    changed = replace(world_facts[1], target=world_facts[0].target + " indeed", id="changed")
    one, other = make(blue(MEMIT), world_facts[:2]), make(blue(MEMIT), [changed, world_facts[2]])
    with pytest.raises(PatchError, match=r"contradict each other.*two targets.*--prefer first or second"):
        merge_edits(model, one, other, statistics=statistics)
    both = merge_edits(model, one, other, prefer=prefer, statistics=statistics)
    kept = next(fact for fact in both.facts if fact.text == changed.text)
    assert kept.target == (world_facts[1], changed)[place].target
    assert len(both.facts) == 3


def test_what_cannot_be_solved_again_says_why(
    make: Make, model: EditableModel, world_facts: tuple[Fact, ...], statistics: Statistics
) -> None:
    trained = make(FT_M, world_facts[:2])
    with pytest.raises(PatchError, match=r"trains all facts together.*edit again"):
        drop_facts(model, trained, [trained.facts[0].id], statistics=statistics)
    edit = make(blue(MEMIT), world_facts[:2])
    with pytest.raises(PatchError, match=r"no targets.*earlier version"):
        drop_facts(model, replace(edit, targets={}), [edit.facts[0].id], statistics=statistics)
    with pytest.raises(PatchError, match="no fact of that id"):
        drop_facts(model, edit, ["nobody"], statistics=statistics)
    with pytest.raises(PatchError, match="different settings"):
        other = make(blue(MEMIT), world_facts[2:3], settings={"lambda": 3.0})
        merge_edits(model, edit, other, statistics=statistics)
    with edit.applied(model), pytest.raises(PatchError, match="does not hold the values"):
        drop_facts(model, edit, [edit.facts[0].id], statistics=statistics)


def test_a_moved_corpus_is_asked_for(
    make: Make, model: EditableModel, world_facts: tuple[Fact, ...], tmp_path: Path, statistics: Statistics
) -> None:
    edit = make(blue(MEMIT), world_facts[:2])
    gone = edit.redescribed(corpus=f"text:{tmp_path / 'gone.txt'}")
    with pytest.raises(PatchError, match=r"cannot be read.*--corpus text:FILE"):
        drop_facts(model, gone, [edit.facts[0].id])
    (tmp_path / "here.txt").write_text("Another text.\n")
    other = edit.redescribed(corpus=f"text:{tmp_path / 'here.txt'}", corpus_identity="something else")
    with pytest.raises(PatchError, match="holds another text now"):
        drop_facts(model, other, [edit.facts[0].id])


def test_settings_are_those_of_the_edit(model: EditableModel, make: Make, world_facts: tuple[Fact, ...]) -> None:
    from bluedit.sessions.resolving import setup_of

    edit = make(METHODS["alphaedit"], world_facts[:2], settings={"nullspace_threshold": 0.4})
    setup = setup_of(model, edit.manifest, statistics=Statistics())
    assert isinstance(setup.settings, Settings)
    assert setup.settings.recorded(setup.method.uses) == edit.manifest.settings
    assert (setup.layers, setup.templates, setup.seed) == (LAYERS, TEMPLATES, 0)
