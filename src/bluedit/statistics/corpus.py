"""Where second moments come from: a text file, or a synthetic world."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bluedit.datasets.world import World
from bluedit.errors import StatisticsError, did_you_mean

__all__ = ["Corpus", "read_corpus"]

_CHUNK = 1 << 20
_WORLD_DOCUMENTS = 4000
"""Enough for every direction of a mini model's keys to occur, in seconds."""


@dataclass(frozen=True)
class Corpus:
    """A named source of documents.

    - `name`: the specification it was opened by.
    - `identity`: what a stored statistic is keyed by; for a file the hash of its content, not its path.
    - `size`: how many documents it holds (blank lines counted in, which are passed over).
    """

    name: str
    identity: str
    size: int
    path: Path | None = None
    world: World | None = None

    def documents(self, limit: int | None = None) -> Iterator[str]:
        """The documents in order, at most `limit` of them."""
        from itertools import islice

        return islice(self._all(), limit)

    def _all(self) -> Iterator[str]:
        if self.world is not None:
            yield from self.world.corpus(self.size)
            return
        assert self.path is not None
        try:
            with self.path.open(encoding="utf-8") as file:
                for line in file:
                    if line.strip():
                        yield line.rstrip("\n")
        except UnicodeDecodeError as error:
            raise StatisticsError(f"{self.path} is not UTF-8 text: {error}; convert it first") from error


def read_corpus(specification: str) -> Corpus:
    """Open a corpus: `text:FILE` (UTF-8, one document per line) or `world:SEED`.

    **Raises** :class:`~bluedit.errors.StatisticsError` for an unknown kind and for a file that is missing or empty.
    """
    kind, separator, rest = specification.partition(":")
    if not separator or kind not in ("text", "world"):
        hint = did_you_mean(kind, ("text", "world"), what="kind of corpus")
        raise StatisticsError(f"{hint} A corpus is given as text:FILE, with one document per line, or as world:SEED.")
    if kind == "world":
        if not rest.isdigit():
            raise StatisticsError(f"world:{rest} has no seed; a world is named by a number, as in world:0")
        return Corpus(specification, f"world:{rest}:{_WORLD_DOCUMENTS}", _WORLD_DOCUMENTS, world=World(int(rest)))
    path = Path(rest).expanduser()
    if not path.is_file():
        raise StatisticsError(f"the corpus file {rest!r} does not exist; give text:FILE with one document per line")
    digest, lines = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            lines += chunk.count(b"\n")
    if not path.stat().st_size:
        raise StatisticsError(f"the corpus file {rest!r} is empty; give text:FILE with one document per line")
    return Corpus(specification, f"text:{digest.hexdigest()}", lines + 1, path=path)
