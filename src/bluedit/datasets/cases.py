"""A case: one fact to edit, and the prompts that show what the edit did and what it left alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from bluedit.facts import Fact

__all__ = ["Case", "FollowUp", "Question", "fingerprint"]


@dataclass(frozen=True)
class Question:
    """A prompt and what answers it.

    `answers`: the things that have to be named, each with every name that is right for it, the usual one first.
    """

    prompt: str
    answers: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """What a data set asks beyond the fact itself: what follows from the edit, or what should be as it was.

    **Arguments**

    - `name`: the score that it counts for, such as `multi_hop` or `Logical_Generalization`.
    - `questions`: with `need` `any`, one right answer is enough; with `all`, every one has to be right.
    - `scoring`: when a question is answered right. `start`: the generated text begins with a right name (MQuAKE). `contains`:
      the generated text holds a name of everything asked for (RippleEdits). `tokens`: teacher forced, the fraction of the
      answer's tokens that are the argmax (KnowEdit, zsRE). `kept`: the same, and the fraction whose argmax is the unedited
      model's (KnowEdit's locality). `overlap`: BLEU and ROUGE of the generated text with the answer (UnKEBench).
    - `conditions`: what the unedited model has to answer right; otherwise the follow-up is left out.
    - `after_edit`: whether it is left out where the edited model does not say the new target.
    """

    name: str
    questions: tuple[Question, ...]
    scoring: Literal["start", "contains", "tokens", "kept", "overlap"]
    need: Literal["any", "all"] = "all"
    conditions: tuple[Question, ...] = ()
    after_edit: bool = False


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of a data set, whatever schema it was published in. What a row lacks is empty, and not scored.

    **Arguments**

    - `fact`: the edit.
    - `true_target`: what held before the edit; efficacy and generalization compare `fact.target` against it.
    - `paraphrases`: other ways of asking for the fact, with the subject in them: the answer should be new.
    - `neighborhood`: prompts about something else: the answer should stay `neighborhood_target`.
    - `neighborhood_target`: the true target in CounterFact, the locality answer in zsRE.
    - `attributes`: prompts about other subjects that hold the new target already.
    - `generation`: openings about the subject that do not ask for the fact; fluency and consistency are measured on
      the text that the model writes after them.
    - `scoring`: how an answer is counted right. `"probability"` compares the new and the true target (CounterFact,
      and a user's own rows); `"token_accuracy"` is the fraction of answer tokens that are the argmax (zsRE).
    - `further`: other facts that are edited together with the first (MQuAKE's chains of several edits).
    - `follow_ups`: what else is asked after the edit.
    - `extra`: what single data sets add: `target_id` (CounterFact; finds the reference texts of consistency).
    """

    fact: Fact
    true_target: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[str, ...] = ()
    neighborhood_target: str | None = None
    attributes: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    scoring: Literal["probability", "token_accuracy"] = "probability"
    further: tuple[Fact, ...] = ()
    follow_ups: tuple[FollowUp, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All facts that are to be edited."""
        return (self.fact, *self.further)


def fingerprint(cases: Iterable[Case]) -> str:
    """A hash of cases, in their order: of all that editing and scoring use of them, wherever they were read from."""
    digest = hashlib.sha256()
    for case in cases:
        digest.update(json.dumps(asdict(case), sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()[:32]
