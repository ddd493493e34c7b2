"""Sessions: sequences of batches that can be taken back, saved, killed and gone on with, bit for bit."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

import bluedit
from bluedit.editors.closed_form.inverse_metric import InverseMetric
from bluedit.editors.closed_form.keys import fact_keys
from bluedit.edits import LowRank, Patch, applied_patches
from bluedit.edits.base import revert
from bluedit.errors import BlueditError, FactError, InputError, NumericsError, PatchError, SessionError, SettingsError
from bluedit.facts import Fact, check_facts
from bluedit.methods import ALPHAEDIT, MEMIT, MEMIT_SEQ, METHODS, PRUNE, RECT, Editor, Method, blue
from bluedit.models import EditableModel
from bluedit.sessions import SESSION_MARKER, Session, edit_in_sequence
from bluedit.statistics import SecondMoment, Statistics
from bluedit.storage.documents import document_text
from bluedit.storage.tensors import write_tensors
from bluedit.strategies import BOUNDARY, Step, Strategy, explicit

Fresh = Callable[[], EditableModel]
Bits = dict[str, Tensor]

LAYERS = (0, 1, 2)
TEMPLATES = ("{}", "The old mill. {}")
SEQUENCES = ("memit", "memit-seq", "alphaedit", "rect", "prune", "pmet", "ft-m")

# Random weights are small, and some changes outgrow them: that is not what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:the change of layer")

each_sequence = pytest.mark.parametrize("name", SEQUENCES)


@pytest.fixture
def fresh(tiny_gpt2: EditableModel) -> Fresh:
    """Makes copies of the tiny GPT-2, each as it was before any edit."""
    network = tiny_gpt2.model
    # The configuration, which copying spends most of its time on, is shared.
    return lambda: EditableModel(copy.deepcopy(network, {id(network.config): network.config}), tiny_gpt2.tokenizer)


@pytest.fixture
def batches(world_facts: tuple[Fact, ...]) -> list[tuple[Fact, ...]]:
    """Three batches of two facts."""
    return [world_facts[:2], world_facts[2:4], world_facts[4:]]


def begin(model: EditableModel, method: Editor | str, statistics: Statistics, **options: Any) -> Session:
    """A session with few and cheap steps; a null space of a few directions, where there is one."""
    chosen = METHODS[method] if isinstance(method, str) else method
    fitting = {"lambda": 2.0, "v_lr": 0.3, "v_num_grad_steps": 2, "nullspace_threshold": 0.5, "ft_num_steps": 2}
    if "prune_base" in chosen.uses:
        # Changes that outgrow their weight: there is something to restrain.
        fitting |= {"lambda": 1e-3, "v_lr": 20.0, "clamp_norm_factor": 100.0}
    settings = {name: value for name, value in fitting.items() if name in chosen.uses} | options.pop("settings", {})
    layers = (1,) if chosen.strategy.one_layer else LAYERS
    options = {"layers": layers, "templates": TEMPLATES, "corpus": statistics, "settings": settings} | options
    return Session(model, method=chosen, **options)


def bits(model: EditableModel) -> Bits:
    return {name: value.detach().clone() for name, value in model.model.state_dict().items()}


def same(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def parts(patch: Patch) -> Bits:
    return {f"{name}.{part}": value for name, one in patch.changes.items() for part, value in one.tensors().items()}


def inverses(session: Session) -> dict[int, Tensor]:
    """Running inverses; none for methods that have none."""
    return {layer: metric.matrix_FF.clone() for layer, metric in getattr(session._state, "by_layer", {}).items()}


def keys(session: Session) -> list[Bits]:
    return [dict(batch.memory) for batch in session._batches]


def assert_alike(one: Session, other: Session) -> None:
    """Two sessions that cannot be told apart: same weights, patches, keys and running inverses, to the bit."""
    assert same(bits(one.model), bits(other.model))
    assert len(one) == len(other)
    assert one.finished == other.finished
    assert one.facts == other.facts
    for first, second in zip(one.patches, other.patches, strict=True):
        assert same(parts(first), parts(second))
        assert timeless(first) == timeless(second)
    assert all(same(first, second) for first, second in zip(keys(one), keys(other), strict=True))
    assert same(inverses(one), inverses(other))


def timeless(patch: Patch) -> object:
    return patch.manifest.model_copy(update={"seconds": 0.0})


def run(session: Session, facts: Iterable[Sequence[Fact]]) -> Session:
    for batch in facts:
        session.apply(batch)
    return session


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_what_the_patches_make_of_it(fresh: Fresh, moments: Any, batches: Any, name: str) -> None:
    model = fresh()
    chosen = [batch[:1] for batch in batches] if METHODS[name].largest_batch == 1 else batches
    before = bits(model)
    session = begin(model, name, moments(48))
    assert same(bits(model), before), "beginning a session changes nothing"
    for number, batch in enumerate(chosen):
        expected = bits(model)
        patch = session.apply(batch)
        for weight, change in patch.changes.items():
            change.add_to(model.structure.oriented(expected[weight]))
        assert same(bits(model), expected)
        assert not same(expected, before)
        assert session.patches[-1] is patch
        assert len(session) == number + 1
        assert [fact.id for fact in patch.facts] == [fact.id for fact in batch]
    assert session.facts == tuple(fact for batch in chosen for fact in batch)
    assert applied_patches(model) == session.patches


@pytest.mark.parametrize("strategy", ["even", "boundary", "each-layer"])
def test_a_first_batch_is_a_plain_edit(fresh: Fresh, moments: Any, batches: Any, strategy: str) -> None:
    session = begin(fresh(), "memit-seq", moments(48), strategy=strategy)
    patch = session.apply(batches[0])
    options = {"layers": LAYERS, "templates": TEMPLATES, "settings": session.setup.settings, "corpus": moments(48)}
    alone = bluedit.edit(fresh(), batches[0], method="memit-seq", strategy=strategy, **options)
    assert same(parts(patch), parts(alone))
    assert timeless(patch) == timeless(alone)


def test_a_batch_is_an_edit_of_the_model_as_edited_so_far(fresh: Fresh, moments: Any, batches: Any) -> None:
    """Without past keys a session is nothing but edits one after the other."""
    session = run(begin(fresh(), "memit", moments(48)), batches)
    model = fresh()
    options = {"layers": LAYERS, "templates": TEMPLATES, "settings": session.setup.settings, "corpus": moments(48)}
    for batch, patch in zip(batches, session.patches, strict=True):
        alone = bluedit.edit(model, batch, method="memit", **options)
        alone.apply(model)
        assert same(parts(alone), parts(patch))
    assert same(bits(model), bits(session.model))


def test_one_fact_or_a_mapping_is_a_batch(fresh: Fresh, moments: Any, world_facts: tuple[Fact, ...]) -> None:
    fact = world_facts[0]
    one, other = begin(fresh(), "memit", moments(48)), begin(fresh(), "memit", moments(48))
    one.apply(fact)
    other.apply({"prompt": fact.prompt, "subject": fact.subject, "target": fact.target, "id": fact.id})
    assert_alike(one, other)


def test_a_session_takes_a_plain_transformers_model(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    plain = fresh()
    options = {"layers": LAYERS, "templates": TEMPLATES, "corpus": moments(48), "settings": {"v_num_grad_steps": 2}}
    session = Session(plain.model, tokenizer=plain.tokenizer, **options)
    assert session.setup.method == blue(MEMIT)
    session.apply(batches[0])
    session.save(tmp_path / "run")
    other = fresh()
    resumed = Session.resume(str(tmp_path / "run"), other.model, tokenizer=other.tokenizer)
    assert_alike(resumed, session)
    with pytest.raises(TypeError, match="tokenizer"):
        Session.resume(tmp_path / "run", fresh().model)


def test_an_empty_batch_is_a_batch(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    session, without = begin(fresh(), "memit-seq", moments(48)), begin(fresh(), "memit-seq", moments(48))
    before = bits(session.model)
    assert not session.apply([]).changes
    assert len(session) == 1
    assert same(bits(session.model), before)
    session.save(tmp_path / "run")
    session = Session.resume(tmp_path / "run", fresh(), statistics=moments(48))
    run(session, [batches[0], [], batches[1], []])
    run(without, batches[:2])
    assert same(bits(session.model), bits(without.model))
    assert same(inverses(session), inverses(without))
    session.save(tmp_path / "run")
    resumed = Session.resume(tmp_path / "run", fresh(), statistics=moments(48))
    assert_alike(resumed, session)
    whole = resumed.finish()
    assert whole.manifest.batches == (0, 2, 0, 2, 0)
    assert same(parts(whole), parts(without.finish()))
    whole.save(tmp_path / "patch")
    assert len(Patch.load(tmp_path / "patch").facts) == 4
    resumed.undo(2)
    run(without, [])
    without.undo()
    assert same(bits(resumed.model), bits(without.model))
    assert same(inverses(resumed), inverses(without))


def test_a_method_for_single_facts_takes_batches_of_one(fresh: Fresh, moments: Any, batches: Any) -> None:
    session = begin(fresh(), "rome", moments(48))
    first = session.apply(batches[0][0])
    before = bits(session.model)
    with pytest.raises(SettingsError, match="rome solves for 1 fact at a time, and was given 2"):
        session.apply(batches[1])
    assert same(bits(session.model), before)
    assert session.patches == (first,)
    session.apply(batches[0][1:])
    assert session.finish().manifest.batches == (1, 1)


@pytest.mark.parametrize("name", ["memit-seq", "alphaedit", "ft-m"])
def test_sessions_on_two_models_do_not_affect_each_other(fresh: Fresh, moments: Any, batches: Any, name: str) -> None:
    alone = run(begin(fresh(), name, moments(48)), batches[:2])
    one, model = begin(fresh(), name, moments(48)), fresh()
    with torch.no_grad():
        model.weight(0).mul_(1.5)
    other = begin(model, name, moments(48))
    other.apply(batches[2])
    one.apply(batches[0])
    other.apply(batches[1])
    one.apply(batches[1])
    other.undo(2)
    assert_alike(one, alone)


def test_a_session_inside_inference_mode(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    """Callers often wrap everything they do; a session outlives their block."""
    plain = run(begin(fresh(), "memit-seq", moments(48)), batches)
    model = fresh()
    with torch.inference_mode():
        session = run(begin(model, "memit-seq", moments(48)), batches[:1])
        session.save(tmp_path / "run")
    run(session, batches[1:])
    assert_alike(session, plain)


def test_a_session_resumed_inside_inference_mode(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    plain = run(begin(fresh(), "memit-seq", moments(48)), batches)
    run(begin(fresh(), "memit-seq", moments(48)), batches[:1]).save(tmp_path / "run")
    other = fresh()
    with torch.inference_mode():
        resumed = Session.resume(tmp_path / "run", other)
    run(resumed, batches[1:])
    assert_alike(resumed, plain)


def test_a_session_of_a_bfloat16_model(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    def half() -> EditableModel:
        model = fresh()
        model.model.to(torch.bfloat16)
        return model

    session = begin(half(), "alphaedit", moments(48))
    states = [bits(session.model)]
    for batch in batches:
        session.apply(batch)
        states.append(bits(session.model))
    session.save(tmp_path / "run")
    resumed = Session.resume(tmp_path / "run", half(), statistics=moments(48))
    assert_alike(resumed, session)
    for one in (session, resumed):
        for number in (2, 1, 0):
            one.undo()
            assert same(bits(one.model), states[number])


# -- undoing -----------------------------------------------------------------------------------------------------------


@each_sequence
def test_undo_gives_the_bits_and_the_past_keys_back(fresh: Fresh, moments: Any, batches: Any, name: str) -> None:
    session = begin(fresh(), name, moments(48))
    states = [bits(session.model)]
    known = [inverses(session)]
    for batch in batches:
        session.apply(batch)
        states.append(bits(session.model))
        known.append(inverses(session))
    last = session.patches[-1]
    assert session.undo() == (last,)
    assert same(bits(session.model), states[2])
    assert same(inverses(session), known[2])
    first, second = session.patches
    assert session.undo(2) == (first, second)
    assert same(bits(session.model), states[0])
    assert not applied_patches(session.model)
    assert len(session) == 0
    again = session.apply(batches[0])
    assert same(parts(again), parts(first))
    assert same(inverses(session), known[1])


@each_sequence
def test_a_batch_undone_leaves_no_trace(fresh: Fresh, moments: Any, batches: Any, name: str) -> None:
    """A, B, B undone, C is A, C."""
    one, other = begin(fresh(), name, moments(48)), begin(fresh(), name, moments(48))
    run(one, batches[:2]).undo()
    one.apply(batches[2])
    run(other, [batches[0], batches[2]])
    assert_alike(one, other)


@pytest.mark.parametrize("name", ["memit-seq", "alphaedit", "rect", "prune"])
def test_a_resumed_session_undoes_as_if_it_had_never_stopped(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, name: str
) -> None:
    session = run(begin(fresh(), name, moments(48)), batches)
    session.save(tmp_path / "run")
    for count in (1, 2, 3):
        resumed = Session.resume(tmp_path / "run", fresh(), statistics=moments(48))
        undone = resumed.undo(count)
        assert [patch.facts for patch in undone] == [patch.facts for patch in session.patches[3 - count :]]
        expected = begin(fresh(), name, moments(48))
        run(expected, batches[: 3 - count])
        if count < 3:
            assert_alike(resumed, expected)
        else:
            assert same(bits(resumed.model), bits(expected.model))
        run(resumed, batches[3 - count :])
        assert_alike(resumed, session)


def test_a_resumed_session_of_a_wide_model_undoes_as_if_it_had_never_stopped(
    tiny_gpt2: EditableModel, batches: Any, tmp_path: Path
) -> None:
    """The products of 1,024 terms are rounded by how their factors lie in memory, which a file does not keep."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"vocab_size": 500, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "n_inner": 1024}
        config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
        network = AutoModelForCausalLM.from_config(config).eval()

    def model() -> EditableModel:
        return EditableModel(copy.deepcopy(network), tiny_gpt2.tokenizer)

    statistics = Statistics(precomputed={0: SecondMoment(torch.eye(1024, dtype=torch.float64), 1024)})
    session = run(begin(model(), "memit-seq", statistics, layers=[0]), batches[:2])
    session.save(tmp_path / "run")
    resumed = Session.resume(tmp_path / "run", model(), statistics=statistics)
    assert_alike(resumed, session)
    session.undo()
    resumed.undo()
    assert_alike(resumed, session)


@pytest.mark.parametrize("count", [-1, 2, 100])
def test_more_than_there_is_cannot_be_undone(fresh: Fresh, moments: Any, batches: Any, count: int) -> None:
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[:1])
    before, known = bits(session.model), inverses(session)
    with pytest.raises(SessionError, match=f"{count} batches cannot be undone: the session has 1"):
        session.undo(count)
    assert same(bits(session.model), before)
    assert same(inverses(session), known)
    assert len(session) == 1


def test_undoing_nothing_changes_nothing(fresh: Fresh, moments: Any, batches: Any) -> None:
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[:1])
    before, known = bits(session.model), inverses(session)
    assert session.undo(0) == ()
    assert same(bits(session.model), before)
    assert same(inverses(session), known)


def test_a_resumed_session_undoes_without_second_moments(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    """Second moments that came from memory are not in the folder; what was made of them is."""
    session = run(begin(fresh(), "memit-seq", moments(48)), batches)
    session.save(tmp_path / "run")
    for count in (1, 2, 3):
        resumed = Session.resume(tmp_path / "run", fresh())
        resumed.undo(count)
        run(resumed, batches[3 - count :])
        assert_alike(resumed, session)


def test_undo_that_fails_leaves_everything(fresh: Fresh, moments: Any, batches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = run(begin(fresh(), "memit-seq", moments(48)), batches)

    def fail(self: InverseMetric, keys_FN: Tensor) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as failing:
        failing.setattr(InverseMetric, "absorb", fail)
        untouched(session, session.undo, RuntimeError, "out of memory")
    session.undo()
    assert_alike(session, run(begin(fresh(), "memit-seq", moments(48)), batches[:2]))


# -- past keys ---------------------------------------------------------------------------------------------------------


def recorded(session: Session, layer: int) -> Tensor:
    """Kp of a layer, F x M, float64."""
    return torch.cat([batch.memory[str(layer)] for batch in session._batches], 1).double()


@pytest.mark.parametrize("strategy", ["even", "boundary"])
def test_the_running_inverse_is_that_of_the_metric_with_past_keys(
    fresh: Fresh, moments: Any, batches: Any, strategy: str
) -> None:
    """MEMIT-seq: B = (lambda C + Kp Kp^T)^-1 (BLUE eq. 8)."""
    statistics = moments(48)
    session = run(begin(fresh(), "memit-seq", statistics, strategy=strategy), batches[:2])
    changed = (0, 2) if strategy == "boundary" else LAYERS
    assert tuple(inverses(session)) == changed
    for layer, inverse_FF in inverses(session).items():
        past_FM = recorded(session, layer)
        assert past_FM.shape == (48, 4)
        expected_FF = torch.linalg.inv(2.0 * statistics.precomputed[layer].matrix_FF + past_FM @ past_FM.T)
        assert (inverse_FF - expected_FF).norm() <= 1e-9 * expected_FF.norm()
        assert torch.equal(inverse_FF, inverse_FF.T)


@pytest.mark.parametrize("ridge", [10.0, 0.1])
def test_the_running_inverse_of_the_null_space_is_the_textbook_form(
    fresh: Fresh, moments: Any, batches: Any, ridge: float
) -> None:
    """AlphaEdit: B = P (Kp Kp^T P + L2 I)^-1, which is symmetric."""
    statistics = moments(48)
    session = run(begin(fresh(), "alphaedit", statistics, settings={"L2": ridge}), batches[:2])
    for layer, inverse_FF in inverses(session).items():
        values_F, vectors_FF = torch.linalg.eigh(statistics.precomputed[layer].matrix_FF)
        free_FR = vectors_FF[:, values_F < 0.5]
        assert 0 < free_FR.shape[1] < 48
        projector_FF = free_FR @ free_FR.T
        past_FM = recorded(session, layer)
        system_FF = past_FM @ past_FM.T @ projector_FF + ridge * torch.eye(48, dtype=torch.float64)
        expected_FF = projector_FF @ torch.linalg.inv(system_FF)
        assert (inverse_FF - expected_FF).norm() <= 1e-9 * expected_FF.norm()


@pytest.mark.parametrize("method", [MEMIT_SEQ, blue(ALPHAEDIT), replace(RECT, name="rect-seq", caches_keys=True)])
def test_past_keys_are_those_of_the_edited_model(fresh: Fresh, moments: Any, batches: Any, method: Method) -> None:
    session = begin(fresh(), method, moments(48))
    for batch in batches[:2]:
        session.apply(batch)
        for layer, keys_FN in keys(session)[-1].items():
            torch.testing.assert_close(keys_FN, fact_keys(session.model, batch, layer, TEMPLATES), rtol=1e-5, atol=1e-6)


def test_past_keys_of_steps_that_go_down_are_those_of_the_edited_model(fresh: Fresh, moments: Any, batches: Any) -> None:
    """The upper layer is changed first: its keys change when the lower one is."""
    strategy = explicit([(2, 2, 0.7), (0, 2, 1.0)])
    session = begin(fresh(), "memit-seq", moments(48), strategy=strategy)
    session.apply(batches[0])
    for layer, keys_FN in keys(session)[0].items():
        torch.testing.assert_close(keys_FN, fact_keys(session.model, batches[0], layer, TEMPLATES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["memit", "rect", "prune", "pmet", "emmet"])
def test_methods_that_keep_no_past_keys_keep_none(fresh: Fresh, moments: Any, batches: Any, name: str) -> None:
    session = begin(fresh(), name, moments(48))
    session.apply(batches[0])
    before = inverses(session)
    session.apply(batches[1])
    assert same(inverses(session), before)
    assert keys(session) == [{}, {}]


# -- going on ----------------------------------------------------------------------------------------------------------


@each_sequence
def test_a_session_stopped_anywhere_goes_on_bit_for_bit(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, name: str
) -> None:
    whole = run(begin(fresh(), name, moments(48)), batches)
    unfinished = bits(whole.model)
    expected = whole.finish()
    assert whole.finished == (name == "prune")
    assert same(bits(whole.model), unfinished) != whole.finished
    for cut in range(4):
        session = run(begin(fresh(), name, moments(48)), batches[:cut])
        session.save(tmp_path / f"{cut}")
        resumed = Session.resume(tmp_path / f"{cut}", fresh(), statistics=moments(48) if cut == 0 else None)
        assert_alike(resumed, session)
        assert timeless(run(resumed, batches[cut:]).finish()) == timeless(expected)
        assert_alike(resumed, whole)
        assert same(parts(resumed.finish()), parts(expected))


@pytest.mark.parametrize("name", ["memit", "alphaedit", "prune", "ft-m"])
def test_a_session_stopped_after_every_batch_goes_on_bit_for_bit(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, name: str
) -> None:
    expected = run(begin(fresh(), name, moments(48)), batches)
    begin(fresh(), name, moments(48)).save(tmp_path / "run")
    for batch in batches:
        session = Session.resume(tmp_path / "run", fresh(), statistics=moments(48))
        session.apply(batch)
        session.save(tmp_path / "run")
    resumed = Session.resume(tmp_path / "run", fresh(), statistics=moments(48))
    assert_alike(resumed, expected)
    expected.finish()
    resumed.finish()
    resumed.save(tmp_path / "run")
    assert_alike(resumed, expected)
    assert_alike(Session.resume(tmp_path / "run", fresh(), statistics=moments(48)), expected)


def test_what_was_generated_and_chosen_is_gone_on_with(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    """Templates are not generated anew, and settings, seed and layers are those of the beginning."""
    session = begin(
        fresh(), "rect", moments(48), templates=None, seed=5, strategy="single:2", layers=None,
        settings={"rect_keep": 0.25, "shrinkage": 0.1},
    )  # fmt: skip
    session.apply(batches[0])
    session.save(tmp_path / "run")
    resumed = Session.resume(tmp_path / "run", fresh())
    assert replace(resumed.setup, method=session.setup.method, statistics=session.setup.statistics) == session.setup
    assert resumed.setup.method.strategy.steps((2,)) == session.setup.method.strategy.steps((2,))
    assert len(resumed.setup.templates) == 6


@pytest.mark.parametrize("strategy", ["even", "square-root", "boundary", "each-layer", "single:1"])
def test_the_saved_strategy_is_gone_on_with(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, strategy: str) -> None:
    session = begin(fresh(), "memit", moments(48), strategy=strategy)
    session.apply(batches[0])
    session.save(tmp_path / "run")
    resumed = Session.resume(tmp_path / "run", fresh(), statistics=moments(48))
    assert resumed.setup.method.strategy.name == strategy
    run(session, batches[1:2])
    run(resumed, batches[1:2])
    assert_alike(resumed, session)


def test_explicit_steps_are_gone_on_with(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    steps = (Step(0, 2, 0.5), Step(2, 3, 0.25))
    session = begin(fresh(), "memit", moments(48), strategy=explicit(steps))
    session.apply(batches[0])
    session.save(tmp_path / "run")
    resumed = Session.resume(tmp_path / "run", fresh(), statistics=moments(48))
    assert resumed.setup.method.strategy.steps(LAYERS) == steps
    session.apply(batches[1])
    resumed.apply(batches[1])
    assert_alike(resumed, session)


def test_the_saved_steps_count_more_than_those_of_the_method_given(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path
) -> None:
    """`method`: its strategy is the saved one, where both are explicit, too."""
    steps = (Step(0, 2, 0.5), Step(2, 2, 0.25))
    begin(fresh(), "memit", moments(48), strategy=explicit(steps)).save(tmp_path / "run")
    given = MEMIT.with_strategy(explicit([(1, 1, 1.0)]))
    resumed = Session.resume(tmp_path / "run", fresh(), method=given, statistics=moments(48))
    assert resumed.setup.method.strategy.steps(LAYERS) == steps


def test_a_strategy_of_ones_own_is_gone_on_with(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    """The folder holds the steps, which is all that a strategy says."""
    mine = Strategy("mine", lambda layers: (Step(layers[0], layers[-1], 0.5), Step(layers[-1], layers[-1], 1.0)))
    session = begin(fresh(), "memit", moments(48), strategy=mine)
    session.apply(batches[0])
    session.save(tmp_path / "run")
    for method in (MEMIT.with_strategy(mine), MEMIT, None):
        resumed = Session.resume(tmp_path / "run", fresh(), method=method, statistics=moments(48))
        assert resumed.setup.method.strategy.steps(LAYERS) == mine.steps(LAYERS)
        assert resumed.setup.method.strategy.name == "mine"


def test_a_method_of_ones_own_is_gone_on_with(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    mine = Method(name="mine", strategy=BOUNDARY, noise=0.5, constraint=RECT.constraint)
    expected = run(begin(fresh(), mine, moments(48)), batches[:2])
    session = begin(fresh(), mine, moments(48))
    session.apply(batches[0])
    session.save(tmp_path / "run")
    with pytest.raises(InputError, match="'mine'"):
        Session.resume(tmp_path / "run", fresh())
    resumed = Session.resume(tmp_path / "run", fresh(), method=mine)
    resumed.apply(batches[1])
    assert_alike(resumed, expected)


def test_a_method_of_another_name_is_refused(fresh: Fresh, moments: Any, tmp_path: Path) -> None:
    begin(fresh(), "memit-seq", moments(48)).save(tmp_path / "run")
    with pytest.raises(SessionError, match="was begun with method 'memit-seq', not 'memit'"):
        Session.resume(tmp_path / "run", fresh(), method=MEMIT)


def test_a_method_of_the_same_name_and_other_parts_is_refused(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    """Parts are easily replaced and the name forgotten: what is gone on with must not be another method in silence."""
    mine = replace(MEMIT, caches_keys=True)
    session = begin(fresh(), mine, moments(48))
    session.apply(batches[0])
    session.save(tmp_path / "run")
    with pytest.raises(SessionError):
        Session.resume(tmp_path / "run", fresh())
    Session.resume(tmp_path / "run", fresh(), method=mine)


@pytest.fixture
def corpus(corpus_texts: list[str], tmp_path: Path) -> Path:
    """A small text file; the moments over it need shrinkage."""
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(corpus_texts[:20]) + "\n", encoding="utf-8")
    return path


def from_corpus(fresh: Fresh, corpus: Path) -> Session:
    return begin(fresh(), "memit-seq", Statistics(), corpus=f"text:{corpus}", settings={"shrinkage": 0.2})


def test_a_corpus_is_opened_again_to_undo(fresh: Fresh, batches: Any, corpus: Path, tmp_path: Path) -> None:
    session = run(from_corpus(fresh, corpus), batches[:2])
    session.save(tmp_path / "run")
    resumed = Session.resume(tmp_path / "run", fresh())
    session.undo()
    resumed.undo()
    assert_alike(resumed, session)


def test_a_corpus_that_is_gone_stops_nothing(fresh: Fresh, batches: Any, corpus: Path, tmp_path: Path) -> None:
    """A saved session holds what was made of the second moments: going on needs no text, and undoing none either."""
    session = run(from_corpus(fresh, corpus), batches[:2])
    session.save(tmp_path / "run")
    corpus.unlink()
    resumed = Session.resume(tmp_path / "run", fresh())
    session.undo()
    resumed.undo()
    assert_alike(resumed, session)
    run(session, batches[1:])
    run(resumed, batches[1:])
    assert_alike(resumed, session)


@pytest.mark.parametrize("batch", [0, 1])
def test_a_corpus_that_has_changed_is_not_taken_for_the_same(
    fresh: Fresh, batches: Any, corpus: Path, tmp_path: Path, batch: int
) -> None:
    """Second moments over another text would give other changes without a word."""
    session = run(from_corpus(fresh, corpus), batches[:batch])
    session.save(tmp_path / "run")
    expected = run(session, batches[batch:])
    lines = corpus.read_text(encoding="utf-8").splitlines()
    corpus.write_text("\n".join(lines[:10]) + "\n", encoding="utf-8")
    try:
        resumed = run(Session.resume(tmp_path / "run", fresh()), batches[batch:])
    except InputError:
        return
    assert_alike(resumed, expected)


# -- saving ------------------------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kinds(folder: Path) -> list[str]:
    """The files of a folder, whatever revision they are of."""
    return [name.split(".")[0].rpartition("-")[0] for name in names(folder)]


def stamps(folder: Path) -> dict[str, int]:
    """Which file is the one that was written, and not a copy of it: by inode."""
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["memit", "memit-seq"])
def test_saving_again_writes_new_batches_only(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, name: str) -> None:
    session = begin(fresh(), name, moments(48))
    kept: dict[str, int] = {}
    for number, batch in enumerate(batches, start=1):
        session.apply(batch)
        assert session.save(tmp_path / "run") == tmp_path / "run"
        files = stamps(tmp_path / "run")
        expected = [f"patch-{one:04}-{one}.safetensors" for one in range(1, number + 1)]
        expected += [f"weights-{number}.safetensors", SESSION_MARKER]
        # What does not change while no past keys are kept is not written again.
        expected += ["metrics-1.safetensors"] if name == "memit" else [f"metrics-{number}.safetensors"]
        if name == "memit-seq":
            expected += ["initial-1.safetensors"]
            expected += [f"keys-{one:04}-{one}.safetensors" for one in range(1, number + 1)]
        assert sorted(expected) == names(tmp_path / "run")
        assert all(files[file] == inode for file, inode in kept.items() if file in files)
        kept = {file: inode for file, inode in files.items() if file.startswith(("patch", "keys", "initial"))}
    assert_alike(Session.resume(tmp_path / "run", fresh()), session)


def test_saving_twice_without_a_batch_between(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[:1])
    session.save(tmp_path / "run")
    before = stamps(tmp_path / "run")
    session.save(tmp_path / "run")
    after = stamps(tmp_path / "run")
    assert {file: after[file] for file in after if file.startswith(("patch", "keys", "metrics"))} == {
        file: before[file] for file in before if file.startswith(("patch", "keys", "metrics"))
    }
    assert_alike(Session.resume(tmp_path / "run", fresh()), session)


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_saving_after_undo_and_other_batches(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, name: str) -> None:
    session = run(begin(fresh(), name, moments(48)), batches[:2])
    session.save(tmp_path / "run")
    session.undo()
    session.save(tmp_path / "run")
    assert_alike(Session.resume(tmp_path / "run", fresh()), session)
    session.apply(batches[2])
    session.save(tmp_path / "run")
    assert_alike(Session.resume(tmp_path / "run", fresh()), session)
    session.undo(2)
    run(session, [batches[2], batches[0]])
    session.save(tmp_path / "run")
    resumed = Session.resume(tmp_path / "run", fresh(), statistics=moments(48))
    assert_alike(resumed, session)
    resumed.undo(2)
    resumed.save(tmp_path / "run")
    assert len(Session.resume(tmp_path / "run", fresh())) == 0
    assert not [file for file in names(tmp_path / "run") if file.startswith(("patch", "keys"))]


def test_one_session_in_two_folders(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[:1])
    session.save(tmp_path / "one")
    session.apply(batches[1])
    session.save(tmp_path / "deep" / "other")
    session.undo()
    session.apply(batches[2])
    session.save(tmp_path / "one")
    assert_alike(Session.resume(tmp_path / "one", fresh()), session)
    assert Session.resume(tmp_path / "deep" / "other", fresh()).facts == (*batches[0], *batches[1])
    session.save(tmp_path / "deep" / "other")
    assert_alike(Session.resume(tmp_path / "deep" / "other", fresh()), session)


def test_saving_replaces_nothing_unless_told_to(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    earlier = run(begin(fresh(), "memit", moments(48)), batches[:2])
    earlier.save(tmp_path / "run")
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[2:])
    with pytest.raises(InputError, match="holds a session already; resume that one"):
        session.save(tmp_path / "run")
    assert_alike(Session.resume(tmp_path / "run", fresh()), earlier)
    session.save(tmp_path / "run", replace=True)
    assert_alike(Session.resume(tmp_path / "run", fresh()), session)
    assert not [file for file in names(tmp_path / "run") if "0002" in file]
    session.save(tmp_path / "run")
    assert_alike(Session.resume(tmp_path / "run", fresh()), session)


def test_saving_never_replaces_a_folder_of_other_things(fresh: Fresh, moments: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("keep me")
    session = begin(fresh(), "memit", moments(48))
    for given in (False, True):
        with pytest.raises(InputError):
            session.save(tmp_path / "mine", replace=given)
    assert names(tmp_path / "mine") == ["letter"]


@pytest.mark.parametrize("given", [False, True])
def test_saving_in_the_place_of_a_file_is_refused(fresh: Fresh, moments: Any, tmp_path: Path, given: bool) -> None:
    (tmp_path / "file").write_text("keep me")
    with pytest.raises(InputError):
        begin(fresh(), "memit", moments(48)).save(tmp_path / "file", replace=given)
    assert (tmp_path / "file").read_text() == "keep me"


def test_saving_leaves_files_of_others_in_the_folder(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    """A folder of a session is a natural place for what comes out of it."""
    session = run(begin(fresh(), "memit", moments(48)), batches[:1])
    session.save(tmp_path / "run")
    session.finish().save(tmp_path / "run" / "patch-first.safetensors")
    (tmp_path / "run" / "notes.txt").write_text("lambda was too small")
    session.apply(batches[1])
    session.save(tmp_path / "run")
    assert {"patch-first.safetensors", "notes.txt"} <= set(names(tmp_path / "run"))


def test_a_folder_that_was_removed_is_written_anew(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[:1])
    session.save(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    session.apply(batches[1])
    session.save(tmp_path / "run")
    assert_alike(Session.resume(tmp_path / "run", fresh()), session)


def test_a_folder_that_another_session_wrote_is_not_mixed_up(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    """The folder is not what the session remembers: it is refused or written whole, never half."""
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[:2])
    session.save(tmp_path / "run")
    other = Session.resume(tmp_path / "run", fresh(), statistics=moments(48))
    other.undo(2)
    other.apply(batches[2])
    other.save(tmp_path / "run")
    saved = other
    with contextlib.suppress(InputError):
        session.save(tmp_path / "run")
        saved = session
    assert_alike(Session.resume(tmp_path / "run", fresh()), saved)


def test_a_folder_that_another_session_wrote_is_replaced_when_told_to(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path
) -> None:
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[:1])
    session.save(tmp_path / "run")
    other = run(begin(fresh(), "memit", moments(48)), batches[1:])
    other.save(tmp_path / "run", replace=True)
    with pytest.raises(InputError):
        session.save(tmp_path / "run")
    session.save(tmp_path / "run", replace=True)
    assert_alike(Session.resume(tmp_path / "run", fresh()), session)


def test_one_folder_by_two_names_is_one_folder(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[:1])
    session.save(tmp_path / "run")
    session.apply(batches[1])
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for path in (tmp_path / "link", tmp_path / "run" / ".." / "run"):
        session.save(path)
        assert_alike(Session.resume(tmp_path / "run", fresh()), session)


def test_folders_in_the_home_folder(fresh: Fresh, moments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved at `~/run` is resumed from `~/run`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    begin(fresh(), "memit", moments(48)).save("~/run")
    assert len(Session.resume("~/run", fresh())) == 0


def test_a_relative_folder(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session = run(begin(fresh(), "memit", moments(48)), batches[:1])
    session.save("run")
    session.save(tmp_path / "run")
    resumed = Session.resume("run", fresh())
    resumed.save("run")
    assert_alike(Session.resume(tmp_path / "run", fresh()), session)


# -- kills -------------------------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """What ends a process in the middle."""


class Operations:
    """Counts what is done to files while a session is saved; `then` is called before each."""

    def __init__(self, patch: pytest.MonkeyPatch, then: Callable[[int], object]) -> None:
        self.count = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*arguments: Any, **options: Any) -> Any:
                self.count += 1
                then(self.count)
                return function(*arguments, **options)

            return wrapper

        for module in ("bluedit.storage.tensors", "bluedit.edits.base"):
            patch.setattr(f"{module}.save_file", counted(save_file))
        patch.setattr(os.path, "lexists", counted(os.path.lexists))  # the last look before a folder takes its place
        for name in ("replace", "unlink", "mkdir", "write_text"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))


def another_batch(session: Session, facts: Any) -> None:
    session.apply(facts[2])


def another_in_its_place(session: Session, facts: Any) -> None:
    session.undo()
    session.apply(facts[2])


def the_end(session: Session, facts: Any) -> None:
    session.finish()


CHANGES: dict[str, tuple[str, Callable[[Session, Any], None]]] = {
    "another batch": ("memit-seq", another_batch),
    "another batch, without past keys": ("memit", another_batch),
    "another batch in the place of the last": ("alphaedit", another_in_its_place),
    "the end": ("prune", the_end),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_at_any_moment_leaves_the_last_complete_state(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """What lies in the folder before each file operation is what a kill at that moment leaves."""
    name, do = CHANGES[change]
    session = run(begin(fresh(), name, moments(48)), batches[:2])
    session.save(tmp_path / "run")
    previous = Session.resume(tmp_path / "run", fresh(), statistics=moments(48))
    do(session, batches)

    with monkeypatch.context() as patch:
        seen = Operations(patch, lambda number: _copy(tmp_path / "run", tmp_path / f"{number}"))
        session.save(tmp_path / "run")
        count = seen.count
    assert count >= 6
    states = []
    for number in range(1, count + 1):
        resumed = Session.resume(tmp_path / f"{number}", fresh(), statistics=moments(48))
        states.append(same(bits(resumed.model), bits(session.model)))
        assert_alike(resumed, session if states[-1] else previous)
        # And what a new process makes of it is complete.
        resumed.save(tmp_path / f"{number}")
        assert_alike(Session.resume(tmp_path / f"{number}", fresh(), statistics=moments(48)), resumed)
    assert states == sorted(states), "the new state stays once it is there"
    assert not states[0]
    assert states[-1]


def _copy(source: Path, target: Path) -> None:
    """Copies a folder of files, if it is there, without what the tests count."""
    if not source.exists():
        return
    os.mkdir(target)  # noqa: PTH102
    for name in os.listdir(source):  # noqa: PTH208
        with open(source / name, "rb") as one, open(target / name, "wb") as other:  # noqa: PTH123
            other.write(one.read())


@pytest.mark.parametrize("change", CHANGES)
def test_a_save_that_failed_can_be_done_again(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A full disk, say: the session stays what it is, the folder what it was or will be, and the next save is complete."""
    name, do = CHANGES[change]
    session = run(begin(fresh(), name, moments(48)), batches[:2])
    session.save(tmp_path / "start")
    previous = Session.resume(tmp_path / "start", fresh(), statistics=moments(48))
    do(session, batches)
    expected = kinds(session.save(tmp_path / "end"))

    def fail_at(chosen: int) -> Callable[[int], None]:
        def then(number: int) -> None:
            if number == chosen:
                raise OSError(28, "No space left on device")

        return then

    failed = 0
    for chosen in range(1, 60):
        folder = tmp_path / f"{chosen}"
        shutil.copytree(tmp_path / "start", folder)
        one = Session.resume(folder, fresh(), statistics=moments(48))
        do(one, batches)
        with monkeypatch.context() as patch:
            seen = Operations(patch, fail_at(chosen))
            with contextlib.suppress(OSError):
                one.save(folder)
        if seen.count < chosen:
            break
        failed += 1
        resumed = Session.resume(folder, fresh(), statistics=moments(48))
        assert_alike(resumed, session if same(bits(resumed.model), bits(session.model)) else previous)
        one.save(folder)
        assert_alike(Session.resume(folder, fresh(), statistics=moments(48)), session)
        assert kinds(folder) == expected, "nothing of the failed save is left"
    assert failed >= 6


def test_a_first_save_that_failed_can_be_done_again(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[:1])

    def then(number: int) -> None:
        if number == chosen:
            raise Stopped

    for chosen in range(1, 60):
        folder = tmp_path / f"{chosen}"
        one = run(begin(fresh(), "memit-seq", moments(48)), batches[:1])
        with monkeypatch.context() as patch:
            seen = Operations(patch, then)
            with contextlib.suppress(Stopped):
                one.save(folder)
        if seen.count < chosen:
            break
        if folder.exists():
            # It appeared whole: only putting other things away was stopped.
            assert_alike(Session.resume(folder, fresh()), session)
        else:
            assert one.save(folder) == folder
        assert_alike(Session.resume(folder, fresh()), session)
    assert chosen > 6


def _wherever(path: Path) -> Path:
    """The folder; while it makes room for the new one, where it has stepped aside to."""
    aside = [path / name / "run" for name in os.listdir(path) if name.startswith(".run.old.")]  # noqa: PTH208
    return next((one for one in [path / "run", *aside] if one.exists()), path / "run")


def test_a_kill_while_a_session_replaces_another_leaves_one_of_them(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = run(begin(fresh(), "memit-seq", moments(48)), batches[:2])
    earlier.save(tmp_path / "run")
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[2:])
    with monkeypatch.context() as patch:
        seen = Operations(patch, lambda number: _copy(_wherever(tmp_path), tmp_path / f"{number}"))
        session.save(tmp_path / "run", replace=True)
        count = seen.count
    for number in range(1, count + 1):
        assert (tmp_path / f"{number}" / SESSION_MARKER).exists(), f"nothing is left of either before operation {number}"
        resumed = Session.resume(tmp_path / f"{number}", fresh())
        assert_alike(resumed, session if len(resumed) == 1 else earlier)


# -- damage ------------------------------------------------------------------------------------------------------------


def _edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the marker and its hash: as another program would, not as damage does."""
    saved = json.loads((folder / SESSION_MARKER).read_text(encoding="utf-8"))
    change(saved)
    (folder / SESSION_MARKER).write_text(document_text(saved), encoding="utf-8")


def _file(folder: Path, kind: str) -> Path:
    """The last file of a kind."""
    return sorted(folder.glob(f"{kind}-*.safetensors"))[-1]


def _tensors(folder: Path, kind: str, change: Callable[[Bits], Any]) -> None:
    """Change tensors and their hashes."""
    path = _file(folder, kind)
    tensors = load_file(path)
    change(tensors)
    digest = write_tensors(path, tensors)
    _edit(folder, lambda saved: saved["digests"].update({path.name: digest}))


def _truncate(folder: Path, kind: str) -> None:
    content = _file(folder, kind).read_bytes()
    _file(folder, kind).write_bytes(content[: len(content) // 2])


def _elsewhere(folder: Path, **names: Any) -> None:
    """A file that is there and would do, but outside the folder."""
    for file in list(folder.iterdir()):
        shutil.copy(file, folder.parent / file.name)
    _edit(folder, lambda saved: saved.update(names))


def _state_elsewhere(folder: Path, name: str) -> None:
    _elsewhere(folder)
    _edit(folder, lambda saved: saved["state_files"].update({name: f"../{name}-1.safetensors"}))


def _shorten_patch(folder: Path) -> None:
    path = _file(folder, "patch")
    patch = Patch.load(path)
    shorter = {
        name: LowRank(change.tensors()["residual"], change.tensors()["gain"][:-1]) for name, change in patch.changes.items()
    }
    changed = Patch(shorter, patch.manifest)
    changed.save(path, replace=True)
    _edit(folder, lambda saved: saved["digests"].update({path.name: changed.digest}))


LAST = "transformer.h.2.mlp.c_proj.weight"
FIRST = "transformer.h.0.mlp.c_proj.weight"

DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no marker": lambda folder: (folder / SESSION_MARKER).unlink(),
    "no folder": shutil.rmtree,
    "marker is no JSON": lambda folder: (folder / SESSION_MARKER).write_text("{"),
    "marker is empty": lambda folder: (folder / SESSION_MARKER).write_text(""),
    "marker is no UTF-8": lambda folder: (folder / SESSION_MARKER).write_bytes(b"\xff\xfe{}"),
    "marker is a list": lambda folder: (folder / SESSION_MARKER).write_text("[]"),
    "marker lacks a part": lambda folder: _edit(folder, lambda saved: saved.pop("weights_file")),
    "marker of a later version": lambda folder: _edit(folder, lambda saved: saved.update(format_version=4)),
    "marker of another format": lambda folder: _edit(folder, lambda saved: saved.update(format="bluedit-patch")),
    "a batch is no name": lambda folder: _edit(folder, lambda saved: saved.update(batches=[None])),
    "a setting that there is not": lambda folder: _edit(folder, lambda saved: saved["settings"].update(lamda=1)),
    "a setting out of range": lambda folder: _edit(folder, lambda saved: saved["settings"].update({"lambda": -1})),
    "no initial metrics": lambda folder: _file(folder, "initial").unlink(),
    "initial metrics are truncated": lambda folder: _truncate(folder, "initial"),
    "initial metrics outside": lambda folder: _state_elsewhere(folder, "initial"),
    "an initial metric too few": lambda folder: _tensors(folder, "initial", lambda found: found.pop("1")),
    "an initial metric of another shape": lambda folder: _tensors(
        folder, "initial", lambda found: found.update({"1": torch.eye(7, dtype=torch.float64)})
    ),
    "no patch": lambda folder: _file(folder, "patch").unlink(),
    "no keys": lambda folder: _file(folder, "keys").unlink(),
    "no weights": lambda folder: _file(folder, "weights").unlink(),
    "no metrics": lambda folder: _file(folder, "metrics").unlink(),
    "patch is truncated": lambda folder: _truncate(folder, "patch"),
    "keys are truncated": lambda folder: _truncate(folder, "keys"),
    "weights are truncated": lambda folder: _truncate(folder, "weights"),
    "metrics are truncated": lambda folder: _truncate(folder, "metrics"),
    "metrics are empty": lambda folder: _file(folder, "metrics").write_bytes(b""),
    "patches outside": lambda folder: _elsewhere(folder, batches=["0001-1/../../patch-0001-1", "0002-1"]),
    "patches by a path": lambda folder: _elsewhere(folder, batches=["../0001-1", "../0002-1"]),
    "weights outside": lambda folder: _elsewhere(folder, weights_file="../weights-1.safetensors"),
    "weights by a whole path": lambda folder: _elsewhere(
        folder, weights_file=str(folder.parent.absolute() / "weights-1.safetensors")
    ),
    "metrics outside": lambda folder: _state_elsewhere(folder, "metrics"),
    "a whole patch outside": lambda folder: _elsewhere(folder, whole_file="../patch-0001-1.safetensors"),
    "weights are a folder": lambda folder: _edit(folder, lambda saved: saved.update(weights_file="..")),
    "no name for the weights": lambda folder: _edit(folder, lambda saved: saved.update(weights_file="")),
    "a weight of another shape": lambda folder: _tensors(
        folder, "weights", lambda found: found.update({LAST: found[LAST][:, :-1].contiguous()})
    ),
    "a weight that is one row": lambda folder: _tensors(
        folder, "weights", lambda found: found.update({LAST: found[LAST][:1].contiguous()})
    ),
    "a weight too few": lambda folder: _tensors(folder, "weights", lambda found: found.pop(FIRST)),
    "a weight too many": lambda folder: _tensors(folder, "weights", lambda found: found.update(more=torch.zeros(1))),
    "a weight is not a number": lambda folder: _tensors(folder, "weights", lambda found: found[LAST].fill_(float("nan"))),
    "a weight of other values": lambda folder: _tensors(folder, "weights", lambda found: found[LAST].mul_(1.1)),
    "a metric too few": lambda folder: _tensors(folder, "metrics", lambda found: found.pop("1")),
    "a metric of another shape": lambda folder: _tensors(
        folder, "metrics", lambda found: found.update({"1": torch.eye(7, dtype=torch.float64)})
    ),
    "keys of a layer are missing": lambda folder: _tensors(folder, "keys", lambda found: found.pop("1")),
    "keys of another shape": lambda folder: _tensors(folder, "keys", lambda found: found.update({"1": torch.zeros(7, 2)})),
    "keys of no layer": lambda folder: _tensors(folder, "keys", lambda found: found.update(first=found.pop("0"))),
    "a patch of another size": _shorten_patch,
    "a batch too few": lambda folder: _edit(folder, lambda saved: saved["batches"].pop()),
    "a whole patch that is not": lambda folder: _edit(
        folder, lambda saved: saved.update(whole_file="patch-0001-1.safetensors")
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_and_the_model_left(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, damage: str
) -> None:
    folder = run(begin(fresh(), "memit-seq", moments(48)), batches[:2]).save(tmp_path / "here" / "run")
    DAMAGES[damage](folder)
    model = fresh()
    before = bits(model)
    with pytest.raises((SessionError, PatchError)) as caught:
        Session.resume(folder, model, statistics=moments(48))
    assert same(bits(model), before)
    assert not applied_patches(model)
    assert str(folder) in str(caught.value)


def test_a_version_that_is_later_is_told_so(fresh: Fresh, moments: Any, tmp_path: Path) -> None:
    folder = begin(fresh(), "memit", moments(48)).save(tmp_path / "run")
    _edit(folder, lambda saved: saved.update(format_version=4))
    with pytest.raises(SessionError, match=r"session\.json is bluedit-session version 4; this bluedit reads .* up to 3"):
        Session.resume(folder, fresh())


# -- other models ------------------------------------------------------------------------------------------------------


def refused(folder: Path, model: EditableModel, message: str | None = None) -> None:
    before, patches = bits(model), applied_patches(model)
    with pytest.raises(SessionError, match=message):
        Session.resume(folder, model)
    assert same(bits(model), before)
    assert applied_patches(model) == patches


@pytest.fixture
def folder(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> Path:
    """A saved session of two batches."""
    return run(begin(fresh(), "memit-seq", moments(48)), batches[:2]).save(tmp_path / "run")


def test_a_model_of_other_weights_is_refused(folder: Path, other_gpt2: EditableModel) -> None:
    refused(folder, other_gpt2, "was begun on other weights")


@pytest.mark.parametrize("tiny_models", ["gpt2-square", "gptj", "llama", "gpt-neox"], indirect=True)
def test_a_model_of_another_shape_is_refused(folder: Path, tiny_models: EditableModel) -> None:
    refused(folder, EditableModel(copy.deepcopy(tiny_models.model), tiny_models.tokenizer))


@pytest.mark.parametrize("tiny_models", ["gpt2-square", "gptj", "llama", "gpt-neox"], indirect=True)
def test_a_model_of_another_shape_is_refused_before_the_first_batch_too(
    fresh: Fresh, moments: Any, tmp_path: Path, tiny_models: EditableModel
) -> None:
    """The templates, if nothing else, were generated by the model that the session was begun on."""
    folder = begin(fresh(), "memit-seq", moments(48)).save(tmp_path / "run")
    refused(folder, EditableModel(copy.deepcopy(tiny_models.model), tiny_models.tokenizer))


def test_a_model_that_differs_where_nothing_is_edited_is_refused(folder: Path, fresh: Fresh) -> None:
    """Keys, targets and second moments depend on every weight below, targets on those above, too."""
    model = fresh()
    with torch.no_grad():
        model.weight(3).mul_(2)
    refused(folder, model)


def test_a_model_of_other_functions_is_refused(folder: Path, fresh: Fresh) -> None:
    model = fresh()
    model.model.config = copy.deepcopy(model.model.config)
    model.model.config.activation_function = "relu"
    refused(folder, model)


def test_an_edited_model_is_refused(folder: Path, fresh: Fresh) -> None:
    model = fresh()
    session = Session.resume(folder, model)
    refused(folder, model)
    assert applied_patches(model) == session.patches


@pytest.mark.parametrize("layer", [1, 3])
def test_a_model_with_patches_applied_is_refused(
    folder: Path, fresh: Fresh, make_patch: Callable[..., Patch], layer: int
) -> None:
    """Whether the patch changes a weight of the session's or another one."""
    model = fresh()
    make_patch(model, (layer,)).apply(model)
    refused(folder, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=["bfloat16", "float16", "float64"])
def test_a_model_in_another_precision_is_refused(folder: Path, fresh: Fresh, dtype: torch.dtype) -> None:
    model = fresh()
    model.model.to(dtype)
    refused(folder, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("begun_in_half", [True, False], ids=["begun in half", "begun in single"])
def test_a_model_of_the_same_values_in_another_precision_is_refused(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, dtype: torch.dtype, begun_in_half: bool
) -> None:
    """A half-precision checkpoint can be loaded in either; an edited weight of the one is none of the other's."""
    half, single = fresh(), fresh()
    half.model.to(dtype)
    single.model.to(dtype).float()
    begun, other = (half, single) if begun_in_half else (single, half)
    session = begin(begun, "memit", moments(48))
    session.apply(batches[0])
    refused(session.save(tmp_path / "run"), other)


# -- the end of a sequence ---------------------------------------------------------------------------------------------


@each_sequence
def test_the_patch_of_the_whole_applies_to_the_model_before(
    fresh: Fresh, moments: Any, batches: Any, tmp_path: Path, name: str
) -> None:
    session = run(begin(fresh(), name, moments(48)), batches)
    whole = session.finish()
    assert whole.manifest.batches == (2, 2, 2)
    assert whole.facts == session.facts
    assert session.finish() is whole or name != "prune"
    path = whole.save(tmp_path / "patch")
    model = fresh()
    Patch.load(path).apply(model)  # hashes fit, too
    for key, value in bits(model).items():
        torch.testing.assert_close(value, bits(session.model)[key], rtol=1e-5, atol=1e-6)
    if name == "prune":
        assert same(bits(model), bits(session.model)), "the model has the restrained change, and nothing else"
    with pytest.raises(PatchError):
        whole.apply(session.model)


def test_the_end_restrains_the_whole_change_once(fresh: Fresh, moments: Any, batches: Any) -> None:
    """The model becomes W_0 + restrained change: nothing of the batches' own changes is left in it."""
    model = fresh()
    before = bits(model)
    session = run(begin(model, "prune", moments(48)), batches)
    whole = session.finish()
    assert session.finished
    assert applied_patches(model) == (whole,)
    assert whole.manifest.columns == "directions"
    for name, change in whole.changes.items():
        total = sum(patch.changes[name].dense().double() for patch in session.patches)
        weight = model.structure.oriented(before[name]).double()
        left, values, right = torch.linalg.svd(total, full_matrices=False)
        largest = torch.linalg.svdvals(weight)[0]
        kept = torch.where(values > largest, values.log() - largest.log() + largest, values)
        expected = left @ torch.diag(kept) @ right
        assert (change.dense().double() - expected).norm() <= 1e-5 * expected.norm()
        assert expected.norm() < 0.9 * total.norm(), "there is something to restrain"
        record = whole.manifest.weights[name]
        assert record.norm == pytest.approx(expected.norm().item(), rel=1e-5)
        assert record.relative_norm == pytest.approx((expected.norm() / weight.norm()).item(), rel=1e-5)


def test_one_batch_and_its_end_are_a_plain_edit(fresh: Fresh, moments: Any, batches: Any) -> None:
    session = begin(fresh(), "prune", moments(48))
    session.apply(batches[0])
    whole = session.finish()
    options = {"layers": LAYERS, "templates": TEMPLATES, "settings": session.setup.settings, "corpus": moments(48)}
    alone = bluedit.edit(fresh(), batches[0], method=session.setup.method, **options)
    assert same(parts(whole), parts(alone))
    assert timeless(whole) == timeless(alone)


def test_an_end_that_restrains_nothing_leaves_the_facts_columns(fresh: Fresh, moments: Any, batches: Any) -> None:
    session = run(begin(fresh(), "prune", moments(48), settings={"lambda": 2.0, "v_lr": 0.3}), batches)
    before = bits(session.model)
    whole = session.finish()
    assert session.finished
    assert whole.manifest.columns == "facts"
    for name, change in whole.changes.items():
        assert isinstance(change, LowRank)
        assert torch.equal(
            change.residual_DN, torch.cat([one.changes[name].tensors()["residual"] for one in session.patches], 1)
        )
    for key, value in bits(session.model).items():
        torch.testing.assert_close(value, before[key], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["memit-seq", "prune"])
def test_finishing_can_be_taken_back(fresh: Fresh, moments: Any, batches: Any, name: str) -> None:
    session, expected = begin(fresh(), name, moments(48)), begin(fresh(), name, moments(48))
    run(session, batches[:2])
    run(expected, batches[:2])
    session.finish()
    session.reopen()
    assert not session.finished
    assert_alike(session, expected)
    session.reopen()
    assert_alike(session, expected)
    session.finish()
    session.undo()
    expected.undo()
    assert_alike(session, expected)
    session.finish()
    session.reopen()
    session.apply(batches[2])
    expected.apply(batches[2])
    assert_alike(session, expected)


def test_a_finished_sequence_takes_no_more_batches(fresh: Fresh, moments: Any, batches: Any) -> None:
    session = run(begin(fresh(), "prune", moments(48)), batches[:2])
    session.finish()
    before = bits(session.model)
    with pytest.raises(SessionError, match=r"the sequence is finished: prune acted on its whole change; reopen\(\)"):
        session.apply(batches[2])
    assert same(bits(session.model), before)
    assert len(session) == 2


@pytest.mark.parametrize("name", ["memit", "memit-seq", "ft-m"])
def test_a_method_without_an_end_goes_on_after_finish(fresh: Fresh, moments: Any, batches: Any, name: str) -> None:
    session, expected = begin(fresh(), name, moments(48)), begin(fresh(), name, moments(48))
    run(session, batches[:1]).finish()
    run(session, batches[1:])
    run(expected, batches)
    assert_alike(session, expected)


def test_what_the_session_did_so_far(fresh: Fresh, moments: Any, batches: Any) -> None:
    """merged() is what the method means so far, which is nothing yet where it acts at the end."""
    session = run(begin(fresh(), "memit", moments(48)), batches[:2])
    assert same(parts(session.merged()), parts(session.finish()))
    prune = run(begin(fresh(), "prune", moments(48)), batches[:2])
    with pytest.raises(SessionError, match=r"prune acts at the end of the sequence, which has not come; call finish\(\)"):
        prune.merged()
    whole = prune.finish()
    assert prune.merged() is whole
    prune.reopen()
    with pytest.raises(SessionError):
        prune.merged()


@pytest.mark.parametrize("name", ["memit", "prune"])
def test_an_empty_session_has_no_end(fresh: Fresh, moments: Any, name: str) -> None:
    session = begin(fresh(), name, moments(48))
    before = bits(session.model)
    with pytest.raises(BlueditError, match="apply a batch first"):
        session.finish()
    assert not session.finished
    assert same(bits(session.model), before)


def test_facts_of_a_whole_sequence_have_ids_that_differ(fresh: Fresh, moments: Any, world_facts: tuple[Fact, ...]) -> None:
    """Facts without ids are numbered; what is edited in can be edited in again, or looked at, as one set."""
    session = begin(fresh(), "memit", moments(48))
    for fact in world_facts[:3]:
        session.apply(replace(fact, id=""))
    checked = check_facts(session.finish().facts)
    assert len(checked) == 3


# -- failures ----------------------------------------------------------------------------------------------------------


def untouched(session: Session, do: Callable[[], object], error: type[BaseException], message: str | None = None) -> None:
    """`do` fails, and nothing has happened."""
    before, known, patches = bits(session.model), inverses(session), session.patches
    with pytest.raises(error, match=message):
        do()
    assert same(bits(session.model), before)
    assert session.patches == patches
    assert applied_patches(session.model) == patches
    assert not known or same(inverses(session), known)


def test_facts_that_cannot_be_edited_leave_everything(fresh: Fresh, moments: Any, batches: Any) -> None:
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[:1])
    fact = batches[1][0]
    untouched(session, lambda: session.apply([fact, replace(fact, id="x", target="nowhere")]), FactError, "two targets")
    long = Fact("{} " + "and so on " * 200, "Zhand", "salt", id="long")
    untouched(session, lambda: session.apply([*batches[1], long]), FactError, "'long' takes")
    untouched(session, lambda: session.apply([{"prompt": "{}"}]), FactError, "lacks")
    expected = run(begin(fresh(), "memit-seq", moments(48)), batches[:2])
    session.apply(batches[1])
    assert_alike(session, expected)


@pytest.mark.parametrize("name", ["memit-seq", "alphaedit", "prune", "rect"])
def test_a_batch_without_a_solution_leaves_everything(
    fresh: Fresh, moments: Any, batches: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The last layer has none, when the ones below are written already; also where it is the first batch of all."""
    session = begin(fresh(), name, moments(48))
    original = InverseMetric.gain
    calls = 0

    def fail(self: InverseMetric, *arguments: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise NumericsError("no solution")
        return original(self, *arguments, **options)

    for batch in batches[:2]:
        calls = 0
        with monkeypatch.context() as failing:
            failing.setattr(InverseMetric, "gain", fail)
            untouched(session, lambda batch=batch: session.apply(batch), NumericsError, "no solution")
        session.apply(batch)
    assert_alike(session, run(begin(fresh(), name, moments(48)), batches[:2]))


def test_a_batch_whose_keys_coincide_leaves_everything(fresh: Fresh, moments: Any, batches: Any) -> None:
    session = begin(fresh(), "emmet", moments(48), templates=["{}"])
    session.apply(batches[0])
    subject = batches[1][0].subject
    twins = [Fact("{} lives in", subject, "Paris", id="one"), Fact("{} speaks", subject, "Latin", id="two")]
    untouched(session, lambda: session.apply(twins), NumericsError, "'one' and 'two' nearly coincide")


def test_past_keys_that_cannot_be_absorbed_leave_everything(
    fresh: Fresh, moments: Any, batches: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The running inverse of one layer is written when that of the next fails: memory ran out, or a key was pressed."""
    session = run(begin(fresh(), "memit-seq", moments(48)), batches[:1])
    original = InverseMetric.absorb
    calls = 0

    def fail(self: InverseMetric, keys_FN: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        original(self, keys_FN)

    with monkeypatch.context() as failing:
        failing.setattr(InverseMetric, "absorb", fail)
        untouched(session, lambda: session.apply(batches[1]), KeyboardInterrupt)
    session.apply(batches[1])
    assert_alike(session, run(begin(fresh(), "memit-seq", moments(48)), batches[:2]))


def test_past_keys_that_cannot_be_absorbed_after_resuming_leave_everything(
    fresh: Fresh, moments: Any, batches: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where there are no second moments to make the inverses anew from."""
    run(begin(fresh(), "memit-seq", moments(48)), batches[:1]).save(tmp_path / "run")
    session = Session.resume(tmp_path / "run", fresh())
    original = InverseMetric.absorb
    calls = 0

    def fail(self: InverseMetric, keys_FN: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        original(self, keys_FN)

    with monkeypatch.context() as failing:
        failing.setattr(InverseMetric, "absorb", fail)
        untouched(session, lambda: session.apply(batches[1]), KeyboardInterrupt)
    session.apply(batches[1])
    assert_alike(session, run(begin(fresh(), "memit-seq", moments(48)), batches[:2]))


@pytest.mark.parametrize("act", ["undo", "finish", "reopen"])
def test_an_interruption_leaves_the_state_before_or_after(
    fresh: Fresh, moments: Any, batches: Any, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Wherever a key is pressed while weights are written, the session and its model still belong together."""
    method = replace(PRUNE, name="prune-seq", caches_keys=True)

    def made() -> Session:
        session = run(begin(fresh(), method, moments(48)), batches[:2])
        if act == "reopen":
            session.finish()
        return session

    original = fresh()
    before, after = made(), made()
    getattr(after, act)()
    add = LowRank.add_to
    problems: list[str] = []
    for chosen in range(1, 60):
        session, calls = made(), 0

        def fail(self: LowRank, weight_DF: Tensor, chosen: int = chosen) -> None:
            nonlocal calls
            calls += 1
            if calls == chosen:
                raise KeyboardInterrupt
            add(self, weight_DF)

        with monkeypatch.context() as failing:
            failing.setattr(LowRank, "add_to", fail)
            with contextlib.suppress(KeyboardInterrupt):
                getattr(session, act)()
        if calls < chosen:
            break
        try:
            assert_alike(session, after if same(bits(session.model), bits(after.model)) else before)
            session.undo(len(session))
            assert same(bits(session.model), bits(original))
        except (AssertionError, BlueditError) as error:
            problems.append(f"stopped at change {chosen} of {act}: {str(error).splitlines()[0]}")
    assert not problems, "\n".join(problems)


# -- patches of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memit", "memit-seq", "prune"])
def test_a_patch_applied_before_the_session_stays(
    fresh: Fresh, moments: Any, batches: Any, make_patch: Callable[..., Patch], name: str
) -> None:
    """The session's beginning is the model as it finds it: patched."""
    baked = fresh()
    foreign = make_patch(baked, (1, 3))
    with torch.no_grad():
        for weight, change in foreign.changes.items():
            change.add_to(baked.structure.oriented(baked.model.get_parameter(weight)))
    model = fresh()
    original = bits(model)
    foreign.apply(model)
    start = bits(model)
    session, expected = begin(model, name, moments(48)), begin(baked, name, moments(48))
    run(session, batches[:2])
    run(expected, batches[:2])
    assert_alike(session, expected)
    session.finish()
    expected.finish()
    assert_alike(session, expected)
    session.undo(2)
    assert same(bits(model), start)
    assert applied_patches(model) == (foreign,)
    foreign.revert(model)
    assert same(bits(model), original)


@pytest.mark.parametrize("name", ["memit", "memit-seq"])
def test_a_patch_applied_between_batches_stays_where_it_is(
    fresh: Fresh, moments: Any, batches: Any, make_patch: Callable[..., Patch], name: str
) -> None:
    """Undoing the batch after it gives the bits from before that batch."""
    model = fresh()
    original = bits(model)
    session = begin(model, name, moments(48))
    session.apply(batches[0])
    foreign = make_patch(model, (1,))
    foreign.apply(model)
    between, known = bits(model), inverses(session)
    session.apply(batches[1])
    session.undo()
    assert same(bits(model), between)
    assert same(inverses(session), known)
    session.undo()
    foreign.revert(model)
    assert same(bits(model), original)


def test_a_patch_applied_between_batches_stays_where_it_is_at_the_end(
    fresh: Fresh, moments: Any, batches: Any, make_patch: Callable[..., Patch]
) -> None:
    model = fresh()
    session = begin(model, "prune", moments(48))
    session.apply(batches[0])
    foreign = make_patch(model, (1,))
    foreign.apply(model)
    session.apply(batches[1])
    before = bits(model)
    session.finish()
    session.reopen()
    assert same(bits(model), before)
    session.undo(2)
    assert applied_patches(model) == (foreign,)


@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("first", [True, False], ids=["before", "between"])
def test_a_session_on_a_patched_model_is_saved_so_that_it_can_be_resumed_or_not_at_all(
    fresh: Fresh, moments: Any, batches: Any, make_patch: Callable[..., Patch], tmp_path: Path, layer: int, first: bool
) -> None:
    """The folder has no place for patches of others: a session that cannot come back is not written, or not taken back.

    What must not be is a session that comes back on a model without the patch and goes on as if nothing were missing."""
    model = fresh()
    session = begin(model, "memit", moments(48))
    if not first:
        session.apply(batches[0])
    make_patch(model, (layer,)).apply(model)
    session.apply(batches[1])
    try:
        folder = session.save(tmp_path / "run")
    except InputError:
        return
    try:
        resumed = Session.resume(folder, fresh())
    except SessionError as error:
        assert "damaged" not in str(error), "nothing is damaged, and saving said that all was well"
        return
    assert same(bits(resumed.model), bits(model))


def test_a_batch_reverted_by_hand_is_noticed(fresh: Fresh, moments: Any, batches: Any, tmp_path: Path) -> None:
    """The ledger is the model's: taking a patch of the session off behind its back must not be saved as if it were on."""
    session = run(begin(fresh(), "memit", moments(48)), batches[:2])
    session.patches[0].revert(session.model)
    try:
        folder = session.save(tmp_path / "run")
        resumed = Session.resume(folder, fresh())
    except (SessionError, PatchError):
        return
    assert same(bits(resumed.model), bits(session.model))


def test_a_finished_sequence_reverted_by_hand_is_noticed(fresh: Fresh, moments: Any, batches: Any) -> None:
    session = run(begin(fresh(), "prune", moments(48)), batches[:2])
    whole = session.finish()
    finished = bits(session.model)
    whole.revert(session.model)
    with pytest.raises(SessionError, match="apply its patch again"):
        session.undo()
    whole.apply(session.model, check=False)
    assert same(bits(session.model), finished)
    session.undo(2)
    assert same(bits(session.model), bits(fresh()))


def test_several_patches_come_off_at_once(fresh: Fresh, moments: Any, batches: Any) -> None:
    session = run(begin(fresh(), "memit", moments(48)), batches)
    original = bits(fresh())
    first, second, third = session.patches
    with pytest.raises(PatchError):
        revert([first, first], session.model)
    assert applied_patches(session.model) == (first, second, third)
    revert([third, first], session.model)
    assert applied_patches(session.model) == (second,)
    revert([second], session.model)
    assert same(bits(session.model), original)


# -- a sequence in one call --------------------------------------------------------------------------------------------


def one_call(
    model: EditableModel, facts: Sequence[Fact], statistics: Statistics, folder: Path | None, name: str, **options: Any
) -> Patch:
    setup = begin(model, name, statistics, **options).setup
    return edit_in_sequence(model, setup, facts, 2, folder)


@pytest.mark.parametrize("name", ["memit-seq", "rect", "prune", "ft-m"])
def test_a_sequence_in_one_call_is_the_session_and_leaves_the_model(
    fresh: Fresh, moments: Any, batches: Any, world_facts: tuple[Fact, ...], tmp_path: Path, name: str
) -> None:
    expected = run(begin(fresh(), name, moments(48)), batches).finish()
    model = fresh()
    before = bits(model)
    for folder in (None, tmp_path / "run", tmp_path / "run"):
        patch = one_call(model, world_facts, moments(48), folder, name)
        assert same(parts(patch), parts(expected))
        assert timeless(patch) == timeless(expected)
        assert same(bits(model), before)
        assert not applied_patches(model)
    assert Session.resume(tmp_path / "run", model, statistics=moments(48)).facts == world_facts


def test_a_sequence_of_nothing_is_the_empty_patch(fresh: Fresh, moments: Any, tmp_path: Path) -> None:
    for folder in (None, tmp_path / "run", tmp_path / "run"):
        patch = one_call(fresh(), [], moments(48), folder, "memit-seq")
        assert not patch.changes
        assert not patch.facts


@pytest.mark.parametrize("name", ["memit-seq", "prune"])
def test_a_sequence_that_was_stopped_goes_on(
    fresh: Fresh, moments: Any, batches: Any, world_facts: tuple[Fact, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, name: str,
) -> None:  # fmt: skip
    expected = run(begin(fresh(), name, moments(48)), batches).finish()
    model = fresh()
    before = bits(model)
    original, batches_run = Session.apply, 0

    def stopped(self: Session, *arguments: Any, **options: Any) -> Patch:
        nonlocal batches_run
        batches_run += 1
        if batches_run == 2:
            raise Stopped
        return original(self, *arguments, **options)

    with monkeypatch.context() as failing:
        failing.setattr(Session, "apply", stopped)
        for _ in range(2):
            with contextlib.suppress(Stopped):
                batches_run = min(batches_run, 1)
                one_call(model, world_facts, moments(48), tmp_path / "run", name)
            assert same(bits(model), before)
            assert not applied_patches(model)
    patch = one_call(model, world_facts, moments(48), tmp_path / "run", name)
    assert same(parts(patch), parts(expected))
    assert same(bits(model), before)


@pytest.mark.parametrize(
    "options",
    [
        {"settings": {"lambda": 3.0}},
        {"templates": ["{}"]},
        {"layers": (0, 2)},
        {"strategy": "boundary"},
        {"strategy": explicit([(0, 2, 0.5)])},
        {"seed": 3},
    ],
    ids=["settings", "templates", "layers", "strategy", "steps", "seed"],
)
def test_a_sequence_of_another_plan_is_refused(
    fresh: Fresh, moments: Any, world_facts: tuple[Fact, ...], tmp_path: Path, options: dict[str, Any]
) -> None:
    model = fresh()
    before = bits(model)
    start = {"strategy": explicit([(0, 2, 1.0)])} if isinstance(options.get("strategy"), Strategy) else {}
    one_call(model, world_facts[:4], moments(48), tmp_path / "run", "memit", **start)
    with pytest.raises(SessionError, match="choose another folder"):
        one_call(model, world_facts, moments(48), tmp_path / "run", "memit", **options)
    assert same(bits(model), before)
    assert not applied_patches(model)


def test_a_sequence_of_other_facts_is_refused(
    fresh: Fresh, moments: Any, world_facts: tuple[Fact, ...], tmp_path: Path
) -> None:
    model = fresh()
    before = bits(model)
    one_call(model, world_facts[:4], moments(48), tmp_path / "run", "memit")
    for facts in (world_facts[::-1], world_facts[:2]):
        with pytest.raises(SessionError, match="other facts; go on with those, or choose another folder"):
            one_call(model, facts, moments(48), tmp_path / "run", "memit")
        assert same(bits(model), before)
    with pytest.raises(SessionError):
        one_call(model, world_facts, moments(48), tmp_path / "run", "memit-seq")
    assert same(bits(model), before)


def test_a_session_says_what_it_is(fresh: Fresh, moments: Any, batches: Any) -> None:
    session = begin(fresh(), blue(ALPHAEDIT), moments(48))
    assert repr(session) == "<Session of 0 batches, 0 facts: alphaedit, boundary>"
    session.apply(batches[0])
    assert repr(session) == "<Session of 1 batches, 2 facts: alphaedit, boundary>"


def test_facts_that_contradict_each_other_are_edited_where_it_is_said_which_counts(
    own_gpt2: EditableModel, moments: Callable[[int], Statistics]
) -> None:
    facts = [
        Fact("The twin city of {} is", "Istanbul", "Paris", relation="twin"),
        Fact("{} is twinned with", "Istanbul", "Rome", relation="twin"),
    ]
    options: Any = {
        "layers": [1],
        "strategy": "single:1",
        "corpus": moments(48),
        "templates": ["{}"],
        "settings": {"v_num_grad_steps": 1},
    }
    session = Session(own_gpt2, **options)
    with pytest.raises(FactError, match="--on-conflict last"):
        session.apply(facts)
    assert [fact.target for fact in session.apply(facts, on_conflict="last").facts] == ["Rome"]
    session.undo()
    kept = Session(own_gpt2, **options, on_conflict="keep")
    assert [fact.target for fact in kept.apply(facts).facts] == ["Paris", "Rome"]
    kept.undo()
    assert len(bluedit.edit(own_gpt2, facts, **options, on_conflict="keep").facts) == 2
    with pytest.raises(SettingsError, match="unknown on_conflict 'first'"):
        bluedit.edit(own_gpt2, facts, **options, on_conflict="first")


def test_a_fact_that_the_model_is_too_short_for_is_named(own_gpt2: EditableModel, moments: Callable[[int], Statistics]) -> None:
    session = Session(own_gpt2, layers=[1], strategy="single:1", method="ft-m", templates=["{}"])
    for prompt, said in (
        ("{} " + "and so on " * 100, "tokens with its target; the model takes 96"),
        ("{} " + "x" * 10**6, "is too long"),
    ):
        with pytest.raises(FactError, match=f"fact 'a'.*{said}"):
            session.apply([Fact(prompt, "Istanbul", "Paris", id="a")])
