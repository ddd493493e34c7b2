"""Text to token ids: prompts with the place of their subject, targets, and batches of them.

Positions come from the fast tokenizer's character offsets, so a subject is found wherever it stands: at the start or
the end of a prompt, more than once, after characters that take several tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bluedit.errors import FactError, ModelError, excerpt
from bluedit.facts import Fact
from bluedit.models.inputs.chat import Chat

__all__ = ["Batch", "PromptTokenizer", "Row", "separator"]

_BOUNDARIES = ("▁", "Ġ")
"""How tokens that begin a word begin: in SentencePiece, and in byte-level BPE."""
_OPENINGS = ("\n", "、", ".")
"""After these a text is put to see its tokens inside a sentence; which of them stay tokens of their own depends."""
_UNSPACED = (
    "CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "FULLWIDTH", "BOPOMOFO", "YI SYLLABLE",
    "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN",
)  # fmt: skip
"""How the Unicode names of letters begin whose scripts put no spaces between words."""


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


class PromptTokenizer:
    """Tokenises prompts, subjects and targets by one convention, whatever the tokenizer's own.

    Special tokens that the tokenizer puts in front of a text (BOS) stay on prompts and dropped from targets; those it
    appends (EOS) are dropped everywhere. A target continues its prompt as a writer would: see :func:`separator`.

    With `chat`, a prompt is a user's message in the model's chat template, a target the beginning of the answer. Special
    tokens are then those that the template writes, and no others.

    **Arguments**

    - `context_length`: tokens that the model takes. Texts with more characters than these tokens can hold are refused before
      they are tokenised, which can take minutes.
    - `vocabulary`: how many tokens the model has embeddings for; any other token is refused.

    **Raises** :class:`~bluedit.errors.ModelError` for a tokenizer that tells no offsets, or that lacks a chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat: bool = False,
        context_length: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, and only those give character "
                "offsets; load it with AutoTokenizer.from_pretrained(..., use_fast=True)"
            )
        self.tokenizer = tokenizer
        self.context_length = context_length
        self._vocabulary = vocabulary
        self.chat = Chat.of(tokenizer) if chat else None
        probe = tokenizer("a", add_special_tokens=True)["input_ids"]
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        start = next((i for i in range(len(probe) - len(plain) + 1) if probe[i : i + len(plain)] == plain), 0)
        self._prefix = tuple(probe[:start])
        # SentencePiece tokenizers, and byte-level ones with add_prefix_space, put the word boundary in front by themselves:
        # a space of ours could be a second one.
        self._adds_boundary = bool(plain) and tokenizer.convert_ids_to_tokens(plain)[0].startswith(_BOUNDARIES)
        self._targets: dict[tuple[str, str], tuple[int, ...]] = {}

    def prompt(self, text: str) -> tuple[int, ...]:
        """The ids of a prompt, with its leading special tokens and without spaces at its end: those are the target's."""
        return self.prompts([text])[0]

    def prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of many prompts at once.

        **Raises** :class:`~bluedit.errors.FactError` for one that is too long, see :meth:`check_length`.
        """
        for text in texts:
            self.check_length(text)
        if self.chat is None:
            return self.documents([_without_end(text) for text in texts])
        return self._encode([self.chat.around(text.strip()) for text in texts])

    def documents(self, texts: Sequence[str], length: int | None = None) -> list[tuple[int, ...]]:
        """The ids of texts as they are, chat or no chat, with the tokenizer's leading special tokens.

        `length`: only the first ids are wanted; characters that cannot be among them are not tokenised.
        """
        if length is None:
            return [self._prefix + ids for ids in self._encode(texts)]
        return [(self._prefix + ids)[:length] for ids in self._encode([self._beginning(text, length) for text in texts])]

    def check_length(self, text: str) -> None:
        """Look at how many characters a text has.

        **Raises** :class:`~bluedit.errors.FactError` where they are more than the tokens of the model's context can hold.
        """
        tokens = self.context_length
        if tokens is not None and len(self._beginning(text, tokens)) < len(text):
            raise FactError(f"{excerpt(text)} is too long: the model takes {tokens:,} tokens; shorten it")

    def _beginning(self, text: str, tokens: int) -> str:
        """A text without the characters that `tokens` tokens cannot reach."""
        return text if len(text) <= tokens else text[: tokens * self._longest_token]

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token, and no fewer than are usual: a tokenizer may join or drop some before it begins."""
        return max(128, *map(len, self.tokenizer.get_vocab()))

    def target(self, text: str, prompt: str = "") -> tuple[int, ...]:
        """The ids of a target as it continues a prompt.

        **Raises** :class:`~bluedit.errors.FactError` when the vocabulary has nothing for it.
        """
        self.check_length(text)
        text = text.strip()
        between = self.chat.separator if self.chat else separator(prompt, text)
        if (between, text) not in self._targets:
            self._targets[between, text] = self._continuation(between, text)
        return self._targets[between, text]

    def row(self, fact: Fact, template: str = "{}", *, with_target: bool = False) -> Row:
        """A fact's prompt in a context template, with the subject's last token, and its target when wanted."""
        text, start, end = fact.subject_span(template)
        return self.subject_row(text, start, end, self.target(fact.target, text) if with_target else ())

    def subject_row(self, text: str, start: int, end: int, target: tuple[int, ...] = ()) -> Row:
        """A row of `text` whose subject takes up the characters from `start` to `end`."""
        ids, subject = self.subject_tokens(text, start, end)
        return Row(ids + target[:-1], subject[-1], target)

    def subject_tokens(self, text: str, start: int, end: int) -> tuple[tuple[int, ...], range]:
        """The ids of a prompt, and the positions of those that hold its characters from `start` to `end`."""
        self.check_length(text)
        prefix, shown, shift = self._prefix, _without_end(text), 0
        if self.chat is not None:
            prefix, shown = (), self.chat.around(text.strip())
            shift = len(self.chat.before) - (len(text) - len(text.lstrip()))
        encoded = self.tokenizer(shown, add_special_tokens=False, return_offsets_mapping=True)
        touching = [
            index
            for index, (first, last) in enumerate(encoded["offset_mapping"])
            if first < end + shift and last > start + shift and last > first
        ]
        if not touching:
            raise FactError(f"no token of {excerpt(text)} holds its subject {excerpt(text[start:end])}; check the spelling")
        return prefix + self._known(encoded["input_ids"]), range(len(prefix) + touching[0], len(prefix) + touching[-1] + 1)

    def _encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of texts and nothing else."""
        return [self._known(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    def _known(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Ids that the model has embeddings for."""
        if self._vocabulary is not None and (largest := max(ids, default=0)) >= self._vocabulary:
            raise ModelError(
                f"the tokenizer gives token {largest:,}, and the model has embeddings for {self._vocabulary:,} only; it is "
                "another model's tokenizer: save the right one next to the model"
            )
        return tuple(ids)

    def _continuation(self, between: str, text: str) -> tuple[int, ...]:
        """The ids of what comes after a prompt."""
        if self.chat is not None:
            ids = self._after(self.chat.around("a"), between + text)
        elif between or not self._adds_boundary:
            ids = None
        else:
            found = (self._after(opening, text) for opening in _OPENINGS)
            ids = next((ids for ids in found if ids and not self._starts_word(ids)), None)
        if ids is None:
            ids = self._encode([text if self._adds_boundary and between == " " else between + text])[0]
        if not ids:
            raise FactError(f"the target {excerpt(text)} has no tokens in this model's vocabulary")
        return ids

    def _after(self, opening: str, text: str) -> tuple[int, ...] | None:
        """The ids of `text` where it comes after `opening`; None when a token holds some of both."""
        encoded = self.tokenizer(opening + text, add_special_tokens=False, return_offsets_mapping=True)
        offsets, place = encoded["offset_mapping"], len(opening)
        start = next((index for index, (_, last) in enumerate(offsets) if last > place), len(offsets))
        if start < len(offsets) and offsets[start][0] < place:
            return None
        return self._known(encoded["input_ids"][start:])

    def _starts_word(self, ids: tuple[int, ...]) -> bool:
        return str(self.tokenizer.convert_ids_to_tokens(ids[0])).startswith(_BOUNDARIES)


def separator(prompt: str, target: str) -> str:
    """What stands between a prompt and its target: a space, or nothing.

    Nothing after a line break, an opening bracket, or a script that is written without spaces; nothing before punctuation
    that closes. Spaces that the prompt ends with are the one space.
    """
    if not prompt or prompt.endswith(" "):
        return " "
    last, first = prompt[-1], target[:1]
    if last.isspace() or _unspaced(last) or unicodedata.category(last) in ("Ps", "Pi"):
        return ""
    closes = first in (*".,;:!?",) or unicodedata.category(first or " ") in ("Pe", "Pf")
    closes |= _unspaced(first) and unicodedata.category(first) == "Po"
    return "" if closes and not target[1:2].isalnum() else " "  # .NET is a word


def _unspaced(character: str) -> bool:
    """Whether a character is of a script without spaces between words, or of its punctuation."""
    if not character:
        return False
    wide = unicodedata.category(character).startswith("P") and unicodedata.east_asian_width(character) in "WF"
    return wide or unicodedata.name(character, "").startswith(_UNSPACED)


def _without_end(text: str) -> str:
    """A prompt without spaces at its end: most tokenizers write a space with the word after it, which is the target."""
    return text.rstrip(" ") or text


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length. A decoder never looks right, so padding changes no result.

    - `ids`, `mask`: (B, T) token ids and 1 where a token is real.
    - `subjects`: (B,) positions of the subjects' last tokens.
    """

    rows: tuple[Row, ...]
    ids: Tensor
    mask: Tensor
    subjects: Tensor

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device | str) -> Batch:
        length = max(len(row.ids) for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
            mask[index, : len(row.ids)] = 1
        subjects = torch.tensor([row.subject for row in rows])
        return cls(tuple(rows), ids.to(device), mask.to(device), subjects.to(device))

    def target_index(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where the logits of all target tokens are and what they should predict: rows, positions, token ids, flat."""
        device = self.ids.device
        rows = [index for index, row in enumerate(self.rows) for _ in row.target]
        positions = [position for row in self.rows for position in row.target_positions]
        tokens = [token for row in self.rows for token in row.target]
        return tuple(torch.tensor(values, dtype=torch.long, device=device) for values in (rows, positions, tokens))  # type: ignore[return-value]
