"""MQuAKE, RippleEdits, KnowEdit and UnKEBench on three records each, with scores worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from writers import Says

from bluedit.datasets import Case, read_cases
from bluedit.evaluation import FollowUps, asks_follow_ups, score_cases
from bluedit.evaluation.overlap import bleu, rouge_l_recall, rouge_recall, words
from bluedit.evaluation.scoring import Scores
from bluedit.models import EditableModel
from bluedit.models.likelihood import Answer, Query

FIXTURES = Path(__file__).parents[1] / "fixtures" / "datasets"
ASKED = "Please answer the question:\n\nQ: {}\nA:"


def values(scores: Scores) -> dict[str, tuple[float, int]]:
    return {name: (one.value, one.n) for name, one in scores.estimates.items()}


def oracle(cases: Sequence[Case], more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What somebody says who knows what is new: the usual name of every answer, by what is asked."""
    said: dict[str, str] = {}
    for case in cases:
        said[case.fact.text] = f" {case.fact.target}"
        for follow_up in case.follow_ups:
            for question in (*follow_up.questions, *follow_up.conditions):
                form = "{}" if follow_up.scoring == "contains" else ASKED
                said[form.replace("{}", question.prompt)] = " " + " and ".join(names[0] for names in question.answers)
    return said | dict(more or {})


@pytest.mark.parametrize("name", ["mquake.json", "ripple_edits.json", "unke.jsonl"])
def test_who_knows_what_is_new_scores_one(name: str) -> None:
    cases, measure = read_cases(FIXTURES / name), FollowUps()
    assert asks_follow_ups(cases)
    scores = measure.scores(cases, measure.observe(Says(oracle(cases)), cases))
    assert len(scores.estimates) >= 3
    # Answers of fewer than four words have no four-grams, and a BLEU of 0; these answers are longer.
    assert [one.value for one in scores.estimates.values()] == pytest.approx([100] * len(scores.estimates))
    silent = measure.scores(cases, measure.observe(Says({}), cases))
    assert {one.value for one in silent.estimates.values()} <= {0}


def test_mquake_by_hand() -> None:
    """Three instances; of the chain's three questions one right answer is enough, and an alias is right.

    | instance | chain | edits | single hops |
    |---|---|---|---|
    | 1 | the second question, by an alias | 0 | one of two |
    | 2 | none: the name is not at the start | 1, 1 | both |
    | 3 | the first question, though the text goes on | 1 | one of two |
    """
    cases, measure = read_cases(FIXTURES / "mquake.json"), FollowUps()
    said = {
        "Which city is the capital where Old Mill stands?": " Tavra City, of course.",
        "Which country is Old Mill in?": " Ostland",
        "What is the capital of Tavria?": " Tavra",
        "Where was the author of The Long Rain born?": " In Vell",
        "Who wrote The Long Rain?": " Ida Rom.",
        "Where was Ida Rom born?": " Vell\nand more",
        "Where was the sport of Ann Low invented?": " India, where India was",
        "Which sport does Ann Low play?": " Chess",
        "Where was chess invented?": " England",
    }
    writer = Says({ASKED.replace("{}", question): text for question, text in said.items()})
    scores = measure.scores(cases, measure.observe(writer, cases))
    third, two_thirds = pytest.approx(100 / 3), pytest.approx(200 / 3)
    assert values(scores) == {"multi_hop": (two_thirds, 3), "edit_wise": (two_thirds, 3), "instance_wise": (third, 3)}
    assert dict(scores.cases)["2"] == {"multi_hop": (0.0,), "edit_wise": (1.0, 1.0), "instance_wise": (1.0,)}


def test_examples_take_the_place_of_the_instruction() -> None:
    cases = read_cases(FIXTURES / "mquake.json")
    writer = Says({})
    FollowUps("Q: Where is Rome?\nA: Italy\n").observe(writer, cases)
    assert writer.asked[0] == f"Q: Where is Rome?\nA: Italy\n\nQ: {cases[0].follow_ups[0].questions[0].prompt}\nA:"


def test_ripple_edits_by_hand() -> None:
    """Record 1: of the two compositions one has a condition that the unedited model does not know, and is left out; the other
    fails. The mother, known before, is still known. The aliased subject passes by the full name.
    Record 2: the AND test fails on its second query, the OR test passes on its second: 1/2. Of the siblings one is missing.
    Record 3: the edit did not take, so nothing counts."""
    cases, measure = read_cases(FIXTURES / "ripple_edits.json"), FollowUps()
    before = {
        "The capital of Tavria is": " Tavra City.",
        "The currency of Tavria is": " dollar",
        "The name of the mother of Ann Low is": " not known, Eva Low or so",
    }
    after = {
        "The name of the country of citizenship of Ann Low is": " Tavria",
        "The capital of the country of Ann Low is": " Ost",
        "The currency of the country of Ann Low is": " crown",
        "The name of the mother of Ann Low is": " Eva Low",
        "The name of the country of citizenship of A. Low is": " the Tavria",
        "The names of the siblings of Jon Fell are": " Mia Fell and others",
        "The name of the sister of Jon Fell is": " Mia Fell",
        "The names of the siblings of Mia Fell are": " Mio",
        "Jon Fell has a sister who is": " Ute",
        "Jon Fell has a brother who is": " Mio",
        "The names of the siblings of Jon Fell, which are not Mia Fell, are": " Tom Fell and Una",
        "The Long Rain is followed by": " The Wind",
        "The author of the work after The Long Rain is": " Ida Rom",
    }
    unedited, now = (measure.observe(Says(said), cases) for said in (before, after))
    scores = measure.scores(cases, now, unedited)
    assert [outcomes for _, outcomes in scores.cases] == [
        {"Compositionality_I": (0.0,), "Subject_Aliasing": (1.0,), "Relation_Specificity": (1.0,)},
        {"Logical_Generalization": (0.0, 1.0), "Forgetfulness": (0.0,)},
        {},
    ]
    assert values(scores)["Logical_Generalization"] == (50, 1)
    assert "Compositionality_II" not in values(scores)
    # The names of both siblings have to be told, each by any of its names.
    after["The names of the siblings of Jon Fell, which are not Mia Fell, are"] = " Ute and then Tom Fell"
    again = measure.scores(cases, measure.observe(Says(after), cases), unedited)
    assert values(again)["Forgetfulness"] == (100, 1)


def test_the_limit_of_ripple_edits_is_thirty_tokens() -> None:
    cases, measure = read_cases(FIXTURES / "ripple_edits.json", limit=1), FollowUps()
    late = "word " * 29
    for text, passed in ((f" {late}Tavria", 1.0), (f" {late}more Tavria", 0.0)):
        said = oracle(cases, {"The name of the country of citizenship of A. Low is": text})
        scores = measure.scores(cases, measure.observe(Says(said), cases))
        assert dict(scores.cases)["0"]["Subject_Aliasing"] == (passed,)
    assert measure.tag["follow_ups"]["contains"]["max_new_tokens"] == 30


def test_unke_by_hand() -> None:
    cases, measure = read_cases(FIXTURES / "unke.jsonl"), FollowUps()
    answer = cases[2].fact.target
    said = {"What is Tavra known for?": "Tavra is known for its river and its old mill", "For what is Tavra known?": "The mill"}
    observed = measure.observe(Says({ASKED.replace("{}", question): text for question, text in said.items()}), cases)
    outcomes = measure.scores(cases, observed).cases[2][1]
    reference, text, short = words(answer), words(said["What is Tavra known for?"]), words("The mill")
    assert outcomes == {
        "original_BLEU": (bleu(reference, text),),
        "original_BLEU-letters": (bleu(list(answer), list(said["What is Tavra known for?"])),),
        "original_ROUGE-1": (1.0,),
        "original_ROUGE-2": (pytest.approx(8 / 9),),
        "original_ROUGE-L": (pytest.approx(7 / 10),),
        "paraphrase_BLEU": (0.0,),
        "paraphrase_BLEU-letters": (pytest.approx(bleu(list(answer), list("The mill"))),),
        "paraphrase_ROUGE-1": (pytest.approx(1 / 10),),
        "paraphrase_ROUGE-2": (0.0,),
        "paraphrase_ROUGE-L": (pytest.approx(1 / 10),),
    }
    assert rouge_recall(reference, short, 1) == rouge_l_recall(reference, short) == 0.1
    assert "sub_question_ROUGE-L" in measure.scores(cases, observed).estimates


class Knows:
    """Teacher forced: how many of a target's tokens are right, and which tokens are the likeliest, by query."""

    def __init__(self, known: Mapping[Query, tuple[tuple[bool, ...], tuple[int, ...]]]) -> None:
        self.known = known

    def answer(self, queries: Sequence[Query], *, progress: Any = None, names: Any = None) -> Mapping[Query, Answer]:
        return {query: Answer(-1.0, *self.known.get(query, ((False,), (0,)))) for query in queries}

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, top_k: Any = None, seed: int = 0) -> Sequence[str]:
        raise NotImplementedError


def test_knowedit_by_hand() -> None:
    """Of several names the best counts. Specificity looks at the data's answer, locality at the unedited model: the father's
    name is wrong before and after in the same way, the work is right before and half changed after."""
    cases = read_cases(FIXTURES / "knowedit.json", limit=1)
    alive, head = "Is Leo Tam still alive?", "The head of the place of death of Leo Tam is"
    father, work = "The name of the father of Leo Tam is", "The work of Leo Tam is"
    known = {
        (alive, "no"): ((False,), (5,)),
        (alive, "incorrect"): ((True, False), (6, 7)),
        (head, "Kai Weg"): ((True, True), (1, 2)),
        (father, "Al Tam"): ((False, False), (3, 4)),
        (work, "physics"): ((True, False), (8, 9)),
    }
    before = Knows({**known, (work, "physics"): ((True, True), (8, 10))}).answer(list(known))
    unedited = {**Knows({}).answer([(case.fact.text, case.fact.target) for case in cases]), **before}
    scores = score_cases(Knows(known), cases, unedited=unedited)
    assert {name: value for name, value in values(scores).items() if name not in ("ES", "EA")} == {
        "portability": (75, 1),
        "portability_Logical_Generalization": (50, 1),
        "portability_Reasoning": (100, 1),
        "specificity_Relation_Specificity": (25, 1),
        "locality": (75, 1),
        "locality_Relation_Specificity": (75, 1),
    }
    alone = values(score_cases(Knows(known), cases))
    assert "locality" not in alone
    assert alone["specificity_Relation_Specificity"] == (25, 1)


def test_portability_of_zsre_is_scored_where_it_is_there(tmp_path: Path) -> None:
    row = {"subject": "Bal", "src": "What is Bal part of?", "answers": ["Ker"], "loc": "who", "loc_ans": "he"}
    asked = {"New Question": "Who made it?", "New Answer": "Pino Paz"}
    path = tmp_path / "zsre.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in [row, {**row, "alt": "Ker", "portability": asked}]))
    scores = score_cases(Knows({("Who made it?", "Pino Paz"): ((True, False, True, True), (1, 2, 3, 4))}), read_cases(path))
    assert values(scores)["portability"] == (75, 1)


@pytest.mark.parametrize("name", ["knowedit.json", "knowedit_wikibio.json", "mquake.json", "ripple_edits.json", "unke.jsonl"])
def test_a_model_is_measured_whatever_the_order_of_records(tiny_gpt2: EditableModel, name: str) -> None:
    cases, measure = read_cases(FIXTURES / name), FollowUps(max_new_tokens=8)
    observed = measure.observe(tiny_gpt2, cases)
    assert measure.observe(tiny_gpt2, cases[::-1]) == observed
    assert dict(measure.scores(cases, observed).cases) == dict(measure.scores(cases[::-1], observed).cases)
    forced = score_cases(tiny_gpt2, cases)
    assert dict(forced.cases).keys() == dict(score_cases(tiny_gpt2, cases[::-1]).cases).keys()
