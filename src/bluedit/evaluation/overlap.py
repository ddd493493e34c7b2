"""How much of a reference text a generated one says again: BLEU and ROUGE recall, on lower-case words.

    BLEU      BP * exp(1/4 sum_{n=1..4} log p_n), p_n the clipped precision of n-grams, BP = min(1, exp(1 - r/c))
    ROUGE-n   clipped n-grams in common / n-grams of the reference
    ROUGE-L   longest common subsequence of words / words of the reference

(Papineni et al. 2002; Lin 2004.) A precision of 0 makes BLEU 0 (no smoothing). The code published with UnKE hands whole strings
to its BLEU, which takes them for lists of letters; :func:`bleu` of letters is what its tables show.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["bleu", "rouge_l_recall", "rouge_recall", "words"]

_ORDERS = 4


def words(text: str) -> list[str]:
    """The lower-case words of a text; punctuation is left out."""
    return re.findall(r"\w+", text.lower())


def bleu(reference: Sequence[str], text: Sequence[str]) -> float:
    """BLEU-4 of a text against one reference, in [0, 1]; of words, or of letters."""
    logs = 0.0
    for size in range(1, _ORDERS + 1):
        said, told = _grams(text, size), _grams(reference, size)
        common = (said & told).total()
        if not common:
            return 0.0
        logs += math.log(common / said.total()) / _ORDERS
    return math.exp(logs + min(0.0, 1 - len(reference) / len(text)))


def rouge_recall(reference: Sequence[str], text: Sequence[str], size: int) -> float | None:
    """ROUGE-n recall in [0, 1]; None where the reference has no n-gram of this size."""
    told = _grams(reference, size)
    return (told & _grams(text, size)).total() / told.total() if told else None


def rouge_l_recall(reference: Sequence[str], text: Sequence[str]) -> float | None:
    """ROUGE-L recall in [0, 1]; None for an empty reference. O(len(reference) * len(text))."""
    if not reference:
        return None
    lengths = [0] * (len(text) + 1)
    for word in reference:
        above = 0
        for place, other in enumerate(text, start=1):
            above, lengths[place] = lengths[place], above + 1 if word == other else max(lengths[place], lengths[place - 1])
    return lengths[-1] / len(reference)


def _grams(sequence: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(sequence[start : start + size]) for start in range(len(sequence) - size + 1))
