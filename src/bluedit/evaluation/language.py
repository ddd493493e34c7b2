"""What an edit does to a model apart from its facts: held-out text, read before and after.

*Concept.* With p the unedited model's prediction of a token and q the edited one's, over the T predicted tokens of a text

    perplexity             exp(1/T sum -log q(x_t))
    its change             exp(1/T sum log p(x_t) - log q(x_t)) - 1
    KL divergence          1/T sum_t sum_v p_t(v) (log p_t(v) - log q_t(v)), in nats
    top-1 agreement        fraction of tokens at which p and q have the same most likely token

*Mechanism.* The unedited logits of a text are too many to store (T x V). What is stored is what its head was given (T x D):
the edited model's head is then handed both hidden states of a batch in one pass, so that whatever an architecture does
to its logits is done to both. No edit changes the head, or the embedding that it may share.

Shapes: B rows, T tokens, P predicted tokens of a batch, D d_model, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluedit.errors import DatasetError, NumericsError
from bluedit.evaluation.intervals import Estimate, bootstrap, pooled_share
from bluedit.models import Batch, EditableModel, Row
from bluedit.models.memory.budget import TokenBudget, in_batches

__all__ = ["HeldOutText", "TextScores", "draw_rows"]

_LOGITS = 1 << 25
"""Numbers in a batch's logits, of both models together: 128 MiB in float32, of which a few copies are made."""
_LONGEST = 512


@dataclass(frozen=True)
class TextScores:
    """A model on held-out text, compared with the unedited one; intervals over documents.

    - `perplexity`; `perplexity_before`, the unedited model's; `perplexity_change`, paired, in percent.
    - `kl`: KL(unedited || edited) per token, in nats.
    - `top1`: tokens with the same most likely token, in percent.
    """

    documents: int
    tokens: int
    perplexity: Estimate
    perplexity_before: Estimate
    perplexity_change: Estimate
    kl: Estimate
    top1: Estimate

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        estimates = {name: value.as_dict(5) for name, value in vars(self).items() if isinstance(value, Estimate)}
        return {"documents": self.documents, "tokens": self.tokens, **estimates}


@dataclass(frozen=True)
class _Sums:
    """Sums over one document's predicted tokens."""

    tokens: int
    before: float
    after: float
    kl: float
    agreed: float


def draw_rows(
    model: EditableModel, texts: Iterable[str], tokens: int, *, longest: int = _LONGEST, seed: int = 0
) -> list[tuple[int, ...]]:
    """The token ids of documents in a seeded order, as many as hold `tokens` predicted tokens, or all there are.

    A document is cut off at `longest` tokens. Its first token is predicted by nothing, and not counted. The last document is
    cut where it would go beyond `tokens`.

    **Raises** :class:`~bluedit.errors.DatasetError` where no document has two tokens.
    """
    documents = [text for text in texts if text.strip()]
    random.Random(seed).shuffle(documents)
    length = min(longest, model.context_length)
    rows: list[tuple[int, ...]] = []
    left = tokens
    for document in documents:
        ids = model.text.documents([document], length)[0][: left + 1]
        if len(ids) > 1:
            rows.append(ids)
            left -= len(ids) - 1
        if not left:
            break
    if not rows:
        raise DatasetError("held-out text", ["it holds no document of two tokens or more"])
    return rows


class HeldOutText:
    """Rows of token ids, and what the model as it is now makes of them: the reference that edits are measured against.

    **Cost** one forward pass over the rows now, and one per :meth:`scores`, with logits for two; T x D numbers are stored.

    **Arguments**

    - `rows`: see :func:`draw_rows`.
    - `token_budget`: padded tokens in one pass, at most; found from the size of the vocabulary when left out.
    - `progress`: called with the number of rows done, after each batch.
    """

    def __init__(
        self,
        model: EditableModel,
        rows: Sequence[Sequence[int]],
        *,
        token_budget: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.rows = [tuple(row) for row in rows]
        vocabulary = int(model.model.get_output_embeddings().weight.shape[0])  # type: ignore[union-attr, arg-type]
        self._budget = TokenBudget(token_budget or max(1, _LOGITS // (2 * vocabulary)))
        lengths = [len(row) for row in self.rows]
        hidden: list[Tensor | None] = [None] * len(self.rows)
        with model.frozen(), torch.no_grad():
            for chosen, states in in_batches(lengths, self._budget, lambda chosen: self._head_inputs(model, chosen)):
                for index, state_TD in zip(chosen, states, strict=True):
                    hidden[index] = state_TD.cpu().clone()
                if progress is not None:
                    progress(len(chosen))
        self._hidden = [one for one in hidden if one is not None]

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return sum(len(row) - 1 for row in self.rows)

    def scores(self, model: EditableModel, *, progress: Callable[[int], object] | None = None) -> TextScores:
        """The model as it is now, compared with the one that the reference was taken of.

        `progress`: called with the number of rows done, after each batch.

        **Raises** :class:`~bluedit.errors.NumericsError` where logits are not finite.
        """
        sums = self._sums(model, progress)
        counts = np.array([one.tokens for one in sums], dtype=float)
        before, after, kl = (np.array([getattr(one, name) for one in sums]) for name in ("before", "after", "kl"))

        def estimate(statistic: Callable[[np.ndarray], float], scale: float = 0.01) -> Estimate:
            # A bootstrap's estimates are in percent.
            found = bootstrap(len(sums), statistic)
            return Estimate(found.value * scale, found.low * scale, found.high * scale, found.n)

        def mean(values: np.ndarray, chosen: np.ndarray) -> float:
            return float(values[chosen].sum() / counts[chosen].sum())

        return TextScores(
            documents=len(sums),
            tokens=self.tokens,
            perplexity=estimate(lambda chosen: float(np.exp(mean(after, chosen)))),
            perplexity_before=estimate(lambda chosen: float(np.exp(mean(before, chosen)))),
            perplexity_change=estimate(lambda chosen: float(np.expm1(mean(after - before, chosen))), scale=1.0),
            kl=estimate(lambda chosen: mean(kl, chosen)),
            top1=pooled_share([one.agreed for one in sums], [one.tokens for one in sums]),
        )

    def _sums(self, model: EditableModel, progress: Callable[[int], object] | None) -> list[_Sums]:
        sums: list[_Sums | None] = [None] * len(self.rows)
        lengths = [len(row) for row in self.rows]
        with model.frozen(), torch.no_grad():
            for chosen, found in in_batches(lengths, self._budget, lambda chosen: self._compared(model, chosen)):
                for index, one in zip(chosen, found, strict=True):
                    sums[index] = one
                if progress is not None:
                    progress(len(chosen))
        return [one for one in sums if one is not None]

    def _compared(self, model: EditableModel, chosen: Sequence[int]) -> list[_Sums]:
        """The sums of some rows against the reference."""
        rows = [self.rows[index] for index in chosen]
        counts = [len(row) - 1 for row in rows]
        after_PD = torch.cat(self._head_inputs(model, chosen))
        before_PD = torch.cat([self._hidden[index] for index in chosen]).to(after_PD)
        logits = self._logits(model, torch.cat([before_PD, after_PD]), rows[0][0])
        if not torch.isfinite(logits).all():
            raise NumericsError("the logits of held-out text are not finite; load the model in float32 or bfloat16")
        before_PV, after_PV = logits.log_softmax(-1).chunk(2)
        tokens_P = torch.tensor([token for row in rows for token in row[1:]], device=logits.device)[:, None]
        kl_P = (before_PV.exp() * (before_PV - after_PV)).sum(-1)
        agreed_P = (before_PV.argmax(-1) == after_PV.argmax(-1)).float()
        columns = (-before_PV.gather(1, tokens_P)[:, 0], -after_PV.gather(1, tokens_P)[:, 0], kl_P, agreed_P)
        parts = torch.stack(columns).double().cpu().split(counts, dim=1)
        return [_Sums(count, *part.sum(1).tolist()) for count, part in zip(counts, parts, strict=True)]

    def _head_inputs(self, model: EditableModel, chosen: Sequence[int]) -> list[Tensor]:
        """What the head is given at every token but a row's last, (T, D) each."""
        rows = [self.rows[index] for index in chosen]
        seen: list[Tensor] = []

        def keep(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            seen.append(inputs[0])
            return (inputs[0][:1, :1], *inputs[1:])  # no logits are wanted

        self._forward(model, rows, keep)
        return [hidden[: len(row) - 1] for hidden, row in zip(seen[0], rows, strict=True)]

    def _logits(self, model: EditableModel, hidden_PD: Tensor, token: int) -> Tensor:
        """The head's logits of these hidden states, (P, V), by a pass over one token."""

        def give(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (hidden_PD[None].to(inputs[0]), *inputs[1:])

        return self._forward(model, [(token,)], give).squeeze(0).float()

    @staticmethod
    def _forward(model: EditableModel, rows: Sequence[Sequence[int]], before: Callable[..., Any]) -> Tensor:
        head: Any = model.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(before)
        try:
            return model.forward(Batch.of([Row(tuple(row)) for row in rows], model.device))
        finally:
            hook.remove()
