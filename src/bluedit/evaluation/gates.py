"""What to look at before an edit, and what to measure after it: gates that an edit passes or fails.

Before: facts that the model says already, facts that share one key, subjects that fall into too many tokens. After: facts that
did not take (:mod:`bluedit.evaluation.verifying`), and damage, the loss of specificity and of perplexity on held-out text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bluedit.datasets.cases import Case
from bluedit.errors import DatasetError, shortened
from bluedit.evaluation.intervals import Estimate
from bluedit.evaluation.language import HeldOutText, draw_rows
from bluedit.evaluation.scoring import compare, score_cases
from bluedit.evaluation.verifying import verify_facts
from bluedit.facts import Fact
from bluedit.models import EditableModel

__all__ = ["Caution", "Damage", "DamageGate", "cautions"]

_SHOWN = 5
_FRAGMENTED = 0.75
_FEW_TOKENS = 6


@dataclass(frozen=True)
class Caution:
    """Something about the facts of an edit that is worth knowing before it is made.

    - `kind`: `believed`, `same-key` or `fragmented`.
    - `facts`: their ids. `text`: one sentence, with what to do.
    """

    kind: str
    facts: tuple[str, ...]
    text: str


def cautions(model: EditableModel, facts: Sequence[Fact], batch_size: int | None = None) -> tuple[Caution, ...]:
    """What is worth knowing about facts before a model is edited with them.

    **Arguments**

    - `batch_size`: how many are edited together; all when left out.

    **Cost** one forward pass over the prompts.
    """
    size = batch_size or max(1, len(facts))
    batches = [facts[start : start + size] for start in range(0, len(facts), size)]
    found = [
        *_believed(model, facts),
        *(one for batch in batches for one in _same_key(model, batch)),
        *_fragmented(model, facts),
    ]
    return tuple(found)


def _believed(model: EditableModel, facts: Sequence[Fact]) -> Iterable[Caution]:
    ids = tuple(one.fact.id for one in verify_facts(model, facts, explain=False) if one.holds)
    if ids:
        yield Caution(
            "believed",
            ids,
            f"the model says {_count(ids, 'fact')} already ({_named(ids)}); writing {'it' if len(ids) == 1 else 'them'} again "
            "changes the weights for little: leave out what you do not need",
        )


def _same_key(model: EditableModel, facts: Sequence[Fact]) -> Iterable[Caution]:
    """Facts whose prompts are the same up to the subject's last token: there the model cannot tell them apart."""
    groups: dict[tuple[int, ...], list[Fact]] = {}
    for fact in facts:
        row = model.text.row(fact)
        groups.setdefault(row.ids[: row.subject + 1], []).append(fact)
    for group in groups.values():
        if len(group) > 1:
            ids = tuple(fact.id for fact in group)
            yield Caution(
                "same-key",
                ids,
                f"facts {_named(ids)} have one key, because their prompts begin alike up to the end of "
                f"{shortened(group[0].subject, 60)}: one vector has to answer them all. Edit them one after the other "
                "(--batch-size 1), or put words in front of the subject that tell them apart",
            )


def _fragmented(model: EditableModel, facts: Sequence[Fact]) -> Iterable[Caution]:
    """Subjects of nearly as many tokens as characters, or with unknown ones."""
    ids: list[str] = []
    unknown = model.tokenizer.unk_token_id
    if unknown in (model.tokenizer.eos_token_id, model.tokenizer.bos_token_id):
        unknown = None  # GPT-2's, which stands for nothing
    for fact in facts:
        tokens, places = model.text.subject_tokens(*fact.subject_span())
        held = [tokens[place] for place in places]
        fragments = len(held) >= _FEW_TOKENS and len(held) >= _FRAGMENTED * len(fact.subject)
        if fragments or (unknown is not None and unknown in held):
            ids.append(fact.id)
    if ids:
        yield Caution(
            "fragmented",
            tuple(ids),
            f"the tokenizer does not know the subjects of {_count(ids, 'fact')} ({_named(ids)}), and cuts them into single "
            "characters or unknown tokens: such edits generalise badly. Check the spelling, or use a name that the model knows",
        )


def _count(ids: Sequence[str], what: str) -> str:
    return f"{len(ids)} {what}{'' if len(ids) == 1 else 's'}"


def _named(ids: Sequence[str]) -> str:
    rest = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(shortened(one, 40) for one in ids[:_SHOWN]) + rest


@dataclass(frozen=True)
class Damage:
    """What an edit did to what it should have left alone.

    - `specificity`: points of NS lost (below 0: won), paired over cases; None where no case has neighborhood prompts.
    - `perplexity`: its change on held-out text in percent; `kl`: KL(unedited || edited) per token, in nats. None without text.
    """

    specificity: Estimate | None = None
    perplexity: Estimate | None = None
    kl: Estimate | None = None

    def exceeds(self, limit: float) -> str | None:
        """What is beyond the limit, in one sentence; None where nothing is.

        `limit`: points of specificity, and percent of perplexity.
        """
        told: list[str] = []
        if self.specificity is not None and self.specificity.value > limit:
            told.append(f"specificity fell by {self.specificity.value:.1f} points")
        if self.perplexity is not None and not self.perplexity.value <= limit:
            told.append(f"perplexity of held-out text rose by {self.perplexity.value:.1f} %")
        return f"{' and '.join(told)}; {limit:g} are allowed" if told else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what was not measured is left out."""
        return {name: value.as_dict(5) for name, value in vars(self).items() if value is not None}


class DamageGate:
    """Measures the unedited model when it is made, and an edited one afterwards.

    **Arguments**

    - `cases`: those with neighborhood prompts are scored.
    - `texts`: held-out documents, of which `tokens` predicted tokens are read; None for none.

    **Raises** :class:`~bluedit.errors.DatasetError` where there is nothing to measure.
    """

    def __init__(
        self,
        model: EditableModel,
        cases: Sequence[Case],
        texts: Iterable[str] | None = None,
        *,
        tokens: int = 6000,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self._cases = [case for case in cases if case.neighborhood and case.neighborhood_target]
        if not self._cases and texts is None:
            raise DatasetError(
                "damage",
                ["no fact has neighborhood prompts with their answers, and no text was given: add either to measure damage"],
            )
        self._before = score_cases(model, self._cases, progress=progress) if self._cases else None
        self._text = None if texts is None else HeldOutText(model, draw_rows(model, texts, tokens))

    def measure(self, model: EditableModel, *, progress: Callable[[int, int], object] | None = None) -> Damage:
        """The damage to a model as it is now, compared with how it was."""
        specificity = None
        if self._before is not None:
            after = score_cases(model, self._cases, progress=progress)
            specificity = compare(self._before, after, "NS")
        if self._text is None:
            return Damage(specificity)
        text = self._text.scores(model)
        return Damage(specificity, text.perplexity_change, text.kl)
