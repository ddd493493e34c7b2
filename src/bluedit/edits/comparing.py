"""Two edits side by side: which facts each has, which they answer differently, and how far apart their changes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bluedit.edits.base import Edit
from bluedit.facts import Fact, conflicts

__all__ = ["EditDifference", "WeightDifference", "compare_edits"]

_COMPARED = ("configuration", "method", "strategy", "layers", "settings", "templates", "chat", "seed", "corpus", "samples")


@dataclass(frozen=True)
class WeightDifference:
    """The changes A and B of one weight: ||A||, ||B||, ||A - B||, and their cosine <A, B> / (||A|| ||B||), 0 where one is 0."""

    first: float
    second: float
    distance: float
    cosine: float


@dataclass(frozen=True)
class EditDifference:
    """What tells two edits apart.

    - `only_first`, `only_second`: facts that the other one has in no form.
    - `retargeted`: pairs of facts that ask the same of one subject and give it different targets.
    - `both`: how many facts are in both.
    - `options`: by name what the edits were made with, where that differs.
    - `weights`: by the weight's name.
    """

    only_first: tuple[Fact, ...]
    only_second: tuple[Fact, ...]
    retargeted: tuple[tuple[Fact, Fact], ...]
    both: int
    options: Mapping[str, tuple[object, object]]
    weights: Mapping[str, WeightDifference]


def compare_edits(first: Edit, second: Edit) -> EditDifference:
    """How two edits differ; no model is needed. Facts are the same where subject, prompt and target are."""
    count, facts = len(first.facts), (*first.facts, *second.facts)
    said = [{(fact.subject, fact.prompt, fact.target) for fact in edit.facts} for edit in (first, second)]
    pairs = [(one, other) for one, other in conflicts(facts) if one < count <= other]
    contested = {place for pair in pairs for place in pair}
    alone = {
        place
        for place, fact in enumerate(facts)
        if place not in contested and (fact.subject, fact.prompt, fact.target) not in said[place < count]
    }
    made = [edit.manifest.model_dump() for edit in (first, second)]
    return EditDifference(
        only_first=tuple(facts[place] for place in sorted(alone) if place < count),
        only_second=tuple(facts[place] for place in sorted(alone) if place >= count),
        retargeted=tuple((facts[one], facts[other]) for one, other in pairs),
        both=len(said[0] & said[1]),
        options={name: (made[0][name], made[1][name]) for name in _COMPARED if made[0][name] != made[1][name]},
        weights={name: _weight(first, second, name) for name in sorted({*first.changes, *second.changes})},
    )


def _weight(first: Edit, second: Edit, name: str) -> WeightDifference:
    changes = [edit.changes[name].dense().double() if name in edit.changes else None for edit in (first, second)]
    one, other = changes
    if one is not None and other is not None and one.shape == other.shape:
        sizes = one.norm().item(), other.norm().item()
        product = (one * other).sum().item()
        cosine = product / (sizes[0] * sizes[1]) if all(sizes) else 0.0
        return WeightDifference(*sizes, (one - other).norm().item(), cosine)
    sizes = (0.0 if one is None else one.norm().item(), 0.0 if other is None else other.norm().item())
    return WeightDifference(*sizes, (sizes[0] ** 2 + sizes[1] ** 2) ** 0.5, 0.0)
