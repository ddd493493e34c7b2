"""The loss of a value: pure functions of logits and delta, one result per fact.

Shapes: N facts, B rows, T target tokens over all rows, V vocabulary, D d_model. Everything is float32, or float64 in
float64 models.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kl_divergence", "target_nll", "weight_decay"]


def target_nll(logits_TV: Tensor, tokens_T: Tensor, rows_T: Tensor, rows: int) -> Tensor:
    """-log p(target | prompt) / |target tokens| of each row, (rows,): ROME eq. 4 per prompt, teacher forced.

    `rows_T` says which row a target token belongs to.
    """
    nll_T = torch.nn.functional.cross_entropy(logits_TV, tokens_T, reduction="none")
    sums = nll_T.new_zeros(rows).index_add(0, rows_T, nll_T)
    return sums / torch.bincount(rows_T, minlength=rows).clamp_min(1)


def kl_divergence(log_probs_NV: Tensor, original_NV: Tensor) -> Tensor:
    """KL(p_edited || p_original) of each fact, in nats, from log-probabilities; (N,)."""
    return (log_probs_NV.exp() * (log_probs_NV - original_NV)).sum(-1)


def weight_decay(delta_ND: Tensor, initial_ND: Tensor) -> Tensor:
    """||delta|| / ||h0||^2 of each fact, (N,): the norm of delta, not its square, as in the published code."""
    # The norm has no gradient at 0, where every fact starts; the published code gets 0 there from its framework, too.
    return torch.linalg.vector_norm(delta_ND, dim=-1) / initial_ND.square().sum(-1)
