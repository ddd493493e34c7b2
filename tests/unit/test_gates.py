"""The gates of an edit: what is said of facts before it, and how damage is measured after it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bluedit.datasets import Case, read_dataset
from bluedit.errors import DatasetError
from bluedit.evaluation import score_cases, verify_facts
from bluedit.evaluation.gates import Damage, DamageGate, cautions
from bluedit.evaluation.intervals import Estimate
from bluedit.facts import Fact
from bluedit.models import EditableModel


def _kinds(model: EditableModel, facts: list[Fact], batch_size: int | None = None) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.kind, one.facts) for one in cautions(model, facts, batch_size)]


def test_facts_that_the_model_says_already(tiny_gpt2: EditableModel, world_facts: tuple[Fact, ...]) -> None:
    fact = world_facts[0]
    with torch.no_grad():
        logits = tiny_gpt2.model(torch.tensor([tiny_gpt2.text.prompt(fact.text)])).logits[0, -1]
    # The most likely next token that is a word by itself, as a target.
    for token in logits.argsort(descending=True).tolist():
        word = tiny_gpt2.tokenizer.decode([token]).strip()
        if word and tiny_gpt2.text.target(word, fact.text) == (token,):
            break
    known = replace(fact, target=word, id="known")
    believed = [fact.id for fact in (known, world_facts[1]) if verify_facts(tiny_gpt2, [fact], explain=False)[0].holds]
    found = [ids for kind, ids in _kinds(tiny_gpt2, [known, world_facts[1]]) if kind == "believed"]
    assert found == ([tuple(believed)] if believed else [])


def test_facts_with_one_key(tiny_gpt2: EditableModel) -> None:
    same = [Fact("{} plays the", "Vøzhe", "horn", "a"), Fact("{} lives in", "Vøzhe", "Dazlol", "b")]
    other = Fact("The home of {} is", "Vøzhe", "Dazlol", "c")
    assert ("same-key", ("a", "b")) in _kinds(tiny_gpt2, [*same, other])
    assert not [one for one in _kinds(tiny_gpt2, [same[0], other]) if one[0] == "same-key"]
    # One at a time they do not meet.
    assert not [one for one in _kinds(tiny_gpt2, [*same, other], 1) if one[0] == "same-key"]
    rows = [tiny_gpt2.text.row(fact) for fact in same]
    keys = tiny_gpt2.subject_states(rows, 1, "key")
    assert torch.equal(keys[0], keys[1])


def test_subjects_in_fragments(tiny_gpt2: EditableModel) -> None:
    good, bad = Fact("{} is in", "Paris", "Italy", "good"), Fact("{} is in", "߷߷߷߷߷߷߷߷", "Italy", "bad")
    assert [ids for kind, ids in _kinds(tiny_gpt2, [good, bad]) if kind == "fragmented"] == [("bad",)]


def test_damage_is_what_is_lost(tiny_gpt2: EditableModel) -> None:
    cases = read_dataset("world:counterfact:0", 8)
    gate = DamageGate(tiny_gpt2, cases, ["The old mill stands by the river. " * 5] * 3, tokens=60)
    nothing = gate.measure(tiny_gpt2)
    assert nothing.specificity is not None and nothing.perplexity is not None and nothing.kl is not None
    assert (nothing.specificity.value, nothing.perplexity.value) == (0.0, pytest.approx(0.0, abs=1e-4))
    assert nothing.kl.value == pytest.approx(0.0, abs=1e-6)
    before = score_cases(tiny_gpt2, cases)["NS"].value
    weight = tiny_gpt2.weight(1).detach()
    original = weight.clone()
    try:
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
        after = score_cases(tiny_gpt2, cases)["NS"].value
        damage = gate.measure(tiny_gpt2)
    finally:
        weight.copy_(original)
    assert damage.specificity is not None and damage.kl is not None
    assert damage.specificity.value == pytest.approx(before - after)
    assert damage.kl.value > 0.01


def test_what_is_beyond_the_limit_is_told() -> None:
    lost = Estimate(6.0, 5.0, 7.0, 10)
    assert Damage(lost, Estimate(2.0, 1.0, 3.0, 10)).exceeds(5) == "specificity fell by 6.0 points; 5 are allowed"
    assert Damage(lost).exceeds(6) is None
    both = Damage(lost, Estimate(9.0, 8.0, 10.0, 10)).exceeds(5)
    assert both == "specificity fell by 6.0 points and perplexity of held-out text rose by 9.0 %; 5 are allowed"
    assert Damage(None, Estimate(float("nan"), 0.0, 0.0, 1)).exceeds(5) is not None


def test_there_has_to_be_something_to_measure(tiny_gpt2: EditableModel) -> None:
    with pytest.raises(DatasetError, match="no fact has neighborhood prompts"):
        DamageGate(tiny_gpt2, [Case(fact=Fact("{} is in", "Paris", "Italy", "0"))])
