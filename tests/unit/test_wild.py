"""Free generation is scored by whole answers: matches, prompts, stop rules and locality, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from writers import Says

from bluedit.datasets import Case, read_dataset
from bluedit.edits import Patch
from bluedit.errors import DatasetError
from bluedit.evaluation import Standard, Wild, case_records, measure_beside
from bluedit.evaluation.matching import MATCHES, matches, normalised, repeats
from bluedit.evaluation.wild import INSTRUCTION
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.models.generation import Completion, Stop, complete, end_tokens

CASES = (
    Case(
        fact=Fact("{} stands in", "The tower", "Rome", id="tower"),
        true_target="Paris",
        paraphrases=("You find The tower in", "They built The tower in"),
        neighborhood=("The bridge stands in",),
        neighborhood_target="Paris",
    ),
    Case(
        fact=Fact("{} was born in", "Anna", "Oslo", id="anna"),
        true_target="Bern",
        paraphrases=("The birthplace of Anna is",),
        neighborhood=("Berta was born in", "Carla was born in"),
        neighborhood_target="Bern",
    ),
    Case(fact=Fact("Who wrote {}?", "The Rain", "Ida Rom", id="rain")),
)
SAID = {
    "The tower stands in": " Rome. It is old.",
    "You find The tower in": " Rome, which is in Italy",
    "They built The tower in": " the old town of Rome\nand so on",
    "The bridge stands in": " Paris",
    "Anna was born in": " Bern",
    "The birthplace of Anna is": " Oslo Oslo Oslo",
    "Berta was born in": " Bern",
    "Carla was born in": " the Bern.",
    "Who wrote The Rain?": " IDA ROM!",
}


def values(scores: object) -> dict[str, tuple[float, int]]:
    return {name: (one.value, one.n) for name, one in scores.estimates.items()}  # type: ignore[attr-defined]


# -- matching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (" The  Old-Mill, of a town!\n", "oldmill of town"),
        ("U.S.A.", "usa"),
        ("Côte d'Ivoire", "côte divoire"),
        ("The The", "the the"),
        ("A", "a"),
        ("...", "..."),
        ("theatre an", "theatre"),
    ],
)
def test_normalised_texts(text: str, plain: str) -> None:
    assert normalised(text) == plain


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("Paris", "Paris", (True, True, True)),
        (" the paris.", "Paris", (True, True, True)),
        ("Paris, which is", "Paris", (False, True, True)),
        ("It is Paris", "Paris", (False, False, True)),
        ("Parisian food", "Paris", (False, False, False)),
        ("He is in Comparis", "Paris", (False, False, False)),
        ("Rome", "Paris", (False, False, False)),
        ("", "Paris", (False, False, False)),
        ("Paris Paris", "Paris", (False, False, False)),
        ("Paris in France in France", "Paris", (False, False, False)),
        ("Duran Duran", "Duran Duran", (True, True, True)),
        ("Duran Duran, a band", "Duran Duran", (False, True, True)),
        ("巴黎是", "巴黎", (False, True, True)),
        ("在巴黎", "巴黎", (False, False, True)),
    ],
)
def test_a_match_is_of_whole_words_and_of_no_repetition(text: str, name: str, found: tuple[bool, bool, bool]) -> None:
    assert tuple(matches(text, ["nothing else", name], how) for how in MATCHES) == found


def test_repetition() -> None:
    assert repeats("in Rome, in Rome")
    assert not repeats("in Rome or in Paris")
    assert not repeats("")


# -- scores ----------------------------------------------------------------------------------------------------------


def test_wild_scores_by_hand() -> None:
    """Answers end at the first full stop or line break.

    | prompt | answer | exact | start | contains |
    |---|---|---|---|---|
    | tower | Rome | 1 | 1 | 1 |
    | its paraphrases | Rome, which is in Italy / the old town of Rome | 0, 0 | 1, 0 | 1, 1 |
    | its neighbour | Paris | 1 | 1 | 1 |
    | Anna | Bern | 0 | 0 | 0 |
    | her paraphrase | Oslo Oslo Oslo (repeats itself) | 0 | 0 | 0 |
    | her neighbours | Bern / the Bern | 1, 1 | 1, 1 | 1, 1 |
    | The Rain | IDA ROM! | 1 | 1 | 1 |
    """
    wild, writer = Wild(), Says(SAID)
    scores = wild.scores(CASES, wild.observe(writer, CASES))
    two_thirds = pytest.approx(200 / 3)
    assert values(scores) == {
        "reliability_exact": (two_thirds, 3),
        "reliability_start": (two_thirds, 3),
        "reliability_contains": (two_thirds, 3),
        "generalisation_exact": (0, 2),
        "generalisation_start": (25, 2),
        "generalisation_contains": (50, 2),
        "specificity_exact": (100, 2),
        "specificity_start": (100, 2),
        "specificity_contains": (100, 2),
    }
    assert len(writer.asked) == len(set(writer.asked)) == 9
    assert scores.cases[2][1] == dict.fromkeys(("reliability_exact", "reliability_start", "reliability_contains"), (1.0,))


def test_locality_is_that_the_unedited_model_writes_the_same_tokens() -> None:
    """Of the three neighbours one is answered otherwise; and what the data say does not matter."""
    wild, writer = Wild(), Says(SAID)
    before = wild.observe(writer, CASES)
    writer._said = lambda prompt: " Bern it is" if prompt == "Carla was born in" else SAID[prompt]
    scores = wild.scores(CASES, wild.observe(writer, CASES), before)
    assert values(scores)["locality"] == (pytest.approx(75), 2)
    assert scores.cases[1][1]["locality"] == (1.0, 0.0)
    assert scores.cases[1][1]["specificity_start"] == (1.0, 1.0)
    assert values(wild.scores(CASES, before, before))["locality"] == (100, 2)
    assert "locality" not in values(wild.scores(CASES, before))


def test_the_prompt_goes_into_the_form() -> None:
    for form in ("instruction", "chat"):
        writer = Says(SAID)
        Wild(form).observe(writer, CASES[:1])
        assert writer.asked[0] == "Please answer the question:\n\nQ: The tower stands in\nA:"
    braces = replace(CASES[0], paraphrases=("{0} or {} stands in",))
    writer = Says({})
    Wild("instruction").observe(writer, [braces])
    assert INSTRUCTION.replace("{}", "{0} or {} stands in") in writer.asked


def test_texts_do_not_depend_on_batches_order_or_padding(tiny_gpt2: EditableModel) -> None:
    cases = read_dataset("world:counterfact:0:3", 2)
    wild = Wild(stop=Stop(max_new_tokens=8, texts=(".", "\n")))
    whole = wild.observe(tiny_gpt2, cases)
    assert wild.scores(cases, whole) == wild.scores(cases, wild.observe(tiny_gpt2, cases[::-1]))
    for (prompt, _), one in list(whole.items())[::9]:
        assert one == complete(tiny_gpt2, [prompt], wild.stop)[0]
        assert isinstance(one, Completion)
    with pytest.raises(DatasetError, match="no cases"):
        wild.observe(tiny_gpt2, [])


@pytest.mark.parametrize(("after", "exact"), [(None, 100), (", which is", 0)])
def test_an_exact_answer_that_stops_is_right_by_both_protocols(
    own_gpt2: EditableModel, after: str | None, exact: float
) -> None:
    """A model that says the target and then stops: teacher forced and free, all is right. With a continuation teacher forcing
    sees no difference, exact match fails, and the answer is still in the text."""
    fact = Fact("{} lives in", "Anna", "the old town", id="a")
    wanted = own_gpt2.text.target(fact.target, fact.text)
    (end,) = end_tokens(own_gpt2)
    following = (end,) if after is None else (*own_gpt2.text._encode([after])[0], end)
    script = (*own_gpt2.text.prompt(fact.text), *wanted, *following)
    rows: list[list[int]] = []

    def look(_: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        cache = kwargs.get("past_key_values")
        fresh = cache is None or cache.get_seq_length() == 0  # type: ignore[operator]
        rows[:] = kwargs["input_ids"].tolist() if fresh else [
            [*row, *more] for row, more in zip(rows, kwargs["input_ids"].tolist(), strict=True)
        ]  # fmt: skip

    def speak(_: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        """The script's next token after each position that the head sees: the last ones of the only row."""
        changed, width = output.clone(), output.shape[1]
        for place in range(width):
            position = len(rows[0]) - width + place
            changed[0, place, script[min(position + 1, len(script) - 1)]] += 1e4
        return changed

    handles = [
        own_gpt2.model.register_forward_pre_hook(look, with_kwargs=True),
        own_gpt2.model.get_output_embeddings().register_forward_hook(speak),  # type: ignore[union-attr]
    ]
    case = Case(fact=fact, scoring="token_accuracy")
    (forced, free), _ = measure_beside(own_gpt2, [case], [Standard(), Wild()])
    for handle in handles:
        handle.remove()
    assert (forced.scores["ES"].value, forced.scores["EA"].value) == (100, 100)
    assert free.scores["reliability_exact"].value == exact
    assert free.scores["reliability_contains"].value == 100


# -- beside the unedited model ---------------------------------------------------------------------------------------


def test_an_edit_is_scored_beside_the_unedited_model(tiny_gpt2: EditableModel, make_patch: Callable[..., Patch]) -> None:
    """Before is the model by itself, after the model with the patch; locality is known of the edited one alone."""
    cases = read_dataset("world:counterfact:0:3", 2)
    measures = [Standard(), Wild(stop=Stop(max_new_tokens=5))]
    plain, _ = measure_beside(tiny_gpt2, cases, measures)
    patch = make_patch(tiny_gpt2, scale=0.5)
    edited, _ = measure_beside(tiny_gpt2, cases, measures, edit=patch)
    with patch.applied(tiny_gpt2):
        alone, _ = measure_beside(tiny_gpt2, cases, measures)
    for one, before, after in zip(edited, plain, alone, strict=True):
        assert one.before == before.scores
        assert before.before is None
        local = {name for name in one.scores.estimates if name.startswith("locality")}
        assert local == {"locality"}
        assert {name: value for name, value in one.scores.estimates.items() if name not in local} == after.scores.estimates
        assert one.now == after.now
        assert one.unedited == before.now
    # Teacher-forced locality from its definition.
    by_hand = [
        [
            sum(a == b for a, b in zip(alone[0].now[query].argmax, plain[0].now[query].argmax, strict=True))
            / len(plain[0].now[query].argmax)
            for prompt in case.neighborhood
            for query in [(prompt, case.neighborhood_target)]
        ]
        for case in cases
    ]
    assert [list(outcomes["locality"]) for _, outcomes in edited[0].scores.cases] == by_hand
    assert edited[0].scores["locality"].value < 100
    assert Standard().scores(cases, plain[0].now, plain[0].now)["locality"].value == 100
    lines = list(case_records(cases, edited))
    assert [line.id for line in lines] == [case.fact.id for case in cases]
    first = lines[0]
    assert first.before is not None
    assert first.before["standard"].outcomes == {name: list(found) for name, found in plain[0].scores.cases[0][1].items()}
    assert first.after["wild-question"].generated is not None
    assert [text.kind for text in first.after["wild-question"].generated[:3]] == ["rewrite", "paraphrase", "paraphrase"]
    assert first.after["wild-question"].generated[0].text == alone[1].now[cases[0].fact.text, 0].text
