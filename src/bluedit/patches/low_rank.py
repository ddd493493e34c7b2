"""Low-rank weight changes D = R Q^T, kept as factors.

Shapes: D d_model, F d_ff, N facts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LowRank"]


@dataclass(frozen=True)
class LowRank:
    """A change of one weight: `residual_DN` (D x N) times the transpose of `gain_FN` (F x N), both float32.

    Column n of both is fact n's: the change is a sum over facts.
    """

    residual_DN: Tensor
    gain_FN: Tensor

    def __post_init__(self) -> None:
        if self.residual_DN.ndim != 2 or self.gain_FN.ndim != 2 or self.residual_DN.shape[1] != self.gain_FN.shape[1]:
            raise ValueError(
                f"factors of shapes {tuple(self.residual_DN.shape)} and {tuple(self.gain_FN.shape)} do not belong together"
            )

    @classmethod
    def of(cls, residual_DN: Tensor, gain_FN: Tensor) -> LowRank:
        """The change with these factors, rounded to float32: what is stored is what is installed."""
        return cls(residual_DN.to(torch.float32), gain_FN.to(torch.float32))

    @property
    def rank(self) -> int:
        """The number of columns: the rank is at most this."""
        return self.residual_DN.shape[1]

    def dense(self) -> Tensor:
        """D, d_model x d_ff, float32. O(D F N)."""
        return self.residual_DN @ self.gain_FN.T

    def norm(self) -> float:
        """The Frobenius norm of D, from N x N Gram matrices alone."""
        residual_NN = self.residual_DN.double().T @ self.residual_DN.double()
        gain_NN = self.gain_FN.double().T @ self.gain_FN.double()
        return (residual_NN * gain_NN).sum().clamp_min(0).sqrt().item()

    def add_to(self, weight_DF: Tensor) -> None:
        """weight += D in place: computed in float32, rounded once to the weight's dtype."""
        change_DF = self.residual_DN.to(weight_DF.device) @ self.gain_FN.to(weight_DF.device).T
        weight_DF.copy_(change_DF.add_(weight_DF.float()))

    def subtract_from(self, weight_DF: Tensor) -> None:
        """weight -= D in place; not the exact inverse of :meth:`add_to`, which rounds."""
        LowRank(-self.residual_DN, self.gain_FN).add_to(weight_DF)
