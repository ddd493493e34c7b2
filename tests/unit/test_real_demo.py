"""What ships for the demo on a real model: facts, questions and texts that fit together, and the report on them."""

from __future__ import annotations

from typing import Any

import pytest

from bluedit.cli import console
from bluedit.cli.demo_real import read_questions, show
from bluedit.editors.presets import PRESETS
from bluedit.errors import StatisticsError
from bluedit.facts import check_facts
from bluedit.models.embedded import DOWNLOADS, EMBEDDED, TEXTS
from bluedit.statistics import read_corpus


@pytest.mark.parametrize("name", DOWNLOADS)
def test_facts_are_ones_that_can_be_edited_together(name: str) -> None:
    asked = read_questions(name)
    assert len(asked) == 12
    assert len(check_facts(case.fact for case, _ in asked)) == 12
    for case, question in asked:
        subject = case.fact.subject.removeprefix("The ").removeprefix("the ")
        assert subject in case.paraphrases[0]
        assert subject in question
        assert subject not in case.neighborhood[0]
        assert len({case.fact.target, case.true_target, case.neighborhood_target}) >= 2
        assert case.fact.target != case.neighborhood_target
    assert [case.fact for case, _ in read_questions(name, 3)] == [case.fact for case, _ in asked[:3]]


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_a_corpus_that_does_not_depend_on_where_it_lies(name: str) -> None:
    corpus = read_corpus(f"zoo:{name}")
    texts = list(corpus.documents())
    assert len(texts) == 192
    assert len(set(texts)) == 192
    assert corpus.identity.startswith("jsonl:")
    with pytest.raises(StatisticsError, match="Did you mean"):
        read_corpus(f"zoo:{name}s")


def test_a_model_that_is_got_is_a_known_one_with_a_corpus() -> None:
    known = {model.name: model for model in PRESETS}
    assert not set(DOWNLOADS) & set(EMBEDDED)
    assert all(known[name].corpus == f"zoo:{name}" for name in DOWNLOADS)


def test_the_report_shows_what_changed_and_what_must_not(capsys: pytest.CaptureFixture[str]) -> None:
    interval = {"value": 100.0, "low": 75.0, "high": 100.0}
    said: dict[str, Any] = {"fact": ["Paris"], "paraphrase": ["Paris"], "neighbour": ["Berlin"], "chat": ["It is Paris"]}
    asked = {"fact": "F is", "paraphrase": "P is", "neighbour": "N is", "chat": "C?", "old": "Paris", "new": "Rome"}
    document: dict[str, Any] = {
        "model": "m", "facts": 1, "layers": [4, 8], "asked": [asked],
        "before": {"said": said, "scores": {"ES": interval}},
        "after": {"said": said | {"fact": ["Rome"], "neighbour": ["Bonn"]}, "scores": {"ES": interval}},
    }  # fmt: skip
    console.show(show(document))
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("Rome", "Bonn", "It is Paris", "layers 4 and 8", "100.0 [75.0, 100.0]"))
    document["after"]["said"]["neighbour"] = ["Berlin"]
    console.show(show(document))
    assert "the same" in capsys.readouterr().out
