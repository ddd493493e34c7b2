"""Whatever answers can be scored: a plain model, one whose prompts are rewritten, one that treats some prompts otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bluedit.datasets import Case, read_dataset
from bluedit.evaluation import score_cases
from bluedit.facts import Fact
from bluedit.models import EditableModel, ModelRespondent, Respondent
from bluedit.models.generation import generate
from bluedit.models.likelihood import Answer, Query, answer_queries
from bluedit.models.respondent import as_respondent


@dataclass(frozen=True)
class Copycat:
    """Prefers a target that the prompt names already, else `Rome`; no model is near."""

    def answer(
        self, queries: Sequence[Query], *, progress: Callable[[int], object] | None = None, names: Any = None
    ) -> Mapping[Query, Answer]:
        answers = {query: self._answer(*query) for query in queries}
        if progress is not None:
            progress(len(answers))
        return answers

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, top_k: Any = None, seed: int = 0) -> Sequence[str]:
        return [f"{prompt} ..." for prompt in prompts]

    def _answer(self, prompt: str, target: str) -> Answer:
        likes = target in prompt or target == "Rome"
        return Answer((-1.0 if likes else -3.0) + (0.5 if target in prompt else 0.0), (likes,))


@dataclass(frozen=True)
class InContext:
    """Puts a sentence in front of the prompts that name a subject, as an in-context editor does."""

    inner: Respondent
    sentences: Mapping[str, str]

    def rewritten(self, prompt: str) -> str:
        return next((f"{text} {prompt}" for subject, text in self.sentences.items() if subject in prompt), prompt)

    def answer(
        self,
        queries: Sequence[Query],
        *,
        progress: Callable[[int], object] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Mapping[Query, Answer]:
        asked = {(prompt, target): (self.rewritten(prompt), target) for prompt, target in queries}
        called = {self.rewritten(prompt): name for prompt, name in (names or {}).items()}
        answers = self.inner.answer(list(asked.values()), progress=progress, names=called)
        return {query: answers[other] for query, other in asked.items()}

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, top_k: Any = None, seed: int = 0) -> Sequence[str]:
        whole = [self.rewritten(prompt) for prompt in prompts]
        texts = self.inner.generate(whole, max_new_tokens=max_new_tokens, top_k=top_k, seed=seed)
        return [prompt + text[len(long) :] for prompt, long, text in zip(prompts, whole, texts, strict=True)]


@dataclass(frozen=True)
class Routed(ModelRespondent):
    """Says one token after every prompt that holds a trigger token, and leaves other prompts alone, as a routed memory does."""

    shares_prefixes: bool = False
    trigger: int = -1
    token: int = -1
    component: str = "mlp"

    def answer(self, queries: Sequence[Query], **options: Any) -> Mapping[Query, Answer]:
        with self.acting():
            return super().answer(queries, **options)

    def generate(self, prompts: Sequence[str], **options: Any) -> Sequence[str]:
        with self.acting():
            return super().generate(prompts, **options)

    @contextlib.contextmanager
    def acting(self) -> Generator[None]:
        model = self.model
        embeddings: Any = model.model.get_input_embeddings()
        routed_B = torch.zeros(0, dtype=torch.bool)

        def look(_: Any, inputs: tuple[Tensor, ...]) -> None:
            nonlocal routed_B
            if inputs[0].shape[1] > 1:  # a token that is generated goes the way of its prompt
                routed_B = (inputs[0] == self.trigger).any(1)

        def act(hidden_BTD: Tensor) -> Tensor:
            pull_D = 1e4 * model.model.get_output_embeddings().weight[self.token]  # type: ignore[union-attr]
            return hidden_BTD + routed_B[:, None, None] * pull_D

        with contextlib.ExitStack() as stack:
            stack.callback(embeddings.register_forward_pre_hook(look).remove)
            stack.enter_context(model.hooked(model.structure.depth - 1, self.component, act))
            yield


CASES = (
    Case(
        fact=Fact("{} stands in", "The tower", "Paris", id="tower"),
        true_target="Rome",
        paraphrases=("To see The tower you go to", "Its builders put it in"),
        neighborhood=("The bridge stands in",),
        neighborhood_target="Rome",
    ),
    Case(
        fact=Fact("{} was born in", "Anna", "Oslo", id="anna"),
        true_target="Rome",
        paraphrases=("The birthplace of Anna is",),
        neighborhood=("Berta was born in", "Anna's aunt was born in"),
        neighborhood_target="Rome",
    ),
)
SENTENCES = {"The tower": "The tower stands in Paris.", "Anna": "Anna was born in Oslo."}


def values(model: EditableModel | Respondent, cases: Sequence[Case] = CASES) -> dict[str, float]:
    return {name: estimate.value for name, estimate in score_cases(model, cases).estimates.items()}


def test_a_respondent_without_a_model_is_scored() -> None:
    """Rome is always said: nothing is edited, and what should stay does."""
    assert values(Copycat()) == {"ES": 0, "PS": 0, "NS": 100, "S": 0, "EA": 0, "PA": 0, "NA": 100}
    done: list[tuple[int, int]] = []
    score_cases(Copycat(), CASES, progress=lambda *count: done.append(count))
    # Every distinct prompt with both objects: 1 + 2 + 1 of the tower, 1 + 1 + 2 of Anna.
    assert done == [(16, 16)]


def test_in_context_answers_count_as_those_of_the_prompts_that_were_asked() -> None:
    """The tower's second paraphrase does not name it, and gets no sentence; Anna's aunt gets Anna's.

    | case | ES | PS | NS |
    |---|---|---|---|
    | tower | 1 | 1, 0 | 1 |
    | Anna | 1 | 1 | 1, 0 |
    | mean | 100 | 75 | 75 |
    """
    found = values(InContext(Copycat(), SENTENCES))
    assert found["S"] == pytest.approx(300 / (1 / 1 + 1 / 0.75 + 1 / 0.75))
    # Greedily the copycat says the named object and Rome alike.
    assert {name: found[name] for name in ("ES", "PS", "NS", "EA", "PA", "NA")} == {
        "ES": 100, "PS": 75, "NS": 75, "EA": 100, "PA": 75, "NA": 100,
    }  # fmt: skip
    (text,) = InContext(Copycat(), SENTENCES).generate(["Anna lives in"], max_new_tokens=3)
    assert text == "Anna lives in ..."


def test_in_context_prompts_are_those_written_by_hand(tiny_gpt2: EditableModel) -> None:
    """The same answers as cases whose prompts have the sentence in them."""
    respondent = InContext(ModelRespondent(tiny_gpt2), SENTENCES)
    written = [
        replace(
            case,
            fact=replace(case.fact, prompt=respondent.rewritten(case.fact.text)),
            paraphrases=tuple(map(respondent.rewritten, case.paraphrases)),
            neighborhood=tuple(map(respondent.rewritten, case.neighborhood)),
        )
        for case in CASES
    ]
    assert written[0].fact.text == "The tower stands in Paris. The tower stands in"
    assert score_cases(respondent, CASES) == score_cases(tiny_gpt2, written)
    assert score_cases(respondent, CASES) != score_cases(tiny_gpt2, CASES)
    (long,) = generate(tiny_gpt2, ["Anna was born in Oslo. Anna lives in"], max_new_tokens=4)
    assert respondent.generate(["Anna lives in"], max_new_tokens=4) == [long.removeprefix("Anna was born in Oslo. ")]


@pytest.fixture
def routed(tiny_gpt2: EditableModel) -> tuple[Routed, list[Case]]:
    """Six prompts with the trigger, which begin alike, and three without; the target is one token.

    The trigger stands in what prompts have in common: prefixes that are shared would hide it from the hook.
    """
    (trigger,) = tiny_gpt2.text.target(":", "a\n")
    token, *rest = tiny_gpt2.text.target("a", "b")
    assert not rest
    cases = [
        Case(
            fact=Fact("{} and so on: " + verb, "Zhand", "a", id=verb),
            true_target="the",
            paraphrases=(f"Zhand and so on: it {verb} in",),
            neighborhood=(f"Others {verb} in",),
            neighborhood_target="the",
        )
        for verb in ("was", "lives", "works")
    ]
    return Routed(tiny_gpt2, trigger=trigger, token=token), cases


@pytest.mark.parametrize("component", ["mlp", "layer"])
def test_a_routed_memory_changes_its_own_prompts_alone(
    tiny_gpt2: EditableModel, routed: tuple[Routed, list[Case]], component: str
) -> None:
    """By hand: every prompt with the trigger is answered with the target, and all others as before."""
    respondent, cases = replace(routed[0], component=component), routed[1]
    before, after = score_cases(tiny_gpt2, cases), score_cases(respondent, cases)
    assert (before["EA"].value, before["PA"].value) == (0, 0)
    assert {name: after[name].value for name in ("ES", "PS", "EA", "PA")} == dict.fromkeys(("ES", "PS", "EA", "PA"), 100)
    outcomes = [[dict(values)[name] for _, values in scores.cases for name in ("NS", "NA")] for scores in (before, after)]
    assert outcomes[0] == outcomes[1]
    # Shared beginnings keep the trigger, and with it the edit, from the tokens behind them.
    sharing = score_cases(replace(respondent, shares_prefixes=True), cases)
    assert sharing["EA"].value < 100


def test_a_routed_memory_answers_as_each_prompt_by_itself(routed: tuple[Routed, list[Case]]) -> None:
    respondent, cases = routed
    prompts = [prompt for case in cases for prompt in (case.fact.text, *case.paraphrases, *case.neighborhood)]
    queries = [(prompt, target) for prompt in prompts for target in ("a", "the", "the gardener")]
    together = respondent.answer(queries)
    for query in queries:
        alone = respondent.answer([query])[query]
        assert together[query].log_prob == pytest.approx(alone.log_prob, abs=1e-3)
        assert together[query].correct == alone.correct
    word = respondent.model.tokenizer.decode([respondent.token])
    texts = respondent.generate(prompts, max_new_tokens=3)
    plain = ModelRespondent(respondent.model).generate(prompts, max_new_tokens=3)
    for prompt, text, other in zip(prompts, texts, plain, strict=True):
        assert (text == prompt + 3 * word) == (":" in prompt)
        assert (text == other) == (":" not in prompt)


def test_a_plain_model_is_a_respondent_and_its_numbers_are_the_models(tiny_models: EditableModel) -> None:
    cases = read_dataset("world:counterfact:0:3", 3)
    assert score_cases(ModelRespondent(tiny_models), cases) == score_cases(tiny_models, cases)
    queries = [(prompt, target) for case in cases for prompt in case.neighborhood for target in ("a", "the town")]
    shared, whole = (ModelRespondent(tiny_models, shares_prefixes=shares).answer(queries) for shares in (True, False))
    assert shared == answer_queries(tiny_models, queries)
    for query in queries:
        assert whole[query].log_prob == pytest.approx(shared[query].log_prob, abs=1e-4)
        assert whole[query].correct == shared[query].correct
    prompts = [case.fact.text for case in cases]
    assert ModelRespondent(tiny_models).generate(prompts, max_new_tokens=3) == generate(tiny_models, prompts, max_new_tokens=3)


def test_what_cannot_answer_is_refused(tiny_gpt2: EditableModel) -> None:
    assert as_respondent(respondent := Copycat()) is respondent
    with pytest.raises(TypeError, match=r"pass EditableModel\(model, tokenizer\)"):
        score_cases(tiny_gpt2.model, CASES)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="str cannot be evaluated"):
        score_cases("gpt2", CASES)  # type: ignore[arg-type]
