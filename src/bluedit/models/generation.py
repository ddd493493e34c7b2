"""Batched continuation of prompts, greedy or sampled, with the key-value cache of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from bluedit.errors import NumericsError, excerpt
from bluedit.models.editable import EditableModel

__all__ = ["generate", "no_logits"]


@torch.no_grad()
def generate(
    model: EditableModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    top_k: int | None = None,
    seed: int = 0,
    stop_at_end: bool = True,
    plain: bool = False,
    batch_size: int = 64,
) -> list[str]:
    """Continue prompts; the texts come back with their prompts, in a chat the answers alone, without special tokens.

    **Arguments**

    - `max_new_tokens`, `max_length`: tokens to add, or tokens in all. One of the two.
    - `top_k`: sample from the k most likely tokens; greedy when left out.
    - `seed`: of the sampling. The caller's random state is left as it was.
    - `stop_at_end`: end a text at the model's end token. Otherwise that token is never chosen.
    - `plain`: continue the texts themselves, where prompts are otherwise put into a chat.

    **Raises** :class:`~bluedit.errors.NumericsError` naming the prompt after which the logits are not finite.
    """
    if (max_new_tokens is None) == (max_length is None):
        raise TypeError("give max_new_tokens or max_length, one of the two")
    encoded = model.text.documents(prompts) if plain else model.text.prompts(prompts)
    answers_alone = model.text.chat is not None and not plain
    ends = _end_tokens(model)
    # Masked before a text and cut off behind it: any token will do. The tokenizer's own may have been added without a vector.
    pad = min(ends, default=0)
    results = [""] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]), reverse=True)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), model.frozen():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            longest = max(len(encoded[index]) for index in chosen)
            # Texts grow to the right, so padding goes to the left here, and only here.
            ids = torch.full((len(chosen), longest), pad)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(chosen):
                ids[row, longest - len(encoded[index]) :] = torch.tensor(encoded[index])
                mask[row, longest - len(encoded[index]) :] = 1
            count = max_new_tokens if max_new_tokens is not None else max(1, (max_length or 0) - longest)
            output = model.model.generate(  # type: ignore[operator]
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=count,
                min_new_tokens=None if stop_at_end else count,
                do_sample=top_k is not None,
                top_k=top_k,
                pad_token_id=pad,
                logits_processor=[partial(_finite, [prompts[index] for index in chosen])],
            )
            for row, index in enumerate(chosen):
                # What stands after the end is padding, which may be a token like any other.
                added = list(takewhile(lambda token: token not in ends, output[row, longest:].tolist()))
                ids = added if answers_alone else [*encoded[index], *added]
                results[index] = str(model.tokenizer.decode(ids, skip_special_tokens=True))
    return results


def _finite(prompts: Sequence[str], _: Tensor, logits_BV: Tensor) -> Tensor:
    """The logits as they are. NaN would be drawn from as if it were a number, or end in an error without a name."""
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


def _end_tokens(model: EditableModel) -> frozenset[int]:
    """The tokens that end a text."""
    ends: Any = getattr(model.model.generation_config, "eos_token_id", None)
    return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)
