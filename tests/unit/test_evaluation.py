"""Scores equal their definitions, computed one prompt at a time; intervals equal known values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bluedit.datasets import Case, read_dataset
from bluedit.errors import DatasetError
from bluedit.evaluation import score_cases, verify_facts
from bluedit.evaluation.intervals import bootstrap, share
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.models.likelihood import Answer, answer_queries


def naive(model: EditableModel, prompt: str, target: str) -> tuple[float, list[bool]]:
    """Mean log-probability per target token and which tokens are the argmax, from one full forward pass."""
    ids, wanted = list(model.text.prompt(prompt)), list(model.text.target(target))
    with torch.no_grad():
        logits = model.model(torch.tensor([ids + wanted])).logits[0, len(ids) - 1 : -1]
    log_probs = logits.log_softmax(-1)
    chosen = log_probs[range(len(wanted)), wanted]
    return chosen.mean().item(), (log_probs.argmax(-1) == torch.tensor(wanted)).tolist()


def test_answers_equal_one_full_pass_each(tiny_models: EditableModel) -> None:
    cases = read_dataset("world:counterfact:0:3", 3)
    queries = [(prompt, target) for c in cases for prompt in c.neighborhood for target in (c.fact.target, c.true_target or "")]
    finished: list[int] = []
    answers = answer_queries(tiny_models, queries + queries[:5], token_budget=64, progress=finished.append)
    assert set(answers) == set(queries)
    assert sum(finished) == len(set(queries))
    for query, answer in answers.items():
        log_prob, correct = naive(tiny_models, *query)
        assert answer.log_prob == pytest.approx(log_prob, abs=1e-4)
        assert list(answer.correct) == correct


def test_counterfact_scores_equal_their_definitions(tiny_gpt2: EditableModel) -> None:
    cases = read_dataset("world:counterfact", 6)
    scores = score_cases(tiny_gpt2, cases)

    def prefers(prompt: str, one: str, other: str) -> bool:
        return naive(tiny_gpt2, prompt, one)[0] > naive(tiny_gpt2, prompt, other)[0]

    def mean(values: list[list[bool]]) -> float:
        return 100 * float(np.mean([np.mean(group) for group in values]))

    expected = {
        "ES": mean([[prefers(c.fact.text, c.fact.target, c.true_target)] for c in cases]),
        "PS": mean([[prefers(prompt, c.fact.target, c.true_target) for prompt in c.paraphrases] for c in cases]),
        "NS": mean([[prefers(prompt, c.true_target, c.fact.target) for prompt in c.neighborhood] for c in cases]),
        "EA": mean([[all(naive(tiny_gpt2, c.fact.text, c.fact.target)[1])] for c in cases]),
        "NA": mean([[all(naive(tiny_gpt2, prompt, c.true_target)[1]) for prompt in c.neighborhood] for c in cases]),
    }
    for name, value in expected.items():
        assert scores[name].value == pytest.approx(value), name
        assert scores[name].n == 6
    parts = [scores[name].value for name in ("ES", "PS", "NS")]
    assert scores["S"].value == pytest.approx(3 / sum(1 / part for part in parts) if all(parts) else 0)


def test_zsre_scores_count_tokens(tiny_gpt2: EditableModel) -> None:
    cases = read_dataset("world:zsre", 8)
    scores = score_cases(tiny_gpt2, cases)
    tokens = [np.mean(naive(tiny_gpt2, c.fact.text, c.fact.target)[1]) for c in cases]
    kept = [np.mean(naive(tiny_gpt2, c.neighborhood[0], c.neighborhood_target or "")[1]) for c in cases]
    assert scores["ES"].value == pytest.approx(100 * float(np.mean(tokens)))
    assert scores["NS"].value == pytest.approx(100 * float(np.mean(kept)))
    assert all(c.neighborhood[0].endswith("?") for c in cases)


def test_scores_without_data_are_absent(tiny_gpt2: EditableModel) -> None:
    fact = Fact("{} was born in", "Zhand", "salt", id="a")
    assert set(score_cases(tiny_gpt2, [Case(fact=fact)]).estimates) == {"EA"}
    scores = score_cases(tiny_gpt2, [Case(fact=fact, true_target="rice", paraphrases=("Zhand is from",))])
    assert set(scores.estimates) == {"ES", "PS", "EA", "PA"}
    assert set(scores.as_dict()["ES"]) == {"value", "low", "high", "n"}
    with pytest.raises(DatasetError, match="no cases"):
        score_cases(tiny_gpt2, [])


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    # Wilson's score interval, from Newcombe (1998), table I, and from its closed form.
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.0, 16.11), (100, 100, 96.30, 100.0)],
)
def test_one_outcome_per_case_gives_wilsons_interval(successes: int, count: int, low: float, high: float) -> None:
    estimate = share([[1.0]] * successes + [[0.0]] * (count - successes))
    assert estimate.value == pytest.approx(100 * successes / count)
    # The variance between cases is taken with count - 1: a hair wider than the textbook's.
    assert estimate.low == pytest.approx(low, abs=0.05)
    assert estimate.high == pytest.approx(high, abs=0.05)


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=40))
def test_an_interval_holds_its_value_and_stays_in_bounds(cases: list[list[int]]) -> None:
    estimate = share([[float(value) for value in case] for case in cases])
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 100


def test_prompts_that_share_a_fate_do_not_narrow_the_interval() -> None:
    one = share([[1.0]] * 30 + [[0.0]] * 10)
    repeated = share([[1.0] * 10] * 30 + [[0.0] * 10] * 10)
    independent = share([[1.0, 1.0, 1.0, 0.0]] * 40)
    assert (repeated.low, repeated.high) == pytest.approx((one.low, one.high))
    assert independent.high - independent.low < one.high - one.low


def test_the_bootstrap_covers_a_mean() -> None:
    values = np.random.default_rng(0).random(400)
    estimate = bootstrap(400, lambda chosen: float(values[chosen].mean()))
    half = 1.96 * 100 * values.std(ddof=1) / math.sqrt(400)
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.1)
    assert estimate == bootstrap(400, lambda chosen: float(values[chosen].mean()))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("{} " + "and so on " * 100, "takes [0-9]+ tokens with its target"), ("{} " + "and so on " * 100_000, "is too long")],
    ids=["tokens", "characters"],
)
def test_a_case_that_is_too_long_is_named(tiny_gpt2: EditableModel, prompt: str, said: str) -> None:
    cases = [Case(fact=Fact(text, "Angola", "Asia", id=name)) for name, text in (("fits", "{} is in"), ("long one", prompt))]
    with pytest.raises(DatasetError, match=f"evaluation: case 'long one': .*{said}") as caught:
        score_cases(tiny_gpt2, cases)
    assert len(str(caught.value)) < 400


# -- verifying ---------------------------------------------------------------------------------------------------------


def test_facts_are_verified_one_by_one() -> None:
    facts = [Fact("{} is in", "Paris", "Italy", "0"), Fact("{} is in", "Rome", "Italy", "1")]

    class _Scripted:
        def answer(self, queries: Any, **_: Any) -> Any:
            correct = {facts[0].text: (True, False), facts[1].text: (True, True)}
            return {(prompt, target): Answer(-1.5, correct[prompt]) for prompt, target in queries}

        def generate(self, prompts: Any, *, max_new_tokens: int, **_: Any) -> list[str]:
            assert max_new_tokens > 1
            return [f"{prompt} France, of course" for prompt in prompts]

    first, second = verify_facts(_Scripted(), facts)
    assert (first.holds, first.says, first.log_prob) == (False, "France, of course", -1.5)
    assert (second.holds, second.says) == (True, None)
