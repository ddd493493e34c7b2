"""Text to token ids: prompts with the place of their subject, targets, and batches of them.

Positions come from the fast tokenizer's character offsets, so a subject is found wherever it stands: at the start or
the end of a prompt, more than once, after characters that take several tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bluedit.errors import FactError, ModelError
from bluedit.facts import Fact

__all__ = ["Batch", "Row", "TextEncoder", "batches"]


@dataclass(frozen=True)
class Row:
    """One sequence of token ids. `subject` is the position of the subject's last token, `target` how many tokens at
    the end are the target's (the sequence leaves out the very last of them: nothing is predicted after it)."""

    ids: tuple[int, ...]
    subject: int = -1
    target: tuple[int, ...] = ()

    @property
    def target_positions(self) -> range:
        """The positions whose logits predict the target, first token first."""
        return range(len(self.ids) - len(self.target), len(self.ids))


class TextEncoder:
    """Tokenises prompts, subjects and targets by one convention, whatever the tokenizer's own.

    Special tokens that the tokenizer puts in front of a text (BOS) are kept on prompts and dropped from targets;
    those it appends (EOS) are dropped everywhere.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, and only those tell where in the text a token "
                "stands; load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
            )
        self.tokenizer = tokenizer
        probe = tokenizer("a", add_special_tokens=True)["input_ids"]
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        start = next((i for i in range(len(probe) - len(plain) + 1) if probe[i : i + len(plain)] == plain), 0)
        self._prefix = tuple(probe[:start])
        # SentencePiece tokenizers put the word boundary in front by themselves: a space of ours would be a second one.
        first = tokenizer.convert_ids_to_tokens(plain)[0] if plain else ""
        self._target_prefix = "" if first.startswith("▁") else " "

    def prompt(self, text: str) -> tuple[int, ...]:
        """The ids of a prompt, with the tokenizer's leading special tokens."""
        return self._prefix + tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of many prompts at once."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [self._prefix + tuple(ids) for ids in encoded]

    def target(self, text: str) -> tuple[int, ...]:
        """The ids of a target as it continues a prompt: one leading space unless the tokenizer adds its own."""
        ids = tuple(self.tokenizer(self._target_prefix + text.strip(), add_special_tokens=False)["input_ids"])
        if not ids:
            raise FactError(f"the target {text!r} has no tokens in this model's vocabulary")
        return ids

    def row(self, fact: Fact, template: str = "{}", *, with_target: bool = False) -> Row:
        """A fact's prompt in a context template, with the subject's last token, and its target when wanted."""
        text, start, end = fact.subject_span(template)
        return self.subject_row(text, start, end, self.target(fact.target) if with_target else ())

    def subject_row(self, text: str, start: int, end: int, target: tuple[int, ...] = ()) -> Row:
        """A row of `text` whose subject takes up the characters from `start` to `end`."""
        ids, subject = self.subject_tokens(text, start, end)
        return Row(ids + target[:-1], subject[-1], target)

    def subject_tokens(self, text: str, start: int, end: int) -> tuple[tuple[int, ...], range]:
        """The ids of a text, and the positions of those that hold its characters from `start` to `end`."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        touching = [
            index
            for index, (first, last) in enumerate(encoded["offset_mapping"])
            if first < end and last > start and last > first
        ]
        if not touching:
            raise FactError(f"no token of {text!r} holds its subject {text[start:end]!r}; check the spelling")
        before = len(self._prefix)
        return self._prefix + tuple(encoded["input_ids"]), range(before + touching[0], before + touching[-1] + 1)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length. A decoder never looks right, so padding changes no result.

    - `ids`, `mask`: (B, T) token ids and 1 where a token is real.
    - `subjects`: (B,) positions of the subjects' last tokens.
    - `order`: for each row its index in the sequence that was batched.
    """

    rows: tuple[Row, ...]
    ids: Tensor
    mask: Tensor
    subjects: Tensor
    order: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device | str, order: Sequence[int] | None = None) -> Batch:
        length = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
            mask[index, : len(row.ids)] = 1
        subjects = torch.tensor([row.subject for row in rows])
        return cls(tuple(rows), ids.to(device), mask.to(device), subjects.to(device), tuple(order or range(len(rows))))

    def target_index(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where the logits of all target tokens are and what they should predict: rows, positions, token ids, flat."""
        device = self.ids.device
        rows = [index for index, row in enumerate(self.rows) for _ in row.target]
        positions = [position for row in self.rows for position in row.target_positions]
        tokens = [token for row in self.rows for token in row.target]
        return tuple(torch.tensor(values, dtype=torch.long, device=device) for values in (rows, positions, tokens))  # type: ignore[return-value]


def batches(rows: Sequence[Row], device: torch.device | str, token_budget: int = 4096) -> Iterator[Batch]:
    """The rows in batches of similar length, each of at most `token_budget` padded tokens (or one row)."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids), reverse=True)
    start = 0
    while start < len(order):
        longest = len(rows[order[start]].ids)
        chosen = order[start : start + max(1, token_budget // max(longest, 1))]
        yield Batch.of([rows[index] for index in chosen], device, chosen)
        start += len(chosen)
