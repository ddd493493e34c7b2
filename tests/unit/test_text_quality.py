"""Fluency and consistency from their definitions, on texts that can be counted by hand; BLEU and ROUGE likewise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from writers import Says

from bluedit.datasets import Case, read_dataset
from bluedit.errors import BlueditError, DatasetError
from bluedit.evaluation import TextQuality, read_references
from bluedit.evaluation.overlap import bleu, rouge_l_recall, rouge_recall, words
from bluedit.evaluation.texts import fluency
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.models.generation import Stop


@pytest.mark.parametrize(
    ("text", "bigrams", "trigrams"),
    [
        ("a b c d e", 2.0, math.log2(3)),  # four bigrams and three trigrams, all different
        ("a b a b a", 1.0, -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)),  # ab ba ab ba; aba bab aba
        ("so so so so", 0.0, 0.0),
        ("Rain, rain.", math.log2(3), 1.0),  # rain | , | rain | .
        ("alone", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_fluency_by_hand(text: str, bigrams: float, trigrams: float) -> None:
    assert fluency(text) == pytest.approx((2 / 3 * bigrams + 4 / 3 * trigrams) / 2)


CASES = [
    Case(
        fact=Fact("{} speaks", "Anna", "Tavrish", "a", "P1"),
        generation=("Anna lives", "Anna lives", "Anna says"),
        extra={"target_id": "Q1"},
    ),
    Case(fact=Fact("{} speaks", "Bert", "Dornish", "b", "P1"), generation=("Bert lives",), extra={"target_id": "Q9"}),
    Case(fact=Fact("{} speaks", "Carl", "Vellish", "c", "P1")),
]
REFERENCES = [
    {"relation_id": "P1", "target_id": "Q1", "samples": [{"name": "x", "text": "red mill"}, {"name": "y", "text": "red rain"}]},
    {"relation_id": "P1", "target_id": "Q2", "samples": [{"name": "z", "text": "blue rain"}]},
]


def references(folder: Path, content: object = REFERENCES) -> str:
    path = folder / "references.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_fluency_and_consistency_of_cases_by_hand(tmp_path: Path) -> None:
    """idf = ln((1 + 3) / (1 + documents)) + 1: red 2 documents, mill 1, rain 2, blue 1.

    Anna's texts, joined, have of these words rain once, mill twice; her references red twice, mill and rain once.
    Bert has no reference texts, Carl no generation prompts: both lack what the scores need.
    """
    pytest.importorskip("sklearn")
    said = {"Anna lives": " mill rain", "Anna says": " mill", "Bert lives": " in a b c"}
    measure = TextQuality(read_references(references(tmp_path)))
    observed = measure.observe(Says(lambda prompt: said[prompt]), CASES)
    rare, common = math.log(4 / 2) + 1, math.log(4 / 3) + 1
    # Words in the order red, mill, rain. "Anna lives" is asked twice: mill twice from it, once from "Anna says".
    texts, refs = np.array([0, 3 * rare, 2 * common]), np.array([2 * common, rare, common])
    cosine = texts @ refs / np.linalg.norm(texts) / np.linalg.norm(refs)
    scores = measure.scores(CASES, observed)
    assert (scores["consistency"].value, scores["consistency"].n) == (pytest.approx(100 * cosine), 1)
    anna = [fluency("Anna lives mill rain"), fluency("Anna lives mill rain"), fluency("Anna says mill")]
    bert = fluency("Bert lives in a b c")
    assert (scores["fluency"].value, scores["fluency"].n) == (pytest.approx(100 * (np.mean(anna) + bert) / 2), 2)
    assert scores.cases[2] == ("c", {})
    assert "consistency" not in TextQuality().scores(CASES, observed).estimates


def test_texts_are_sampled_with_the_seed_and_not_with_their_neighbours(tiny_gpt2: EditableModel) -> None:
    cases, stop = read_dataset("world:counterfact", 2), Stop(max_new_tokens=9)
    measure = TextQuality(read_references("world:0"), stop=stop)
    whole = measure.observe(tiny_gpt2, cases)
    assert measure.observe(tiny_gpt2, cases[::-1]) == whole
    assert TextQuality(seed=1, stop=stop).observe(tiny_gpt2, cases) != whole
    scores = measure.scores(cases, whole)
    assert {name: one.n for name, one in scores.estimates.items()} == {"fluency": 2, "consistency": 2}
    for kind, one in measure.texts(cases[0], whole):
        assert kind == "generation"
        assert len(one.ids) <= 9


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([{"relation_id": "P1"}], "holds no reference texts: "),
        ({}, "holds no reference texts: "),
        ([], "holds no reference texts; it should"),
        ([{"relation_id": "P1", "target_id": "Q1", "samples": []}], "holds no reference texts; it should"),
    ],
)
def test_bad_reference_texts(tmp_path: Path, content: object, problem: str) -> None:
    with pytest.raises(DatasetError, match=problem):
        read_references(references(tmp_path, content))
    with pytest.raises(DatasetError, match="cannot be read: "):
        read_references(str(tmp_path / "none.json"))


def test_without_scikit_learn_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(BlueditError, match=r"needs the package scikit-learn; pip install 'bluedit\[scores\]'"):
        read_references(references(tmp_path)).consistency(CASES[0], ["mill"])


# -- overlap ---------------------------------------------------------------------------------------------------------


def test_bleu_and_rouge_by_hand() -> None:
    """Reference: six words. Text: the five last of them, and one more in front.

    p_1 = 5/6, p_2 = 4/5, p_3 = 3/4, p_4 = 2/3; both are six words long.
    """
    reference, text = words("The cat sat on the mat."), words("a cat sat on the mat")
    assert bleu(reference, text) == pytest.approx((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    assert rouge_recall(reference, text, 1) == pytest.approx(5 / 6)
    assert rouge_recall(reference, text, 2) == pytest.approx(4 / 5)
    assert rouge_l_recall(reference, text) == pytest.approx(5 / 6)
    assert bleu(reference, reference) == rouge_l_recall(reference, reference) == 1
    short = words("the cat sat on")
    assert bleu(reference, short) == pytest.approx(math.exp(1 - 6 / 4))
    assert rouge_recall(reference, words("the the the"), 1) == pytest.approx(2 / 6), "counts are clipped"
    assert rouge_l_recall(words("a b c d"), words("a x c d y")) == pytest.approx(3 / 4)
    assert bleu(reference, []) == bleu(reference, words("a b c")) == 0
    assert rouge_recall(words("one"), text, 2) is None
    assert rouge_l_recall([], text) is None


def test_bleu_and_rouge_are_those_of_the_usual_packages() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    sentence_bleu = pytest.importorskip("nltk.translate.bleu_score").sentence_bleu
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = (" ".join(rng.choice(list("abcdef"), size=rng.integers(8, 20))) for _ in range(2))
        expected = scorer.score(one, other)
        assert rouge_recall(words(one), words(other), 1) == pytest.approx(expected["rouge1"].recall)
        assert rouge_recall(words(one), words(other), 2) == pytest.approx(expected["rouge2"].recall)
        assert rouge_l_recall(words(one), words(other)) == pytest.approx(expected["rougeL"].recall)
        if bleu(words(one), words(other)):
            assert bleu(words(one), words(other)) == pytest.approx(sentence_bleu([words(one)], words(other)))
            assert bleu(list(one), list(other)) == pytest.approx(sentence_bleu([one], other))
