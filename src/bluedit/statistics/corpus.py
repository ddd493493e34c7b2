"""The corpus that second moments are taken over: texts, data sets of the hub, the synthetic world, or a file of moments."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from bluedit.datasets.world import World
from bluedit.errors import StatisticsError, did_you_mean, excerpt, first_line, shortened
from bluedit.models.embedded import TEXTS
from bluedit.statistics.export import SharedStatistics
from bluedit.storage.parsing import is_file, parse_json

__all__ = ["Corpus", "read_corpus"]

_CHUNK = 1 << 20
_WORLD_DOCUMENTS = 4000
"""Enough for every direction of a mini model's keys to occur, in seconds."""
_KINDS = ("hub", "jsonl", "stats", "text", "world", "zoo")
_FORMS = (
    'A corpus is given as text:FILE (one document per line), jsonl:FILE (an object with a "text" per line), '
    "hub:NAME[:CONFIG], world:SEED, zoo:MODEL, or stats:FILE for moments that were exported."
)


@dataclass(frozen=True)
class Corpus:
    """A named source of documents.

    - `name`: the specification it was opened by.
    - `identity`: what a stored statistic is keyed by; for a file the hash of its content, not its path.
    - `size`: how many documents it holds (blank ones counted in, which are passed over); None where that is not known.
    - `reader`: gives the documents, always the same ones in the same order.
    - `shared`: the moments themselves, taken elsewhere; there are no documents then.
    """

    name: str
    identity: str
    size: int | None
    reader: Callable[[], Iterable[str]] | None = field(default=None, compare=False, repr=False)
    shared: SharedStatistics | None = field(default=None, compare=False, repr=False)

    def documents(self, limit: int | None = None) -> Iterator[str]:
        """The documents in order, at most `limit` of them, blank ones left out."""
        if self.reader is None:
            raise StatisticsError(f"{self.name} holds second moments, not text, so it cannot give others; name a text")
        return islice((text for text in self.reader() if text.strip()), limit)


def read_corpus(specification: str) -> Corpus:
    """Open a corpus.

    - `text:FILE`: UTF-8, one document per line.
    - `jsonl:FILE`: UTF-8, one JSON object per line, with the document under `text`.
    - `hub:NAME[:CONFIG][@REVISION]`: the column `text` of the split `train` of a data set of the Hugging Face hub, or of a
      local folder of data files. It is streamed: nothing is downloaded beyond what is read. What the hub holds under a name
      may change; a revision pins it.
    - `world:SEED`: the synthetic world's text.
    - `zoo:MODEL`: the texts that ship with bluedit for a model, which it wrote itself (`tools/zoo/write_texts.py`).
    - `stats:FILE`: no text, but moments that :func:`~bluedit.statistics.export.export_statistics` wrote.

    **Raises** :class:`~bluedit.errors.StatisticsError` for an unknown kind, for a file that is missing, empty or damaged, and,
    once it is read, for one that is not what it should be.
    """
    kind, separator, rest = specification.partition(":")
    if not separator or kind not in _KINDS:
        raise StatisticsError(f"{did_you_mean(kind, _KINDS, what='kind of corpus')} {_FORMS}")
    if kind == "world":
        return _world(specification, rest)
    if kind == "hub":
        return _hub(specification, rest)
    if kind == "zoo":
        if rest not in TEXTS:
            raise StatisticsError(did_you_mean(rest, TEXTS, what="model with texts of its own"))
        kind, rest = "jsonl", str(TEXTS[rest])
    path = Path(rest).expanduser()
    if not is_file(rest):
        raise StatisticsError(f"the corpus file {excerpt(rest)} does not exist. {_FORMS}")
    if not path.stat().st_size:
        raise StatisticsError(f"the corpus file {rest!r} is empty. {_FORMS}")
    if kind == "stats":
        shared = SharedStatistics.open(path)
        return Corpus(specification, f"stats:{shared.origin.digest}", shared.origin.documents, shared=shared)
    digest, lines = _hashed([path])
    reader = _text_lines if kind == "text" else _json_lines
    return Corpus(specification, f"{kind}:{digest}", lines + 1, partial(reader, path))


def _world(specification: str, seed: str) -> Corpus:
    if not re.fullmatch("[0-9]{1,18}", seed):
        raise StatisticsError(f"world:{shortened(seed, 80)} has no seed; a world is named by a number, as in world:0")
    identity = f"world:{seed}:{_WORLD_DOCUMENTS}"
    return Corpus(specification, identity, _WORLD_DOCUMENTS, lambda: World(int(seed)).corpus(_WORLD_DOCUMENTS))


def _text_lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise StatisticsError(f"{path} is not UTF-8 text: {error}; convert it first") from error


def _json_lines(path: Path) -> Iterator[str]:
    for number, line in enumerate(_text_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise StatisticsError(f"{path}, line {number}: not JSON ({error}); every line is one object") from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise StatisticsError(f'{path}, line {number}: no text; every line is an object such as {{"text": "..."}}')
        yield text


def _hub(specification: str, rest: str) -> Corpus:
    address, _, revision = rest.partition("@")
    name, _, config = address.partition(":")
    if not name:
        raise StatisticsError(f"{specification!r} names no data set; write hub:NAME or hub:NAME:CONFIG")
    folder, source = Path(name).expanduser(), name
    if folder.is_dir():
        # A folder is known by what is in it, wherever it lies.
        source = _hashed(sorted(path for path in folder.rglob("*") if path.is_file()))[0]
    identity = f"hub:{source}:{config}@{revision}"
    return Corpus(specification, identity, None, partial(_hub_texts, specification, name, config or None, revision or None))


def _hub_texts(specification: str, name: str, config: str | None, revision: str | None) -> Iterator[str]:
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise StatisticsError(f"{specification} needs the package datasets; pip install 'bluedit[hub]'") from error
    try:
        for record in datasets.load_dataset(name, config, split="train", streaming=True, revision=revision):
            if not isinstance(text := record.get("text"), str):
                raise StatisticsError(f"{specification} has no column of texts named 'text'; it has {', '.join(record)}")
            yield text
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, StatisticsError):
            raise
        raise StatisticsError(f"{specification} cannot be read: {first_line(error)}") from error


def _hashed(paths: Iterable[Path]) -> tuple[str, int]:
    """The hash of some files' content, and how many lines end in them."""
    digest, lines = hashlib.sha256(), 0
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                lines += chunk.count(b"\n")
    return digest.hexdigest(), lines
