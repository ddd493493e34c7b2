"""A case: one fact to edit, and the prompts that show what the edit did and what it left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bluedit.facts import Fact

__all__ = ["Case"]


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
    - `extra`: what single data sets add: `target_id` (CounterFact; finds the reference texts of consistency),
      `portability_question` and `portability_answer` (zsRE, in the few records where they fit the target).
    """

    fact: Fact
    true_target: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[str, ...] = ()
    neighborhood_target: str | None = None
    attributes: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    scoring: Literal["probability", "token_accuracy"] = "probability"
    extra: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
