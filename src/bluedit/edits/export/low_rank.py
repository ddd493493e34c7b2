"""Changes of weights as two thin factors, which is what adapters hold: exact where the change is low rank, else by SVD.

Shapes: D d_model, F d_ff, N columns of the change, R rank of the factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bluedit.edits.changes import Change, LowRank
from bluedit.errors import PatchError, SettingsError

__all__ = ["Factors", "factor", "factor_all"]


@dataclass(frozen=True)
class Factors:
    """A change D, approximately or exactly, as `up_DR @ down_RF`: LoRA's B and A.

    - `error`: ||D - up down|| / ||D||, Frobenius norms, rounding to the factors' dtype included; 0 where D is 0.
    """

    up_DR: Tensor
    down_RF: Tensor
    error: float

    @property
    def rank(self) -> int:
        return self.up_DR.shape[1]

    def change(self) -> LowRank:
        """The change that they make, as a patch holds it."""
        return LowRank(self.up_DR.float(), self.down_RF.float().T)


def factor_all(
    changes: Mapping[str, Change], rank: int | None = None, dtype: torch.dtype = torch.float32
) -> dict[str, Factors]:
    """The factors of all changes, by weight; see :func:`factor`.

    **Raises** :class:`~bluedit.errors.PatchError` where a change is not low rank and no rank is given.
    """
    if rank is not None and rank < 1:
        raise SettingsError(f"a rank of {rank} is none; give 1 or more")
    thick = [name for name, change in changes.items() if not isinstance(change, LowRank)]
    if thick and rank is None:
        kinds = ", ".join(sorted({changes[name].kind for name in thick}))
        raise PatchError(
            f"the change of {thick[0]} is not low rank ({kinds}), so no adapter holds it exactly; add --rank R to keep the R "
            "largest singular directions (the error is printed), or export a checkpoint"
        )
    return {name: factor(change, rank, dtype) for name, change in changes.items()}


def factor(change: Change, rank: int | None = None, dtype: torch.dtype = torch.float32) -> Factors:
    """A change as two factors of at most `rank` columns.

    Without a rank the factors of a low-rank change are taken as they are. With one, or where they have more columns than the
    matrix has rows, D is replaced by its best approximation of that rank (Eckart and Young 1936): the largest singular values.
    Those of R Q^T are found without the d_model x d_ff matrix: with R = Q1 T1 and Q = Q2 T2 (thin QR) they are those of the
    N x N matrix T1 T2^T. O((D + F) N^2) in float64; O(D F min(D, F)) for changes that are masked or dense.

    Each factor takes the root of the singular values, so that both are of one size and half precision holds both.
    """
    if isinstance(change, LowRank):
        wanted = min(*change.shape, change.rank, *(() if rank is None else (rank,)))
        if wanted == change.rank:
            up_DR, down_RF = change.residual_DN, change.gain_FN.T
        else:
            up_DR, down_RF = _truncated(*_singular_vectors(change), wanted)
    else:
        wanted = min(*change.shape, *(() if rank is None else (rank,)))
        left, values, right = torch.linalg.svd(change.dense().double(), full_matrices=False)
        up_DR, down_RF = _truncated(left, values, right, wanted)
    up_DR, down_RF = up_DR.to(dtype).contiguous(), down_RF.to(dtype).contiguous()
    if not (torch.isfinite(up_DR).all() and torch.isfinite(down_RF).all()):
        raise PatchError(f"the factors of a change do not fit {str(dtype).removeprefix('torch.')}; use float32")
    return Factors(up_DR, down_RF, _error(change, up_DR, down_RF))


def _singular_vectors(change: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """U (D x N), s (N) and V^T (N x F) of R Q^T, in float64."""
    left_DN, left_NN = torch.linalg.qr(change.residual_DN.double())
    right_FN, right_NN = torch.linalg.qr(change.gain_FN.double())
    rotation_NN, values_N, turned_NN = torch.linalg.svd(left_NN @ right_NN.T, full_matrices=False)
    return left_DN @ rotation_NN, values_N, turned_NN @ right_FN.T


def _truncated(left_DN: Tensor, values_N: Tensor, right_NF: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest singular values, half of each (its root) on either side."""
    roots_R = values_N[:rank].sqrt()
    return left_DN[:, :rank] * roots_R, roots_R[:, None] * right_NF[:rank]


def _error(change: Change, up_DR: Tensor, down_RF: Tensor) -> float:
    """||D - up down|| / ||D||; the difference of two low-rank matrices is one, and its norm comes from thin QR."""
    if isinstance(change, LowRank):
        if torch.equal(up_DR.to(change.residual_DN), change.residual_DN) and torch.equal(
            down_RF.T.to(change.gain_FN), change.gain_FN
        ):
            return 0.0
        size = _norm(change.residual_DN.double(), change.gain_FN.double())
        left = torch.cat([change.residual_DN.double(), -up_DR.double()], 1)
        rest = _norm(left, torch.cat([change.gain_FN.double(), down_RF.double().T], 1))
    else:
        change_DF = change.dense().double()
        size = change_DF.norm().item()
        rest = (change_DF - up_DR.double() @ down_RF.double()).norm().item()
    return rest / size if size else 0.0


def _norm(left_DN: Tensor, right_FN: Tensor) -> float:
    """||left right^T||. From triangular factors, not from Gram matrices: those square what cancels."""
    return (torch.linalg.qr(left_DN).R @ torch.linalg.qr(right_FN).R.T).norm().item()
