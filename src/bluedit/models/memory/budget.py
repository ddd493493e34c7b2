"""How many tokens go through a model at once: found from the memory there is, halved when it was too many.

On a CPU the smallest batch whose matrix products are fast is the best one: its activations stay in the cache, and memory is
asked for once. On a GPU it is the largest that fits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from bluedit.errors import ResourceError, first_line
from bluedit.models.layout.structure import Structure

__all__ = [
    "CPU_GRADIENT_TOKENS",
    "Attempt",
    "Sized",
    "TokenBudget",
    "generation_budget",
    "gradient_budget",
    "gradient_numbers",
    "in_batches",
    "plain_budget",
]

T = TypeVar("T")

_CPU_TOKENS = 1024
CPU_GRADIENT_TOKENS = 512
"""With gradients, every layer's activations are stored."""
_CPU_TEXT_TOKENS = 4096
"""A step of generation reads all weights for one token of every row: more rows at once cost little."""
_GPU_TOKENS = 32768
"""Beyond this many tokens, a pass is no faster per token."""
_SHARE = 0.5
"""Of the memory that is free; the rest is for what an estimate forgets."""


class Sized(Protocol):
    """What a budget asks of a model: how large its layers are, and where and in which type its weights are stored."""

    @property
    def structure(self) -> Structure: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...


@dataclass
class Attempt:
    """Whether a pass ran out of memory and is to be tried again, in smaller parts."""

    failed: bool = False


@dataclass
class TokenBudget:
    """Padded tokens in one pass, at most; a single row may exceed it."""

    tokens: int

    @contextlib.contextmanager
    def attempt(self, tokens: int, *, alone: bool) -> Generator[Attempt]:
        """Inside, running out of memory is no error: the budget becomes half of `tokens`, and the attempt has failed.

        **Raises** :class:`~bluedit.errors.ResourceError` where that cannot help: `alone` says that there is one row only.
        """
        attempt = Attempt()
        try:
            yield attempt
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if alone:
                raise ResourceError(
                    f"memory ran out in a single row of {tokens} tokens ({first_line(error)}); load the model in "
                    "bfloat16, choose another device, or free its memory"
                ) from None
            attempt.failed = True
        if attempt.failed:
            # Only here, with the exception gone, is what it held on to free.
            self.tokens = max(1, min(self.tokens, tokens) // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def in_batches(
    lengths: Sequence[int], budget: TokenBudget, run: Callable[[list[int]], T], order: Sequence[int] | None = None
) -> Iterator[tuple[list[int], T]]:
    """Run rows in batches of like length under a budget; the rows of each batch with what `run` made of them.

    The longest come first, unless `order` says otherwise. A batch that runs out of memory is tried again in halves.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index]) if order is None else order
    start = 0
    while start < len(order):
        longest, end = 0, start
        while end < len(order):
            longest = max(longest, lengths[order[end]])
            if end > start and longest * (end + 1 - start) > budget.tokens:
                break
            end += 1
        chosen = list(order[start:end])
        longest = max(lengths[index] for index in chosen)
        with budget.attempt(longest * len(chosen), alone=len(chosen) == 1) as attempt:
            result = run(chosen)
        if not attempt.failed:
            yield chosen, result  # pyright: ignore[reportPossiblyUnboundVariable]
            start = end


def plain_budget(model: Sized) -> TokenBudget:
    """For passes without gradients: a layer's activations at a time, and keys and values of all layers."""
    d_model, d_ff = model.structure.d_model, model.structure.d_ff
    return _budget(model, 8 * (d_model + d_ff) + 2 * d_model * model.structure.depth, _CPU_TOKENS)


def generation_budget(model: Sized) -> TokenBudget:
    """For texts that grow token by token: keys and values of all layers stay, those of a prompt and of its text."""
    budget = plain_budget(model)
    return budget if model.device.type == "cuda" else TokenBudget(_CPU_TEXT_TOKENS)


def gradient_budget(model: Sized, layer: int) -> TokenBudget:
    """For passes with gradients through the layers above `layer`, whose activations are all stored."""
    return _budget(model, gradient_numbers(model.structure, layer), CPU_GRADIENT_TOKENS)


def gradient_numbers(structure: Structure, layer: int) -> int:
    """The numbers that a pass with gradients through the layers above `layer` stores for each token."""
    return max(1, structure.depth - 1 - layer) * (12 * structure.d_model + 6 * structure.d_ff)


def _budget(model: Sized, numbers: int, elsewhere: int) -> TokenBudget:
    """The budget of a GPU for this many numbers per token, in the precision of the weights; `elsewhere` applies to others."""
    if model.device.type != "cuda":
        return TokenBudget(elsewhere)
    free = torch.cuda.mem_get_info(model.device)[0]
    # What the allocator reserves for later is free as well.
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    tokens = int(_SHARE * free / (numbers * model.dtype.itemsize))
    return TokenBudget(max(1, min(_GPU_TOKENS, tokens)))


def _is_out_of_memory(error: Exception) -> bool:
    from accelerate.utils.memory import should_reduce_batch_size

    # accelerate knows the messages of all backends; it does not count Python's own error.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error)
