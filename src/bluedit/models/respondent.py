"""Who answers when an edited model is evaluated: a plain model, or one with something around it.

*Concept.* Some edits are weights, and the edited model answers by itself. Others put a sentence in front of a prompt, or send
some prompts through a side memory. Scoring does not need to know: it asks a :class:`Respondent`.

*Mechanism.* :class:`ModelRespondent` asks a model. A respondent with rewritten prompts holds another respondent, asks it the
rewritten prompts, and gives the answers back under the original ones. A respondent with hooks derives from
:class:`ModelRespondent`, sets its hooks around the calls, and says with `shares_prefixes` that its answer to a prompt does not
follow from its tokens one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from transformers import PreTrainedModel

from bluedit.models.editable import EditableModel
from bluedit.models.generation import Completion, Stop, complete, generate
from bluedit.models.likelihood import Answer, Query, answer_queries

__all__ = ["ModelRespondent", "Respondent", "Writer", "as_respondent", "as_writer"]


@runtime_checkable
class Respondent(Protocol):
    """Whatever can be evaluated."""

    def answer(
        self,
        queries: Sequence[Query],
        *,
        progress: Callable[[int], object] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Mapping[Query, Answer]:
        """An answer to every (prompt, target) pair, under that pair; queries may repeat.

        **Arguments**

        - `progress`: called with the number of distinct queries answered since the last call.
        - `names`: what a prompt is called in messages, such as its case.
        """
        ...

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, top_k: int | None = None, seed: int = 0
    ) -> Sequence[str]:
        """Every prompt with the text that continues it, in order; in a chat the answer alone.

        **Arguments**

        - `top_k`: sample from the k most likely tokens, with this `seed`; greedy when left out.
        """
        ...


@runtime_checkable
class Writer(Protocol):
    """A respondent that also says what it wrote, token by token, and why it ended: what free generation is scored by."""

    def complete(
        self,
        prompts: Sequence[str],
        stop: Stop,
        *,
        top_k: int | None = None,
        seed: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> Sequence[Completion]:
        """A completion of every prompt, in order; see :func:`~bluedit.models.generation.complete`."""
        ...


@dataclass(frozen=True)
class ModelRespondent:
    """A model that answers as it is now: with the weights, the patches and the hooks that it has at the call.

    **Arguments**

    - `shares_prefixes`: whether what several prompts begin with in common may be run once; see
      :func:`~bluedit.models.likelihood.answer_queries`. True for plain weights, whatever was edited in them.
    """

    model: EditableModel
    shares_prefixes: bool = True

    def answer(
        self,
        queries: Sequence[Query],
        *,
        progress: Callable[[int], object] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Mapping[Query, Answer]:
        """See :func:`~bluedit.models.likelihood.answer_queries`, also for the errors."""
        return answer_queries(self.model, queries, share_prefixes=self.shares_prefixes, progress=progress, names=names)

    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int, top_k: int | None = None, seed: int = 0
    ) -> Sequence[str]:
        """See :func:`~bluedit.models.generation.generate`, also for the errors."""
        return generate(self.model, prompts, max_new_tokens=max_new_tokens, top_k=top_k, seed=seed)

    def complete(
        self,
        prompts: Sequence[str],
        stop: Stop,
        *,
        top_k: int | None = None,
        seed: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> Sequence[Completion]:
        """See :func:`~bluedit.models.generation.complete`, also for the errors."""
        return complete(self.model, prompts, stop, top_k=top_k, seed=seed, progress=progress)


def as_respondent(model: EditableModel | Respondent) -> Respondent:
    """A model as a respondent; a respondent is returned as it is.

    **Raises** `TypeError` for anything else.
    """
    if isinstance(model, EditableModel):
        return ModelRespondent(model)
    given = cast("object", model)  # callers without a type checker pass other things
    if isinstance(given, Respondent):
        return given
    if isinstance(given, PreTrainedModel):
        raise TypeError("a transformers model needs its tokenizer: pass EditableModel(model, tokenizer)")
    raise TypeError(f"{type(given).__name__} cannot be evaluated: pass a model, or an object with answer() and generate()")


def as_writer(model: EditableModel | Respondent | Writer) -> Writer:
    """A model as a writer; a writer is returned as it is.

    **Raises** `TypeError` for a respondent without `complete`.
    """
    if isinstance(model, EditableModel):
        return ModelRespondent(model)
    if isinstance(model, Writer):
        return model
    raise TypeError(f"{type(model).__name__} cannot be scored on what it writes: give it complete(prompts, stop, ...)")
