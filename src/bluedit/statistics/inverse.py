"""The inverse of a second moment, and shrinkage towards a multiple of the identity.

Shapes: F d_ff.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bluedit.errors import NumericsError

__all__ = ["invert", "shrink"]


def shrink(moment_FF: Tensor, shrinkage: float) -> Tensor:
    """(1 - a) C + a tr(C)/F I: a little of the mean eigenvalue everywhere (Ledoit-Wolf's form; a = 0 leaves C alone).

    Directions that a text never excites cost nothing in the plain C, and an update can grow without bound in them.
    """
    if shrinkage == 0:
        return moment_FF
    size = moment_FF.shape[0]
    shrunk = (1 - shrinkage) * moment_FF
    shrunk.diagonal().add_(shrinkage * moment_FF.diagonal().sum() / size)
    return shrunk


def invert(moment_FF: Tensor, shrinkage: float = 0.0, tokens: int | None = None) -> tuple[Tensor, float]:
    """The inverse of a second moment by Cholesky, after shrinkage, in float64; and its condition number to about two digits.

    **Raises** :class:`~bluedit.errors.NumericsError` when it is not positive definite, naming what would help.
    **Cost** O(F^3).
    """
    metric_FF = shrink(moment_FF.to(torch.float64), shrinkage)
    factor_FF, info = torch.linalg.cholesky_ex(metric_FF)
    if info.item() or not torch.isfinite(factor_FF).all():
        size = metric_FF.shape[0]
        seen = f"{tokens:,} tokens" if tokens else "the tokens it was taken over"
        more = f", {math.ceil(10 * size / tokens)} times as many" if tokens and tokens < 10 * size else ""
        raise NumericsError(
            f"the second moment of keys is not positive definite: {seen} leave directions of the {size:,} that no key "
            f"excites. Take it over more text (at least {10 * size:,} varied tokens{more}), or set shrinkage to 0.01 or "
            "more"
        )
    inverse_FF = torch.cholesky_inverse(factor_FF)
    return inverse_FF, _spectral_norm(metric_FF) * _spectral_norm(inverse_FF)


def _spectral_norm(matrix_FF: Tensor, iterations: int = 40) -> float:
    """The largest eigenvalue of a positive definite matrix by power iteration: O(F^2) where eigenvalues cost O(F^3)."""
    generator = torch.Generator().manual_seed(0)
    vector_F = torch.randn(matrix_FF.shape[0], generator=generator, dtype=torch.float64).to(matrix_FF)
    norm = 0.0
    for _ in range(iterations):
        vector_F = matrix_FF @ (vector_F / vector_F.norm())
        norm = vector_F.norm().item()
    return norm
