"""Causal tracing: the batched trace against one written out run by run, groups of tokens, the choice of layers, what is kept.

Shapes: S noise samples, T tokens, L layers, D d_model.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bluedit.datasets import Case, World, read_known
from bluedit.editing import prepare
from bluedit.editors.layer_cache import Choice, recall, remember
from bluedit.errors import DatasetError, InputError, SettingsError
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.strategies import BOUNDARY, SINGLE
from bluedit.tracing import restoring
from bluedit.tracing import trace as tracing
from bluedit.tracing.choice import choose, choose_layers, layers_by_tracing
from bluedit.tracing.figures import fact_figure, save_figures
from bluedit.tracing.restoring import FactTrace, Question, TraceSettings, subject_noise, trace_fact
from bluedit.tracing.trace import GROUPS, LAST_SUBJECT, Trace, groups, trace_cases

PROMPTS = {
    "the start": ("{} was born in", "Ada Zhouren"),
    "the middle": ("In {} there is", "Ada Zhouren"),
    "the end": ("Where was born Ada Zhouren", "Ada Zhouren"),
    "one token": ("In a town a man", "town"),
    "after a long beginning": ("On the day after the rain the old mill of {} was sold to a", "Ada Zhouren"),
}


def _question(model: EditableModel, prompt: str, subject: str) -> Question:
    """The question with whatever the model answers."""
    text, start, end = Fact(prompt, subject, "x").subject_span()
    ids, places = model.text.subject_tokens(text, start, end)
    answer = _greedy(model, ids)
    return Question(id="q", prompt=text, subject_text=subject, object="x", ids=ids, subject=places, answer=answer)


@torch.no_grad()
def _greedy(model: EditableModel, ids: tuple[int, ...]) -> int:
    return int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())


def _module(model: EditableModel, component: str, layer: int) -> nn.Module:
    paths = {"layer": "", "mlp": model.structure.map.projection, "attention": model.structure.map.attention_projection}
    return model.layer(layer).get_submodule(paths[component])


Change = Callable[[torch.Tensor], object]
"""Changes what a module gives, in place."""


def _hook(change: Change) -> Callable[..., None]:
    def after(_: nn.Module, __: Any, output: Any) -> None:
        change(output[0] if isinstance(output, tuple) else output)

    return after


@torch.no_grad()
def _run(model: EditableModel, question: Question, changes: dict[nn.Module, Change]) -> float:
    """One whole run of one row."""
    handles = [module.register_forward_hook(_hook(change)) for module, change in changes.items()]
    try:
        logits = model.model(input_ids=torch.tensor([question.ids])).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return float(logits.double().softmax(0)[question.answer])


def _plain_trace(
    model: EditableModel, question: Question, settings: TraceSettings, noise_STD: torch.Tensor
) -> tuple[float, float, dict[str, np.ndarray]]:
    """Meng et al. 2022a, a run for every sample, token, layer and component."""
    embedding = model.model.get_input_embeddings()
    depth, length = model.structure.depth, len(question.ids)
    clean_states: dict[tuple[str, int], torch.Tensor] = {}

    def keep(component: str, layer: int) -> Change:
        return lambda hidden: clean_states.update({(component, layer): hidden[0].clone()})

    places = [(component, layer) for component in ("layer", "mlp", "attention") for layer in range(depth)]
    clean = _run(model, question, {_module(model, *place): keep(*place) for place in places})

    def corrupt(noise_TD: torch.Tensor) -> Change:
        return lambda hidden: hidden[0].add_(noise_TD)

    def put_back(component: str, layer: int, token: int) -> Change:
        return lambda hidden: hidden[0, token].copy_(clean_states[component, layer][token])

    corrupted = np.mean([_run(model, question, {embedding: corrupt(noise_TD)}) for noise_TD in noise_STD])
    restored = {component: np.zeros((length, depth)) for component in settings.components}
    for component in settings.components:
        for layer in range(depth):
            width = 1 if component == "layer" else settings.window or 1
            window = [one for one in range(layer - width // 2, layer + (width + 1) // 2) if 0 <= one < depth]
            for token in range(length):
                restored_at = {_module(model, component, one): put_back(component, one, token) for one in window}
                runs = [_run(model, question, {embedding: corrupt(noise_TD), **restored_at}) for noise_TD in noise_STD]
                restored[component][token, layer] = np.mean(runs)
    return clean, float(corrupted), restored


def test_a_trace_is_the_plain_one(tiny_models: EditableModel) -> None:
    settings = TraceSettings(samples=2, window=3)
    question = _question(tiny_models, *PROMPTS["the middle"])
    traced = trace_fact(tiny_models, question, settings, 0.5)
    noise_STD = subject_noise(tiny_models, question, settings, 0.5)
    clean, corrupted, restored = _plain_trace(tiny_models, question, settings, noise_STD)
    assert traced.clean == pytest.approx(clean, abs=1e-6)
    assert traced.corrupted == pytest.approx(corrupted, abs=1e-6)
    assert abs(clean - corrupted) > 1e-5  # otherwise nothing below means anything
    for component in settings.components:
        assert traced.restored[component].shape == (len(question.ids), tiny_models.structure.depth)
        np.testing.assert_allclose(traced.restored[component], restored[component], atol=1e-6)
        # Effects are seen at the subject and after it, and differ between layers.
        assert np.ptp(restored[component][question.subject.start :]) > 1e-5


@pytest.mark.parametrize("place", PROMPTS)
def test_wherever_the_subject_stands(tiny_gpt2: EditableModel, place: str) -> None:
    settings = TraceSettings(samples=3, window=2)
    question = _question(tiny_gpt2, *PROMPTS[place])
    traced = trace_fact(tiny_gpt2, question, settings, 0.5)
    noise_STD = subject_noise(tiny_gpt2, question, settings, 0.5)
    _, _, restored = _plain_trace(tiny_gpt2, question, settings, noise_STD)
    for component in settings.components:
        np.testing.assert_allclose(traced.restored[component], restored[component], atol=1e-6)


def test_the_noise_is_the_subjects_alone(tiny_gpt2: EditableModel) -> None:
    question = _question(tiny_gpt2, *PROMPTS["the middle"])
    one, other = (TraceSettings(samples=200, noise=noise) for noise in (3.0, 6.0))
    noise_STD = subject_noise(tiny_gpt2, question, one, 0.1)
    inside = torch.zeros(len(question.ids), dtype=torch.bool)
    inside[list(question.subject)] = True
    assert noise_STD[:, ~inside].abs().max() == 0
    assert float(noise_STD[:, inside].std()) == pytest.approx(0.3, rel=0.02)
    assert torch.allclose(subject_noise(tiny_gpt2, question, other, 0.1), 2 * noise_STD)
    assert not torch.equal(subject_noise(tiny_gpt2, question, TraceSettings(samples=200, seed=1), 0.1), noise_STD)


def test_no_noise_has_no_effect(tiny_models: EditableModel) -> None:
    question = _question(tiny_models, *PROMPTS["the middle"])
    traced = trace_fact(tiny_models, question, TraceSettings(noise=0.0, samples=1), 1.0)
    assert traced.corrupted == pytest.approx(traced.clean, abs=1e-7)
    for component in restoring.COMPONENTS:
        np.testing.assert_allclose(traced.effects(component), 0, atol=1e-6)


def test_the_whole_answer_comes_back(tiny_models: EditableModel) -> None:
    """The last token's state after the last layer is all that the head reads; a one-token subject's MLPs are not."""
    question = _question(tiny_models, *PROMPTS["the start"])
    traced = trace_fact(tiny_models, question, TraceSettings(samples=3), 1.0)
    assert traced.restored["layer"][-1, -1] == pytest.approx(traced.clean, abs=1e-6)
    assert traced.restored["layer"][0, -1] == traced.corrupted


def test_batches_do_not_matter(tiny_gpt2: EditableModel) -> None:
    question = _question(tiny_gpt2, *PROMPTS["the middle"])
    settings = TraceSettings(samples=3)
    one, other = (trace_fact(tiny_gpt2, question, settings, 0.3, token_budget=budget) for budget in (1, 10**6))
    for component in restoring.COMPONENTS:
        np.testing.assert_allclose(one.restored[component], other.restored[component], atol=1e-7)


def test_an_error_leaves_no_hook(tiny_gpt2: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(restoring.SuffixBatch, "logits", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        trace_fact(tiny_gpt2, _question(tiny_gpt2, *PROMPTS["the start"]), TraceSettings(samples=1), 0.5)


@pytest.mark.parametrize(
    "bad",
    [{"components": ()}, {"components": ("mpl",)}, {"noise": -1.0}, {"noise": float("nan")}, {"samples": 0}, {"window": 0}],
)
def test_settings_out_of_range(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        TraceSettings(**bad)


def test_windows_are_the_published_ones_scaled() -> None:
    settings = TraceSettings()
    assert settings.layers("mlp", 20, 48) == range(15, 25)
    assert settings.layers("mlp", 2, 48) == range(7)
    assert settings.layers("mlp", 47, 48) == range(42, 48)
    assert settings.layers("layer", 20, 48) == range(20, 21)
    assert settings.layers("attention", 3, 4) == range(3, 4)
    assert TraceSettings(window=3).layers("mlp", 2, 4) == range(1, 4)


# -- groups --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "subject", "expected"),
    [
        (8, range(1, 5), [[1], [2, 3], [4], [5], [6], [7]]),
        (6, range(2), [[0], [], [1], [2], [3, 4], [5]]),
        (4, range(1), [[], [], [0], [1], [2], [3]]),
        (5, range(2, 5), [[2], [3], [], [], [], [4]]),
        (3, range(1, 2), [[], [], [1], [], [], [2]]),
        (2, range(1, 2), [[], [], [], [], [], [1]]),
    ],
)
def test_groups(length: int, subject: range, expected: list[list[int]]) -> None:
    found = groups(length, subject)
    assert list(found) == list(GROUPS)
    assert [list(tokens) for tokens in found.values()] == expected
    assert sorted(token for tokens in found.values() for token in tokens) == list(range(subject.start, length))


# -- a file of facts -----------------------------------------------------------------------------------------------


@pytest.fixture
def cases(tiny_gpt2: EditableModel, world: World) -> list[Case]:
    """Six facts of which the model knows all but the last two: what it happens to say is made the object."""
    found: list[Case] = []
    for record in world.counterfact(200):
        rewrite = record["requested_rewrite"]
        fact = Fact(rewrite["prompt"], rewrite["subject"], "new", f"w{len(found)}")
        said = _greedy(tiny_gpt2, tiny_gpt2.text.prompt(fact.text))
        object = str(tiny_gpt2.tokenizer.decode([said])).strip()
        # Some tokens are no word; and the subject's last token has to be another than the prompt's.
        if not object or tiny_gpt2.text.target(object) != (said,) or fact.prompt.endswith("{}"):
            continue
        found.append(Case(fact=fact, true_target=object if len(found) < 4 else "quite another answer"))
        if len(found) == 6:
            break
    assert len(found) == 6
    return found


FEW = TraceSettings(samples=2)


def _same(one: FactTrace, other: FactTrace) -> bool:
    return one.as_dict() == other.as_dict() and all(np.array_equal(one.restored[s], other.restored[s]) for s in one.restored)


def test_unknown_facts_are_counted_and_left_out(tiny_gpt2: EditableModel, cases: list[Case]) -> None:
    long = Case(fact=Fact("{} " + "word " * 200, "Ada", "x", "long"))
    trace = trace_cases(tiny_gpt2, [long, *cases], FEW)
    assert [fact.id for fact in trace.facts] == ["w0", "w1", "w2", "w3"]
    assert trace.unknown == ("w4", "w5")
    assert list(trace.refused) == ["long"]
    assert "the model takes 96" in trace.refused["long"]
    with pytest.raises(DatasetError, match="knows none of the 2 facts"):
        trace_cases(tiny_gpt2, cases[-2:], FEW)


def test_the_order_of_facts_does_not_matter(tiny_gpt2: EditableModel, cases: list[Case]) -> None:
    one, other = trace_cases(tiny_gpt2, cases, FEW), trace_cases(tiny_gpt2, cases[::-1], FEW)
    assert all(_same(fact, same) for fact, same in zip(one.facts, reversed(other.facts), strict=True))


def test_averages(tiny_gpt2: EditableModel, cases: list[Case]) -> None:
    trace = trace_cases(tiny_gpt2, cases, FEW)
    by_hand = np.array([fact.restored["mlp"][fact.subject[-1]] - fact.corrupted for fact in trace.facts])
    np.testing.assert_array_equal(trace.effects("mlp"), by_hand)
    average = trace.average("mlp")
    assert [one.value for one in average] == pytest.approx(100 * by_hand.mean(0))
    assert all(one.low <= one.value <= one.high and one.n == 4 for one in average)
    np.testing.assert_allclose(trace.heat_map("mlp")[GROUPS.index(LAST_SUBJECT)], by_hand.mean(0))
    total = trace.total()
    assert total is not None
    assert total.value == pytest.approx(100 * np.mean([fact.clean - fact.corrupted for fact in trace.facts]))
    embeddings = tiny_gpt2.model.get_input_embeddings().weight.detach()
    ids = [token for case in cases for token in tiny_gpt2.text.subject_tokens(*case.fact.subject_span())[0]]
    assert 0.5 < trace.deviation / float(embeddings[ids].std()) < 2


def test_saved_and_loaded(tiny_gpt2: EditableModel, cases: list[Case], tmp_path: Path) -> None:
    trace = trace_cases(tiny_gpt2, cases, FEW, tmp_path / "out")
    loaded = Trace.load(tmp_path / "out")
    assert json.dumps(loaded.summary()) == json.dumps(trace.summary())
    assert (loaded.settings, loaded.unknown, loaded.depth) == (trace.settings, trace.unknown, trace.depth)
    assert all(_same(one, other) for one, other in zip(loaded.facts, trace.facts, strict=True))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["restored.safetensors", "trace.json"]
    with pytest.raises(InputError, match="there is no trace"):
        Trace.load(tmp_path)


@pytest.mark.parametrize("cut", [False, True])
def test_a_killed_trace_goes_on(
    tiny_gpt2: EditableModel, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    whole = trace_cases(tiny_gpt2, cases, FEW, tmp_path / "whole")
    calls: list[str] = []

    def until_killed(model: EditableModel, question: Question, *arguments: Any) -> FactTrace:
        calls.append(question.id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return trace_fact(model, question, *arguments)

    monkeypatch.setattr(tracing, "trace_fact", until_killed)
    with pytest.raises(KeyboardInterrupt):
        trace_cases(tiny_gpt2, cases, FEW, tmp_path / "out")
    with pytest.raises(InputError, match="not complete"):
        Trace.load(tmp_path / "out")
    if cut:
        path = tmp_path / "out" / "traced.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
    calls[:] = ["0"] * 10
    trace_cases(tiny_gpt2, cases, FEW, tmp_path / "out")
    assert calls[10:] == (["w1", "w2", "w3"] if cut else ["w2", "w3"])
    for name in ("trace.json", "restored.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    trace_cases(tiny_gpt2, cases, FEW, tmp_path / "out")
    assert len(calls) == (13 if cut else 12)  # a complete trace is read
    assert whole.facts
    with pytest.raises(InputError, match="holds a trace of another model"):
        trace_cases(tiny_gpt2, cases, TraceSettings(samples=3), tmp_path / "out")


def test_known_1000_is_read(tmp_path: Path) -> None:
    rows = [
        {
            "known_id": 3,
            "subject": "Ada",
            "attribute": "Paris",
            "template": "{} is in",
            "prompt": "Ada is in",
            "prediction": "x",
        },
        {"known_id": 4, "subject": "Bob", "attribute": "", "template": "{} is in", "prompt": "Ada is in"},
        {"known_id": 5, "subject": "Bob", "attribute": "Rome", "prompt": "Ada is in"},
    ]
    path = tmp_path / "known.json"
    path.write_text(json.dumps(rows[:1]))
    (case,) = read_known(str(path))
    assert (case.fact, case.true_target) == (Fact("{} is in", "Ada", "Paris", "3"), "Paris")
    path.write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match=r"(?s)record 2: `attribute` is empty.*record 3: the subject 'Bob' is not in"):
        read_known(str(path))


# -- choice --------------------------------------------------------------------------------------------------------


def _curve(*values: float) -> np.ndarray:
    return np.tile(np.array(values), (5, 1))


@pytest.mark.parametrize(
    ("mlp", "hidden", "layers", "peak"),
    [
        ((0.1, 0.3, 0.9, 1.0, 0.6, 0.1, 0, 0), (0.2, 0.5, 1, 1, 1, 0.9, 0.4, 0), (2, 3, 4, 5), 3),
        ((1, 1, 0.2, 0.1), (1, 0.9, 0.6, 0), (0, 1, 2), 0),
        ((0, 0, 0, 1), (1, 0.1, 0, 0), (3,), 3),  # the hidden state is read no more where MLPs write
        ((0, 0.6, 0.5, 1), (1, 1, 1, 0), (1, 2), 1),  # the largest effect of all is out of reach
        ((1,), (1,), (0,), 0),
        ((-1, -2, 0.5), (0.1, -0.2, 0.1), (2,), 2),
        ((0.5, 1, 0.5), (0.5, 1, 0.5), (0, 1, 2), 1),  # half counts
    ],
)
def test_the_rule(mlp: tuple[float, ...], hidden: tuple[float, ...], layers: tuple[int, ...], peak: int) -> None:
    choice = choose(_curve(*mlp), _curve(*hidden))
    assert (choice.layers, choice.peak, choice.facts, choice.agreement) == (layers, peak, 5, 1.0)
    assert choice.boundary == (layers[0], layers[-1])
    assert Choice.of(json.loads(json.dumps(choice.as_dict()))) == choice
    assert choice.layers_for(BOUNDARY) == layers
    assert choice.layers_for(SINGLE) == (peak,)


@pytest.mark.parametrize("curve", [_curve(0, 0, 0), _curve(-1, -1, -2), np.zeros((0, 3))])
def test_nothing_to_choose_from(curve: np.ndarray) -> None:
    for pair in ((curve, curve), (np.ones_like(curve), curve), (curve, np.ones_like(curve))):
        with pytest.raises(SettingsError, match="shows no effect"):
            choose(*pair)


def test_facts_that_disagree_are_said_to() -> None:
    mlp_NL = np.array([[1.0, 0, 0], [0, 1.0, 0]] * 4)
    assert choose(mlp_NL, np.ones((8, 3))).agreement < 0.95


def test_a_choice_is_kept_for_its_model(
    own_gpt2: EditableModel, tiny_gpt2: EditableModel, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path))
    few = Choice(layers=(1, 2), peak=2, facts=3, agreement=1.0)
    with pytest.raises(SettingsError, match="run `bluedit trace"):
        prepare(own_gpt2, layers="auto", templates=["{}"])
    remember(few, own_gpt2.fingerprint())
    assert recall(tiny_gpt2) == few  # the same weights
    assert prepare(own_gpt2, layers="auto", templates=["{}"]).layers == (1, 2)
    assert prepare(own_gpt2, method="rome", layers="auto", templates=["{}"]).layers == (2,)
    assert prepare(own_gpt2, strategy="single:3", layers="auto", templates=["{}"]).layers == (3,)
    remember(Choice(layers=(0,), peak=0, facts=2, agreement=1.0), own_gpt2.fingerprint())
    assert recall(own_gpt2) == few  # fewer facts do not push it out
    talking = copy.copy(own_gpt2.tokenizer)
    talking.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    in_a_chat = EditableModel(own_gpt2.model, talking, chat=True)
    with pytest.raises(SettingsError, match=r"--facts FILE --chat`"):
        recall(in_a_chat)  # the same weights, asked otherwise
    traced = Choice(layers=(0, 1), peak=1, facts=1, agreement=1.0)
    remember(traced, in_a_chat.fingerprint(), in_a_chat.text.chat)
    assert (recall(in_a_chat), recall(own_gpt2)) == (traced, few)
    changed = EditableModel(copy.deepcopy(own_gpt2.model), own_gpt2.tokenizer)
    with torch.no_grad():
        changed.weight(1).add_(0.1)
    with pytest.raises(SettingsError, match="no trace of this model"):
        recall(changed)


def test_layers_by_tracing(
    tiny_gpt2: EditableModel, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path))
    choice = layers_by_tracing(tiny_gpt2, cases)
    assert recall(tiny_gpt2) == choice
    # The same question again is read, not traced; the same rule on the whole trace gives the same.
    monkeypatch.setattr(tracing, "trace_fact", None)
    assert layers_by_tracing(tiny_gpt2, cases) == choice
    (folder,) = (tmp_path / "traces").iterdir()
    assert choose_layers(Trace.load(folder)) == choice
    assert folder.is_dir()


def test_a_choice_needs_both_components(tiny_gpt2: EditableModel, cases: list[Case]) -> None:
    with pytest.raises(SettingsError, match="mlp was not traced"):
        choose_layers(trace_cases(tiny_gpt2, cases, TraceSettings(samples=1, components=("layer",))))


# -- figures -------------------------------------------------------------------------------------------------------


def test_figures(tiny_gpt2: EditableModel, cases: list[Case], tmp_path: Path) -> None:
    trace = trace_cases(tiny_gpt2, cases, FEW)
    paths = save_figures(trace, tmp_path, Choice(layers=(1, 2), peak=1, facts=4, agreement=1.0), examples=2)
    assert [path.name for path in paths] == ["average.png", "layers.png", "fact-1.png", "fact-2.png"]
    for path in paths:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n")
        assert len(content) > 5000
    first = trace.facts[0]
    tokens = ["$x^", "東", "\n", "_$", *first.tokens[4:]]
    odd = FactTrace.of(first.as_dict() | {"tokens": tokens}, first.restored)
    fact_figure(odd, tmp_path / "odd.svg")
    assert b"<svg" in (tmp_path / "odd.svg").read_bytes()
    fact_figure(odd, tmp_path / "odd.pdf")
    assert (tmp_path / "odd.pdf").read_bytes().startswith(b"%PDF")


def test_choice_only_gives_the_last_subject_token_as_a_whole_trace_does(tiny_gpt2: EditableModel) -> None:
    model = tiny_gpt2
    question = _question(model, *PROMPTS["the middle"])
    whole = trace_fact(model, question, TraceSettings(components=("layer", "mlp"), samples=3), 0.3)
    part = trace_fact(model, question, TraceSettings(components=("layer", "mlp"), samples=3, choice_only=True), 0.3)
    last = question.subject.stop - 1
    for component, restored in part.restored.items():
        assert np.allclose(restored[last], whole.restored[component][last], rtol=1e-4)
        assert np.isnan(np.delete(restored, last, axis=0)).all()
