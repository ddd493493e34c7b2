"""Texts equal those that transformers writes one prompt at a time, whatever they are written beside; and how they end."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator, Sequence

import pytest
import torch

from bluedit.edits import Patch
from bluedit.errors import DatasetError
from bluedit.models import EditableModel, ModelRespondent
from bluedit.models.generation import Completion, Stop, complete, end_tokens
from bluedit.models.respondent import as_writer

PROMPTS = (
    "I",
    "The mother tongue of Zhara Vrelk is",
    "You",
    "Zhara Vrelk was born in the town of",
    "I",
    "There is rain in the town where the gardener lives, and",
)
LONG = Stop(max_new_tokens=14)


def alone(model: EditableModel, prompt: str, count: int) -> list[int]:
    """The oracle: greedy tokens of one prompt without padding, the end token and what follows left out."""
    ids = list(model.text.prompt(prompt))
    whole = model.model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    added = whole[0, len(ids) :].tolist()
    ends = [place for place, token in enumerate(added) if token in end_tokens(model)]
    return added[: ends[0]] if ends else added


def test_greedy_texts_are_those_of_one_prompt_at_a_time(tiny_models: EditableModel) -> None:
    written = complete(tiny_models, PROMPTS, LONG)
    assert [one.prompt for one in written] == list(PROMPTS)
    for one in written:
        assert list(one.ids) == alone(tiny_models, one.prompt, 14)
        assert one.stopped == ("length" if len(one.ids) == 14 else "end")
        ids = [*tiny_models.text.prompt(one.prompt), *one.ids]
        assert tiny_models.tokenizer.decode(ids) == one.prompt + one.text


@pytest.mark.parametrize("top_k", [None, 5])
def test_a_text_depends_on_its_prompt_alone(tiny_models: EditableModel, top_k: int | None) -> None:
    """Not on the batch, its size, the order, or the side that the tokenizer pads on."""
    together = complete(tiny_models, PROMPTS, LONG, top_k=top_k, seed=3)
    for budget in (1, 64):
        assert complete(tiny_models, PROMPTS, LONG, top_k=top_k, seed=3, token_budget=budget) == together
    turned = complete(tiny_models, PROMPTS[::-1], LONG, top_k=top_k, seed=3)
    by_prompt = {one.prompt: one for one in together if one.prompt != "I"}
    assert {one.prompt: one for one in turned if one.prompt != "I"} == by_prompt
    for side in ("left", "right"):
        tokenizer = copy.deepcopy(tiny_models.tokenizer)
        tokenizer.padding_side, tokenizer.pad_token = side, "a"
        assert complete(EditableModel(tiny_models.model, tokenizer), PROMPTS, LONG, top_k=top_k, seed=3) == together


def test_samples_are_drawn_from_the_likeliest_tokens_with_the_seed(tiny_gpt2: EditableModel) -> None:
    def texts(seed: int, top_k: int) -> list[Completion]:
        return complete(tiny_gpt2, PROMPTS, LONG, top_k=top_k, seed=seed)

    assert texts(1, 5) == texts(1, 5) != texts(2, 5)
    assert texts(1, 1) == complete(tiny_gpt2, PROMPTS, LONG)
    first, _, _, _, again, _ = texts(1, 5)
    assert first.ids != again.ids, "the same prompt twice gets two texts"
    # A tiny model with known logits: every one of the k likeliest tokens is drawn, and none beside them.
    with torch.no_grad():
        logits = tiny_gpt2.model(torch.tensor([tiny_gpt2.text.prompt("I")])).logits[0, -1]
    likeliest = set(logits.topk(3).indices.tolist())
    drawn = {one.ids[:1] for one in complete(tiny_gpt2, ["I"] * 200, Stop(max_new_tokens=1, end=False), top_k=3)}
    assert drawn == {(token,) for token in likeliest - end_tokens(tiny_gpt2)}


def test_every_text_says_why_it_ended(own_gpt2: EditableModel) -> None:
    """The model is made to say known tokens: its head prefers, after each token, the next one of a script."""
    tokenizer = own_gpt2.tokenizer
    with scripted(own_gpt2, {"I": " a b. c", "You": " a\nb", "The": " a b c"}):
        stop = Stop(max_new_tokens=30, texts=(".", "\n"))
        by_prompt = {one.prompt: one for one in complete(own_gpt2, ["The", "I", "You"], stop)}
        assert (by_prompt["I"].text, by_prompt["I"].stopped) == (" a b", "text")
        assert "." in tokenizer.decode(list(by_prompt["I"].ids)), "the tokens hold the stop text"
        assert " c" not in tokenizer.decode(list(by_prompt["I"].ids)), "and nothing after it"
        assert (by_prompt["You"].text, by_prompt["You"].stopped) == (" a", "text")
        assert (by_prompt["The"].text, by_prompt["The"].stopped) == (" a b c", "end")
        assert {one.stopped for one in complete(own_gpt2, ["The"], Stop(max_new_tokens=2))} == {"length"}
        free = complete(own_gpt2, ["I", "You"], Stop(max_new_tokens=30))
        assert [(one.text, one.stopped) for one in free] == [(" a b. c", "end"), (" a\nb", "end")]
        (endless,) = complete(own_gpt2, ["The"], Stop(max_new_tokens=20, end=False))
        assert (len(endless.ids), endless.stopped) == (20, "length")


@contextlib.contextmanager
def scripted(model: EditableModel, said: dict[str, str]) -> Generator[None]:
    """Inside, the model says these texts after these prompts, then its end token; by a hook on its head."""
    (end,) = end_tokens(model)
    scripts = {model.text.prompt(prompt): (*model.text._encode([text])[0], end) for prompt, text in said.items()}
    rows: list[list[int]] = []

    def look(_: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        ids = kwargs["input_ids"]
        mask = kwargs.get("attention_mask", torch.ones_like(ids))
        if kwargs["past_key_values"].get_seq_length() == 0:  # type: ignore[operator]
            rows[:] = [row[real].tolist() for row, real in zip(ids, mask.bool(), strict=True)]
        else:
            for row, token in zip(rows, ids[:, -1].tolist(), strict=True):
                row.append(token)

    def speak(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        for number, row in enumerate(rows):
            script = next(tokens for prompt, tokens in scripts.items() if tuple(row[: len(prompt)]) == prompt)
            place = len(row) - len(next(prompt for prompt in scripts if tuple(row[: len(prompt)]) == prompt))
            changed[number, -1, script[min(place, len(script) - 1)]] += 1e4
        return changed

    handles = [
        model.model.register_forward_pre_hook(look, with_kwargs=True),
        model.model.get_output_embeddings().register_forward_hook(speak),  # type: ignore[union-attr]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_texts_of_an_edited_model_are_the_edited_models(tiny_gpt2: EditableModel, make_patch: Callable[..., Patch]) -> None:
    plain = complete(tiny_gpt2, PROMPTS, LONG)
    with make_patch(tiny_gpt2, scale=2.0).applied(tiny_gpt2):
        edited = complete(tiny_gpt2, PROMPTS, LONG)
        assert [list(one.ids) for one in edited] == [alone(tiny_gpt2, prompt, 14) for prompt in PROMPTS]
    assert edited != plain == complete(tiny_gpt2, PROMPTS, LONG)


def test_texts_end_where_the_context_is_full(tiny_models: EditableModel) -> None:
    length = tiny_models.context_length
    near = " ".join(["rain"] * length)
    while len(tiny_models.text.prompt(near)) > length - 3:
        near = near.rpartition(" ")[0]
    room = length - len(tiny_models.text.prompt(near))
    one, other = complete(tiny_models, [near, "I"], Stop(max_new_tokens=12, end=False))
    assert (len(one.ids), one.stopped) == (room, "length")
    assert len(other.ids) == 12
    with pytest.raises(DatasetError, match=f"the model takes {length}: shorten it"):
        complete(tiny_models, [near + " rain" * room], LONG)


def test_a_writer_writes(tiny_gpt2: EditableModel) -> None:
    counted: list[int] = []
    texts = as_writer(tiny_gpt2).complete(PROMPTS, LONG, progress=counted.append)
    assert sum(counted) == len(PROMPTS)
    assert list(texts) == complete(tiny_gpt2, PROMPTS, LONG)
    respondent = ModelRespondent(tiny_gpt2)
    assert as_writer(respondent) is respondent
    whole = respondent.generate(PROMPTS, max_new_tokens=14)
    assert list(whole) == [one.prompt + one.text for one in texts]
    with pytest.raises(TypeError, match="give it complete"):
        as_writer(NoWriter())


class NoWriter:
    """Answers and generates, and tells nothing of its tokens."""

    def answer(self, queries: Sequence[tuple[str, str]], **_: object) -> dict[tuple[str, str], object]:
        return {}

    def generate(self, prompts: Sequence[str], **_: object) -> list[str]:
        return list(prompts)
