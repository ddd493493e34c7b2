"""Batched continuation of prompts, greedy or sampled, with the key-value cache of transformers, and why each text ended.

*Concept.* A text depends on its prompt, the model, the stop rule and the seed, and on nothing else: not on the prompts beside
it, their order, or how many go through the model at once. Greedy texts are those that `generate` of transformers gives for
one prompt at a time.

*Mechanism.* Rows grow to the right, so prompts are padded on the left; transformers masks the padding, counts positions from a
prompt's first token, and keeps the cache in the class that the architecture needs. Every row ends by its own rule and has its
own stream of random numbers, seeded by its prompt.

Shapes: B rows, T tokens, V vocabulary, K candidates.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from bluedit.errors import DatasetError, NumericsError, excerpt
from bluedit.models.editable import EditableModel
from bluedit.models.memory.budget import TokenBudget, generation_budget, in_batches

__all__ = ["Completion", "Stop", "check_finite_logits", "complete", "end_tokens", "generate", "no_logits"]

Reason = Literal["end", "text", "length"]


@dataclass(frozen=True, kw_only=True)
class Stop:
    """When a text ends.

    - `max_new_tokens`: after so many tokens, or where the model's context is full.
    - `texts`: before the first of these that occurs in what was generated.
    - `end`: at the model's end token. Otherwise that token is never chosen.
    """

    max_new_tokens: int
    texts: tuple[str, ...] = ()
    end: bool = True

    def cut(self, text: str) -> tuple[str, bool]:
        """What comes before the first stop text, and whether there is one."""
        places = [place for place in map(text.find, self.texts) if place >= 0]
        return (text[: min(places)], True) if places else (text, False)


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt.

    - `text`: what was generated, without the prompt, special tokens, and the stop text.
    - `ids`: the generated tokens, the one that holds the stop text included, an end token not.
    - `stopped`: `end` (the model's end token), `text` (a stop text) or `length` (the limit of tokens).
    """

    prompt: str
    text: str
    ids: tuple[int, ...]
    stopped: Reason


@torch.no_grad()
def complete(
    model: EditableModel,
    prompts: Sequence[str],
    stop: Stop,
    *,
    top_k: int | None = None,
    seed: int = 0,
    plain: bool = False,
    token_budget: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Completion]:
    """Continue prompts, each by itself; the completions come in the order of the prompts.

    **Arguments**

    - `stop`: when a text ends.
    - `top_k`: sample from the k most likely tokens; greedy when left out.
    - `seed`: of the sampling. A prompt that occurs several times gets a text of its own each time.
    - `plain`: continue the texts themselves, where prompts are otherwise put into a chat.
    - `token_budget`: padded tokens of prompts and texts in one batch, at most; found from the memory there is when left out.
    - `progress`: called with the number of texts written, after each batch.

    **Raises** :class:`~bluedit.errors.DatasetError` for a prompt that leaves no room in the model's context, and
    :class:`~bluedit.errors.NumericsError` naming the prompt after which the logits are not finite.

    **Cost** one pass over the prompts, and one over a token of every row for each token of the longest text of a batch.
    """
    encoded = model.text.documents(prompts) if plain else model.text.prompts(prompts)
    limits = [min(stop.max_new_tokens, model.context_length - len(ids)) for ids in encoded]
    for prompt, ids, limit in zip(prompts, encoded, limits, strict=True):
        if limit < 1:
            problem = f"takes {len(ids)} tokens, and the model takes {model.context_length}: shorten it"
            raise DatasetError("generation", [f"the prompt {excerpt(prompt)} {problem}"])
    writer = _Writer(model, stop, top_k, tuple(prompts), tuple(encoded), tuple(_streams(encoded, seed)), plain)
    budget = generation_budget(model) if token_budget is None else TokenBudget(token_budget)
    results: list[Completion | None] = [None] * len(encoded)
    # A row that has reached the end of the context can go no further, not even while others in its batch do.
    order = sorted(range(len(encoded)), key=lambda index: (-limits[index], -len(encoded[index])))
    with model.frozen():
        for limit, group in groupby(order, key=lambda index: limits[index]):
            members = list(group)
            lengths = [len(encoded[index]) + limit for index in members]

            def run(chosen: list[int], members: list[int] = members, limit: int = limit) -> list[Completion]:
                return writer.write([members[place] for place in chosen], limit)

            for chosen, found in in_batches(lengths, budget, run):
                for place, completion in zip(chosen, found, strict=True):
                    results[members[place]] = completion
                if progress is not None:
                    progress(len(found))
    return [one for one in results if one is not None]


def generate(
    model: EditableModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    top_k: int | None = None,
    seed: int = 0,
    stop_at_end: bool = True,
    plain: bool = False,
) -> list[str]:
    """Continue prompts; the texts come back with their prompts, in a chat the answers alone, without special tokens.

    **Arguments**

    - `max_new_tokens`: tokens to add, at most.
    - `stop_at_end`: end a text at the model's end token. Otherwise that token is never chosen.
    - `top_k`, `seed`, `plain`: see :func:`complete`, also for the errors.
    """
    stop = Stop(max_new_tokens=max_new_tokens, end=stop_at_end)
    written = complete(model, prompts, stop, top_k=top_k, seed=seed, plain=plain)
    if model.text.chat is not None and not plain:
        return [completion.text for completion in written]
    encoded = model.text.documents(prompts) if plain else model.text.prompts(prompts)
    return [_decoded(model, [*ids, *completion.ids]) for ids, completion in zip(encoded, written, strict=True)]


@dataclass(frozen=True)
class _Writer:
    """Writes texts after some of the prompts at a time."""

    model: EditableModel
    stop: Stop
    top_k: int | None
    prompts: tuple[str, ...]
    encoded: tuple[tuple[int, ...], ...]
    streams: tuple[str, ...]
    plain: bool

    def write(self, chosen: Sequence[int], limit: int) -> list[Completion]:
        model, ends = self.model, end_tokens(self.model)
        longest = max(len(self.encoded[index]) for index in chosen)
        # Masked before a text and cut off behind it: any token will do, but the tokenizer's own may have no vector.
        pad = min(ends, default=0)
        ids_BT = torch.full((len(chosen), longest), pad)
        mask_BT = torch.zeros_like(ids_BT)
        for row, index in enumerate(chosen):
            ids_BT[row, longest - len(self.encoded[index]) :] = torch.tensor(self.encoded[index])
            mask_BT[row, longest - len(self.encoded[index]) :] = 1
        processors: list[LogitsProcessor] = [_Finite([self.prompts[index] for index in chosen])]
        if self.top_k is not None:
            processors.append(_Draw(self.top_k, [random.Random(self.streams[index]) for index in chosen]))
        stops = [_AtText(model, self.stop, longest)] if self.stop.texts else []
        output_BT = model.model.generate(  # type: ignore[operator]
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            max_new_tokens=limit,
            min_new_tokens=None if self.stop.end else limit,
            do_sample=False,  # where it is sampled, the processor leaves one token to choose
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=pad,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList(stops),
        )
        return [self._completion(index, output_BT[row, longest:].tolist(), ends) for row, index in enumerate(chosen)]

    def _completion(self, index: int, added: list[int], ends: frozenset[int]) -> Completion:
        """Why a text ended is read off the text: what stands behind its end is padding, which may be a token like any other."""
        prompt = self.prompts[index]
        if self.stop.texts:
            count = _stop_length(self.model, self.stop, added, ends)
            if count is not None:
                text, _ = self.stop.cut(self._continuation(index, added[:count]))
                return Completion(prompt, text, tuple(added[:count]), "text")
        end = next((place for place, token in enumerate(added) if token in ends), None)
        ids = added if end is None else added[:end]
        return Completion(prompt, self._continuation(index, ids), tuple(ids), "length" if end is None else "end")

    def _continuation(self, index: int, added: Sequence[int]) -> str:
        """The text of tokens as they continue their prompt: some tokenizers drop the space that a text begins with."""
        if self.model.text.chat is not None and not self.plain:
            return _decoded(self.model, added)
        before, whole = _decoded(self.model, self.encoded[index]), _decoded(self.model, [*self.encoded[index], *added])
        return whole[len(before) :] if whole.startswith(before) else _decoded(self.model, added)


def _stop_length(model: EditableModel, stop: Stop, added: Sequence[int], ends: frozenset[int]) -> int | None:
    """How many tokens a text has with the first one that completes a stop text; None where there is none before the end."""
    end = next((place for place, token in enumerate(added) if token in ends), len(added))
    if not stop.cut(_decoded(model, added[:end]))[1]:
        return None
    return next(count for count in range(1, end + 1) if stop.cut(_decoded(model, added[:count]))[1])


class _AtText(StoppingCriteria):
    """Ends a row once what was generated holds a stop text."""

    def __init__(self, model: EditableModel, stop: Stop, start: int) -> None:
        self._model, self._stop, self._start = model, stop, start

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        texts = (_decoded(self._model, ids) for ids in input_ids[:, self._start :].tolist())
        return torch.tensor([self._stop.cut(text)[1] for text in texts], device=input_ids.device)


class _Finite(LogitsProcessor):
    """Refuses logits that are not finite."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self._prompts = prompts

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return check_finite_logits(self._prompts, input_ids, scores)


class _Draw(LogitsProcessor):
    """Draws each row's token from its k most likely ones, by one number of the row's own stream, and leaves no other."""

    def __init__(self, top_k: int, streams: Sequence[random.Random]) -> None:
        self._top_k, self._streams = top_k, streams

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        values_BK, tokens_BK = scores.float().topk(min(self._top_k, scores.shape[-1]))
        shares_BK = values_BK.softmax(-1).cumsum(-1)
        drawn_B1 = torch.tensor([[stream.random()] for stream in self._streams], device=scores.device)
        places_B1 = (shares_BK[:, :-1] <= drawn_B1).sum(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens_BK.gather(-1, places_B1), 0.0)


def check_finite_logits(prompts: Sequence[str], _: Tensor, logits_BV: Tensor) -> Tensor:
    """The logits as they are. NaN would be drawn from as if it were a number, or end in an error without a name.

    **Raises** :class:`~bluedit.errors.NumericsError` naming the prompt of the first row that is not finite.
    """
    # The largest is NaN where any is; single tokens may be forbidden by minus infinity.
    finite_B = torch.isfinite(logits_BV.amax(-1))
    if not finite_B.all():
        raise NumericsError(no_logits(prompts[int((~finite_B).nonzero()[0])]))
    return logits_BV


def no_logits(prompt: str) -> str:
    """What to say where a model gives NaN or infinities after a prompt."""
    return (
        f"the model gives no finite logits after the prompt {excerpt(prompt)}: its numbers overflow, or an edit has ruined it; "
        "load it in float32 or bfloat16 (--dtype), or evaluate it without the patch"
    )


def end_tokens(model: EditableModel) -> frozenset[int]:
    """The tokens that end a text."""
    ends: Any = getattr(model.model.generation_config, "eos_token_id", None)
    return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)


def _streams(encoded: Sequence[tuple[int, ...]], seed: int) -> list[str]:
    """What seeds each row's random numbers: its tokens, and how often they came before."""
    seen: Counter[tuple[int, ...]] = Counter()
    streams: list[str] = []
    for ids in encoded:
        streams.append(f"bluedit-text/{seed}/{seen[ids]}/{','.join(map(str, ids))}")
        seen[ids] += 1
    return streams


def _decoded(model: EditableModel, ids: Sequence[int]) -> str:
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=True))
