"""The loss of a value: pure functions of logits and delta, one result per fact.

Shapes: N facts, B rows, T target tokens over all rows, P places whose logits are read, V vocabulary, D d_model. Everything
is float32, or float64 in float64 models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bluedit.precision import upcast

__all__ = ["mean_by_row", "readings", "weight_decay"]


def readings(logits_PV: Tensor, tokens_T: Tensor, original_NV: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What the loss reads off the logits: of T target tokens, then of N divergence positions, P = T + N.

    **Arguments**

    - `original_NV`: log-probabilities of the unedited model at the divergence positions; None where these are they.

    **Returns**

    - -log p(token) of each target token, (T,), in nats;
    - KL(p_edited || p_original) at each divergence position, (N,), in nats;
    - all log-probabilities, (P, V), without a gradient.

    The vocabulary is the longest axis by far: forward and backward pass over it a few times, not a dozen.
    """
    return _Readings.apply(logits_PV, tokens_T, original_NV)  # type: ignore[return-value]


class _Readings(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_PV: Tensor, tokens_T: Tensor, original_NV: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        count = len(tokens_T)
        log_probs_PV = torch.log_softmax(logits_PV, -1, dtype=upcast(logits_PV[:0]).dtype)
        nll_T = -log_probs_PV[:count].gather(1, tokens_T[:, None]).squeeze(1)
        edited_NV = log_probs_PV[count:]
        ratio_NV = edited_NV - (edited_NV if original_NV is None else original_NV)
        kl_N = (edited_NV.exp() * ratio_NV).sum(-1)
        ctx.save_for_backward(log_probs_PV, tokens_T, ratio_NV, kl_N)
        ctx.dtype = logits_PV.dtype
        ctx.mark_non_differentiable(log_probs_PV)
        return nll_T, kl_N, log_probs_PV

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """d nll / d logits = p - onehot(token); d KL / d logits = p (log p - log q - KL)."""
        log_probs_PV, tokens_T, ratio_NV, kl_N = ctx.saved_tensors
        nll_T, divergence_N, _ = gradients
        count = len(tokens_T)
        gradient_PV = log_probs_PV.exp()
        gradient_PV[:count].mul_(nll_T[:, None]).scatter_add_(1, tokens_T[:, None], -nll_T[:, None])
        gradient_PV[count:].mul_((ratio_NV - kl_N[:, None]).mul_(divergence_N[:, None]))
        return gradient_PV.to(ctx.dtype), None, None


def mean_by_row(values_T: Tensor, rows_T: Tensor, rows: int) -> Tensor:
    """The mean over each row's target tokens, (rows,), 0 where there is none; `rows_T` says which row a token belongs to."""
    sums = values_T.new_zeros(rows).index_add(0, rows_T, values_T)
    return sums / torch.bincount(rows_T, minlength=rows).clamp_min(1)


def weight_decay(delta_ND: Tensor, initial_ND: Tensor) -> Tensor:
    """||delta|| / ||h0||^2 of each fact, (N,): the norm of delta, not its square, as in the published code."""
    # The norm has no gradient at 0, where every fact starts; the published code gets 0 there from its framework, too.
    return torch.linalg.vector_norm(delta_ND, dim=-1) / initial_ND.square().sum(-1)
