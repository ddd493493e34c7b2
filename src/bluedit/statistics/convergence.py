"""How well a second moment has converged, measured while it is taken.

The documents with even numbers and those with odd ones give two moments, A and B, of texts that have nothing in common but
where they come from. What their mean C is off from the moment of endless text is about half of what separates them:

    moment = ||A - B||_F / ||A + B||_F

That says little about edits, which see C through its inverse: directions that the text hardly excites count least in the norm
and most in the inverse. So the second number compares changes. One fact with key k and residual r changes a weight by r q^T,

    q = C^-1 k / (k^T C^-1 k)        (ROME eq. 2; MEMIT's change by a single fact is a multiple of it)

and, r being the same on both sides, the relative error of the change is that of q:

    change = mean over keys k of ||q_A - q_B|| / ||q_A + q_B||

Both fall with the square root of the number of tokens, once there are more tokens than directions. The keys are taken from the
text itself.

Shapes: F d_ff, P probed keys.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from bluedit.statistics.inverse import shrink

__all__ = ["PROBES", "Point", "is_due", "measure"]

PROBES = 64
"""How many keys the changes are compared for."""
_SHRINKAGE = 0.01
"""Without any, halves of a short text are singular, and the first points of the curve would be missing."""


class Point(BaseModel):
    """One layer's moment after a number of documents: estimated relative errors, of C and of the change one fact makes.

    `change` is None where a half was singular.
    """

    model_config = ConfigDict(frozen=True)

    documents: int
    tokens: int
    moment: float
    change: float | None


def is_due(windows: int) -> bool:
    """Whether to measure after this many windows of documents: 1, 2, 3, 4, 6, 8, 12, ..., twice per doubling."""
    return f"{windows:b}".rstrip("0") in ("1", "11")


def measure(even_FF: Tensor, odd_FF: Tensor, probes_FP: Tensor) -> tuple[float, float | None]:
    """The relative errors `moment` and `change` of the mean of two moments; `change` is None where one is singular.

    Cost: two Cholesky factorisations, O(F^3) each.
    """
    moment = ((even_FF - odd_FF).norm() / (even_FF + odd_FF).norm()).item()
    one_FP, other_FP = _changes(even_FF, probes_FP), _changes(odd_FF, probes_FP)
    if one_FP is None or other_FP is None:
        return moment, None
    change_P = (one_FP - other_FP).norm(dim=0) / (one_FP + other_FP).norm(dim=0)
    return moment, change_P.mean().item()


def _changes(moment_FF: Tensor, probes_FP: Tensor) -> Tensor | None:
    factor_FF, info = torch.linalg.cholesky_ex(shrink(moment_FF, _SHRINKAGE))
    if info.item():
        return None
    solved_FP = torch.cholesky_solve(probes_FP, factor_FF)
    return solved_FP / (probes_FP * solved_FP).sum(0)
