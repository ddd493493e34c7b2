"""When a generated text answers a question: normalised matches (SQuAD's normalisation, as in WILD, arXiv 2502.11177).

A text and a name are normalised alike: lower case, no punctuation, no articles, single spaces. The name then has to be the
whole text (`exact`), its first words (`start`), or words somewhere in it (`contains`). In WILD a text that repeats itself is
wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

__all__ = ["MATCHES", "Match", "matches", "normalised", "repeats"]

Match = Literal["exact", "start", "contains"]
MATCHES: tuple[Match, ...] = ("exact", "start", "contains")
"""The strictest first: a text that matches by one matches by those after it."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces between words.

    An answer of articles alone ("The The") keeps them, and one of punctuation alone its signs.
    """
    lower = unicodedata.normalize("NFC", text).lower()
    kept = "".join(" " if unicodedata.category(sign).startswith("Z") else sign for sign in lower if not _punctuation(sign))
    words = " ".join(_ARTICLES.sub(" ", kept).split())
    return words or " ".join(kept.split()) or lower.strip()


def matches(text: str, names: Iterable[str], how: Match, *, repeating: bool = False) -> bool:
    """Whether a generated text is one of the names, begins with it, or holds it, all of them normalised.

    A text that repeats itself answers nothing, unless it is the name that does, or it may be `repeating`.
    """
    said = normalised(text)
    wanted = [normalised(name) for name in names]
    if how == "exact":
        return said in wanted
    found = [name for name in wanted if _at_start(said, name) or (how == "contains" and _inside(said, name))]
    return any(repeating or repeats(name) or not repeats(said) for name in found)


def repeats(text: str) -> bool:
    """Whether some words come twice in a row: "Paris Paris", "in Rome, in Rome"."""
    words = normalised(text).split()
    return any(
        words[start : start + length] == words[start + length : start + 2 * length]
        for length in range(1, len(words) // 2 + 1)
        for start in range(len(words) - 2 * length + 1)
    )


def _punctuation(sign: str) -> bool:
    return unicodedata.category(sign)[0] in "PS"


def _at_start(said: str, name: str) -> bool:
    return said.startswith(name) and _ends_word(said, len(name))


def _inside(said: str, name: str) -> bool:
    places = [found.start() for found in re.finditer(re.escape(name), said)]
    return any(_ends_word(said, place) and _ends_word(said, place + len(name)) for place in places)


def _ends_word(text: str, place: int) -> bool:
    """Whether a word may end before this place: at spaces and at the ends, and anywhere in scripts without spaces."""
    if place in (0, len(text)):
        return True
    around = text[place - 1 : place + 1]
    return " " in around or any(unicodedata.east_asian_width(sign) in "WF" for sign in around)
