"""One closed form for the whole family: recursive least squares over keys.

*Concept.* Every method weighs changes of a layer's map by a prior metric over keys, M (for MEMIT lambda C, the second
moment of what the layer stores). The best change D for new keys K1 and residuals R minimises

    || D K1 - R ||^2 + eps tr(D M D^T)            (MEMIT eq. 10-14 with M = lambda C, eps = 1)

*Mechanism.* With B = M^-1 the minimiser has rank at most N:

    G = (eps I_N + K1^T B K1)^-1        Q = B K1 G        D = R Q^T

Woodbury's identity shows D = R K1^T (M + K1 K1^T)^-1 for eps = 1, the textbook form. Only an N x N system is solved
per batch. Absorbing the keys into the prior, M' = M + K1 K1^T, is the recursive least-squares update

    B' = B - Q (K1^T B)

so a sequence with past keys costs the same per batch however long it grows.

Shapes: D d_model, F d_ff, N facts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bluedit.errors import NumericsError
from bluedit.statistics import shrink

__all__ = ["InverseMetric"]


@dataclass
class InverseMetric:
    """B, the inverse of the metric over keys of one layer: F x F, float64, symmetric positive semidefinite.

    `condition` is the metric's condition number before anything was absorbed, to about two digits.
    """

    matrix_FF: Tensor
    condition: float = float("nan")

    @classmethod
    def from_second_moment(
        cls, moment_FF: Tensor, weight: float, *, shrinkage: float = 0.0, tokens: int | None = None
    ) -> InverseMetric:
        """B = (lambda C)^-1 by Cholesky; lambda is `weight`, C is shrunk first.

        **Raises** :class:`~bluedit.errors.NumericsError` when C is not positive definite, naming what would help.
        **Cost** O(F^3), once per layer.
        """
        metric_FF = weight * shrink(moment_FF.to(torch.float64), shrinkage)
        factor_FF, info = torch.linalg.cholesky_ex(metric_FF)
        if info.item() or not torch.isfinite(factor_FF).all():
            size = metric_FF.shape[0]
            seen = f"{tokens:,} tokens" if tokens else "the tokens it was taken over"
            raise NumericsError(
                f"the second moment of keys is not positive definite: {seen} leave directions of the {size:,} that no key "
                f"excites. Take it over more text (at least {10 * size:,} varied tokens), or set shrinkage to 0.01 or more"
            )
        inverse_FF = torch.cholesky_inverse(factor_FF)
        return cls(inverse_FF, _spectral_norm(metric_FF) * _spectral_norm(inverse_FF))

    def gain(self, keys_FN: Tensor, *, noise: float = 1.0, names: tuple[str, ...] = ()) -> Tensor:
        """Q (F x N): the change D = R Q^T stores residuals R (D x N) at `keys_FN`.

        **Arguments**

        - `noise`: eps; 1 for least squares, 0 to meet the residuals exactly (EMMET, ROME).
        - `names`: the facts, for the error message.

        **Raises** :class:`~bluedit.errors.NumericsError` when eps = 0 and two keys nearly coincide.
        **Cost** O(F^2 N + F N^2).
        """
        keys_FN = keys_FN.to(self.matrix_FF)
        projected_FN = self.matrix_FF @ keys_FN
        gram_NN = keys_FN.T @ projected_FN
        gram_NN = (gram_NN + gram_NN.T) / 2
        gram_NN.diagonal().add_(noise)
        factor_NN, info = torch.linalg.cholesky_ex(gram_NN)
        if info.item() or _nearly_singular(factor_NN):
            one, other = _most_alike(gram_NN)
            who = f"facts {names[one]!r} and {names[other]!r}" if names else f"columns {one} and {other}"
            raise NumericsError(
                f"the keys of {who} nearly coincide, and eps = 0 asks for both residuals to be met exactly; edit them in "
                "separate batches, leave one out, or choose a method with eps = 1 (memit)"
            )
        return torch.cholesky_solve(projected_FN.T, factor_NN).T

    def absorb(self, keys_FN: Tensor, gain_FN: Tensor) -> None:
        """Make `keys_FN` past keys: B <- B - Q (K1^T B), in place, kept symmetric. Needs Q for eps = 1. O(F^2 N)."""
        if not keys_FN.shape[1]:
            return
        projected_FN = self.matrix_FF @ keys_FN.to(self.matrix_FF)
        self.matrix_FF.addmm_(gain_FN.to(self.matrix_FF), projected_FN.T, alpha=-1)
        self.matrix_FF.add_(self.matrix_FF.T.clone()).mul_(0.5)


def _spectral_norm(matrix_FF: Tensor, iterations: int = 40) -> float:
    """The largest eigenvalue of a positive definite matrix by power iteration: O(F^2) where eigenvalues cost O(F^3)."""
    generator = torch.Generator().manual_seed(0)
    vector_F = torch.randn(matrix_FF.shape[0], generator=generator, dtype=torch.float64).to(matrix_FF)
    norm = 0.0
    for _ in range(iterations):
        vector_F = matrix_FF @ (vector_F / vector_F.norm())
        norm = vector_F.norm().item()
    return norm


def _nearly_singular(factor_NN: Tensor) -> bool:
    """Whether a Cholesky factor has lost all of double precision's digits in some direction."""
    if not factor_NN.numel():
        return False
    diagonal = factor_NN.diagonal()
    return not bool(torch.isfinite(diagonal).all()) or bool((diagonal.min() / diagonal.max()) ** 2 < 1e-13)


def _most_alike(gram_NN: Tensor) -> tuple[int, int]:
    scale = gram_NN.diagonal().clamp_min(torch.finfo(gram_NN.dtype).tiny).sqrt()
    cosine = (gram_NN / scale[:, None] / scale[None, :]).abs().fill_diagonal_(-1)
    index = int(cosine.argmax())
    return tuple(sorted(divmod(index, gram_NN.shape[0])))  # type: ignore[return-value]
