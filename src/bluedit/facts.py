"""A fact: one requested edit, and what makes a set of them impossible to edit together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from bluedit.errors import FactError, SettingsError, did_you_mean, excerpt, shortened

__all__ = ["CONFLICT_FIX", "Fact", "OnConflict", "check_facts", "check_on_conflict", "conflicts", "settle", "told_relation"]

OnConflict = Literal["error", "last", "keep"]
"""What becomes of facts that give one question two targets: they are refused, the later one wins, or all are edited."""


CONFLICT_FIX = "use --on-conflict last (the later one counts) or keep (both do); on_conflict= in Python"
_SHOWN = 10
"""Pairs of facts that a message tells."""


@dataclass(frozen=True)
class Fact:
    """One requested edit: after `prompt`, with the subject in place of `{}`, the model should say `target`.

    **Arguments**

    - `prompt`: text up to where the target is due. Holds `{}` where the subject goes, or the subject itself: then
      its last whole-word occurrence is the subject's place.
    - `subject`: what the fact is about. The edit is keyed on the subject's last token.
    - `target`: the new object, without a leading space.
    - `id`: names the fact in reports; empty until :func:`check_facts` or a reader numbers it.
    - `relation`: what the prompt asks, when it is known by a name. Two prompts of one relation are then seen to
      ask the same thing.

    **Raises** :class:`~bluedit.errors.FactError` when a part is empty or the subject is not in the prompt.
    """

    prompt: str
    subject: str
    target: str
    id: str = ""
    relation: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "subject", "target"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise FactError(f"the {name} is {excerpt(text)}; it must be text")
            if not text.strip():
                raise FactError(f"the {name} is empty; give it some text")
        # A space at the end of a subject would make the token after it look like the subject's last.
        object.__setattr__(self, "subject", self.subject.strip())
        object.__setattr__(self, "target", self.target.strip())
        object.__setattr__(self, "prompt", _with_placeholder(self.prompt, self.subject))

    @property
    def text(self) -> str:
        """The prompt with the subject in it."""
        return self.prompt.replace("{}", self.subject)

    def subject_span(self, template: str = "{}") -> tuple[str, int, int]:
        """The prompt inside a context template, and the characters that the subject takes up in it.

        Where the prompt holds the subject more than once the last occurrence counts: it has seen the most.
        """
        before = self.prompt.rpartition("{}")[0]
        context, _, rest = template.partition("{}")
        start = len(context) + len(before.replace("{}", self.subject))
        return f"{context}{self.text}{rest}", start, start + len(self.subject)

    @classmethod
    def from_value(cls, value: Fact | dict[str, Any]) -> Fact:
        """A fact from a mapping with the names of the arguments, or the fact itself."""
        if isinstance(value, Fact):
            return value
        unknown = set(value) - set(cls.__dataclass_fields__)
        if unknown:
            raise FactError(f"a fact has no {', '.join(sorted(unknown))}; it takes {', '.join(cls.__dataclass_fields__)}")
        missing = {"prompt", "subject", "target"} - set(value)
        if missing:
            raise FactError(f"the fact {excerpt(value, 200)} lacks {', '.join(sorted(missing))}")
        return cls(**value)


def _with_placeholder(prompt: str, subject: str) -> str:
    if "{}" in prompt:
        return prompt
    whole_words = [match.start() for match in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)]
    start = whole_words[-1] if whole_words else prompt.rfind(subject)
    if start < 0:
        raise FactError(
            f"the subject {excerpt(subject)} is not in the prompt {excerpt(prompt)}; put {{}} where the subject belongs, "
            "or spell the subject as the prompt does"
        )
    return f"{prompt[:start]}{{}}{prompt[start + len(subject) :]}"


def conflicts(facts: Sequence[Fact]) -> list[tuple[int, int]]:
    """Pairs of positions whose facts give one subject and relation two different targets.

    The relation is the fact's own when it has one, else its prompt: the same question about the same subject.
    """
    first: dict[tuple[str, str], int] = {}
    pairs: list[tuple[int, int]] = []
    for position, fact in enumerate(facts):
        questions = [question for question in (fact.relation, fact.prompt) if question]
        earlier = {first.setdefault((fact.subject, question), position) for question in questions}
        pairs += [(other, position) for other in sorted(earlier) if facts[other].target != fact.target][:1]
    return pairs


def told_relation(one: Fact, other: Fact) -> str:
    """Why two facts that contradict each other ask the same, where their prompts do not show it."""
    if one.prompt == other.prompt:
        return ""
    return (
        f" (by their prompts {excerpt(one.text)} and {excerpt(other.text)} they differ; both are of the relation "
        f"{excerpt(other.relation)}, and so ask the same)"
    )


def check_on_conflict(value: str) -> OnConflict:
    """**Raises** :class:`~bluedit.errors.SettingsError` for anything that is not one of :data:`OnConflict`."""
    for known in get_args(OnConflict):
        if value == known:
            return known
    raise SettingsError(did_you_mean(str(value), get_args(OnConflict), what="on_conflict"))


def settle(facts: Sequence[Fact]) -> list[int]:
    """The positions that remain, in order, where of facts that contradict each other the later one wins."""
    kept: list[int] = []
    targets: dict[tuple[str, str], str] = {}
    for position in range(len(facts) - 1, -1, -1):
        fact = facts[position]
        questions = [(fact.subject, question) for question in (fact.relation, fact.prompt) if question]
        if all(targets.get(question, fact.target) == fact.target for question in questions):
            kept.append(position)
            targets |= dict.fromkeys(questions, fact.target)
    return kept[::-1]


def _free_id(position: int, taken: Container[str]) -> str:
    """The position as an id; with a sign in front where somebody chose that number as a name."""
    return str(position) if str(position) not in taken else f"#{position}"


def check_facts(facts: Iterable[Fact | dict[str, Any]], start: int = 0, on_conflict: OnConflict = "error") -> tuple[Fact, ...]:
    """The facts with an id each, without repetitions; refused when two of them contradict each other.

    Those without an id are numbered by their position, counted from `start`. With `on_conflict="last"` the later of two that
    contradict each other stays; with `"keep"` both do.

    **Raises** :class:`~bluedit.errors.FactError` naming the facts that conflict.
    """
    unique: dict[tuple[str, str, str], Fact] = {}
    positions: dict[tuple[str, str, str], int] = {}
    for position, value in enumerate(facts, start):
        fact = Fact.from_value(value)
        question = (fact.subject, fact.prompt, fact.target)
        if on_conflict == "last":  # what was said again was said later
            unique.pop(question, None)
            positions.pop(question, None)
        unique.setdefault(question, fact)
        positions.setdefault(question, position)
    given = Counter(fact.id for fact in unique.values() if fact.id)
    if repeated := [name for name, count in given.items() if count > 1]:
        raise FactError(f"several facts have the id {excerpt(repeated[0])}; ids name facts in reports and must differ")
    checked = tuple(
        fact if fact.id else replace(fact, id=_free_id(positions[question], given)) for question, fact in unique.items()
    )
    if on_conflict == "last":
        return tuple(checked[position] for position in settle(checked))
    pairs = conflicts(checked) if on_conflict == "error" else []
    problems = [
        f"facts {shortened(checked[one].id, 60)} and {shortened(checked[other].id, 60)} give {excerpt(checked[other].subject)} "
        f"two targets for {excerpt(checked[other].text)}: {excerpt(checked[one].target)} and {excerpt(checked[other].target)}"
        f"{told_relation(checked[one], checked[other])}"
        for one, other in pairs[:_SHOWN]
    ]
    if problems:
        more = f"; and {len(pairs) - _SHOWN:,} more such pairs" if len(pairs) > _SHOWN else ""
        raise FactError(f"{'; '.join(problems)}{more}; keep one of them, or {CONFLICT_FIX}")
    return checked
