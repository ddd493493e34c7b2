"""Documents into blocks of rows that hardly need padding, in an order that depends on the documents alone.

A document never sees another: it is a row of its own, as in the published statistics. Packing several into one row would need a
block-diagonal mask, which not every architecture takes; rows of nearly the same length need neither mask nor much padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from bluedit.models import Row

__all__ = [
    "BATCH_TOKENS",
    "BLOCK_KEYS",
    "BLOCK_TOKENS",
    "PADDING_FRACTION",
    "PADDING_TOKENS",
    "WINDOW_CHARACTERS",
    "WINDOW_DOCUMENTS",
    "Block",
    "blocks",
    "windows",
]

WINDOW_DOCUMENTS = 1024
WINDOW_CHARACTERS = 1 << 20
"""How much is sorted by length together: more would save padding, and cost memory and points of the curve."""
BATCH_TOKENS = 4096
PADDING_FRACTION = 1 / 32
PADDING_TOKENS = 64
"""How much padding a batch may have: a fraction of it, or this many tokens, which cost less than another forward pass."""
BLOCK_TOKENS = 2048
"""From how many keys on a product is worth adding up an F x F matrix for."""
BLOCK_KEYS = BLOCK_TOKENS + BATCH_TOKENS
"""The most keys that are held at once, but for documents longer than a batch."""


@dataclass(frozen=True)
class Block:
    """Batches of rows whose keys are multiplied together; of each row whether its document has an even number."""

    batches: tuple[tuple[tuple[Row, bool], ...], ...]

    @property
    def documents(self) -> int:
        return sum(len(batch) for batch in self.batches)

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for batch in self.batches for row, _ in batch)

    @property
    def padded(self) -> int:
        """Tokens that the model runs on, padding counted in."""
        return sum(len(batch) * len(batch[0][0].ids) for batch in self.batches)


def windows(texts: Iterable[str], skip: int = 0) -> Iterator[list[str]]:
    """Texts that are not blank, some hundreds at a time, after the first `skip` of them."""
    window: list[str] = []
    characters = 0
    for text in islice((text for text in texts if text.strip()), skip, None):
        window.append(text)
        characters += len(text)
        if len(window) == WINDOW_DOCUMENTS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def blocks(rows: Sequence[Row]) -> Iterator[Block]:
    """The rows of one window, in order of documents, as blocks: the longest rows first."""
    gathered: list[tuple[tuple[Row, bool], ...]] = []
    for batch in _batches(rows):
        gathered.append(batch)
        block = Block(tuple(gathered))
        if block.tokens >= BLOCK_TOKENS:
            yield block
            gathered = []
    if gathered:
        yield Block(tuple(gathered))


def _batches(rows: Sequence[Row]) -> Iterator[tuple[tuple[Row, bool], ...]]:
    batch: list[tuple[Row, bool]] = []
    longest = padding = 0
    numbered = [(row, number % 2 == 0) for number, row in enumerate(rows) if row.ids]
    for row, even in sorted(numbered, key=lambda one: -len(one[0].ids)):
        padding += longest - len(row.ids) if batch else 0
        size = longest * (len(batch) + 1)
        if batch and (size > BATCH_TOKENS or padding > max(PADDING_FRACTION * size, PADDING_TOKENS)):
            yield tuple(batch)
            batch, padding = [], 0
        if not batch:
            longest = len(row.ids)
        batch.append((row, even))
    if batch:
        yield tuple(batch)
