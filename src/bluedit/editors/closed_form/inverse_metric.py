"""One closed form for the whole family: recursive least squares over keys.

*Concept.* Every method weighs changes of a layer's map by a prior metric over keys, M (for MEMIT lambda C, the second
moment of what the layer stores). The best change D for new keys K1 and residuals R minimises

    || D K1 - R ||^2 + eps tr(D M D^T)            (MEMIT eq. 10-14 with M = lambda C, eps = 1)

*Mechanism.* With B = M^-1 the minimiser has rank at most N:

    G = (eps I_N + K1^T B K1)^-1        Q = B K1 G        D = R Q^T

Woodbury's identity shows D = R K1^T (M + K1 K1^T)^-1 for eps = 1, the textbook form. Only an N x N system is solved
per batch. Absorbing the keys into the prior, M' = M + K1 K1^T, is the recursive least-squares update

    B' = B - Q (K1^T B)

so a sequence with past keys costs the same per batch however long it grows. The update is applied in its symmetric form
B - Z Z^T with Z = B K1 L^-T and L L^T = I_N + K1^T B K1: B stays positive semidefinite, and no second F x F matrix is made.

Shapes: D d_model, F d_ff, N facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from bluedit.errors import NumericsError

__all__ = ["InverseMetric"]


_BLOCK = 1024


@dataclass
class InverseMetric:
    """B, the inverse of the metric over keys of one layer: F x F, symmetric positive semidefinite, float64 unless asked
    otherwise.

    - `condition`: the metric's condition number before anything was absorbed, to about two digits; None where B is a projector.
    - `rank`: the number of directions that B leaves free; None where it leaves all.
    """

    matrix_FF: Tensor
    condition: float | None = None
    rank: int | None = None

    @classmethod
    def from_null_space(
        cls,
        eigenvalues_F: Tensor,
        eigenvectors_FF: Tensor,
        weight: float,
        *,
        threshold: float,
        relative: bool = False,
        shrinkage: float = 0.0,
    ) -> InverseMetric:
        """B = P / L2 with P = U U^T; U: eigenvectors of C with an eigenvalue below `threshold` (AlphaEdit).

        **Arguments**

        - `weight`: L2.
        - `relative`: the threshold counts in mean eigenvalues, tr(C)/F, instead of in C's own units. An absolute threshold
          keeps nearly every direction of one model and two thirds of another's.
        - `shrinkage`: applied to the eigenvalues; it leaves the eigenvectors as they are.

        **Raises** :class:`~bluedit.errors.NumericsError` when no direction is below the threshold.
        **Cost** O(F^2 min(r, F - r)) for rank r, given the eigenbasis.
        """
        mean = eigenvalues_F.mean()
        values_F = (1 - shrinkage) * eigenvalues_F + shrinkage * mean
        below_F = values_F < (threshold * mean if relative else threshold)
        rank, size = int(below_F.sum()), len(values_F)
        if not rank:
            smallest = values_F[0].item()
            other = "" if relative else ", or count it in mean eigenvalues with nullspace_scale=relative"
            if shrinkage:
                other = ", or lower shrinkage, which lifts every eigenvalue"
            raise NumericsError(
                f"the null space of the keys is empty: the smallest eigenvalue of their second moment is {smallest:.2e} "
                f"({smallest / mean.item():.2e} of the mean one), and none is below the threshold {threshold:g}; raise "
                f"nullspace_threshold{other}"
            )
        # The smaller of the two spaces is multiplied out.
        chosen_FR = eigenvectors_FF[:, below_F if rank <= size - rank else ~below_F].to(torch.float64)
        projector_FF = chosen_FR @ chosen_FR.T
        if rank > size - rank:
            projector_FF.neg_().diagonal().add_(1)
        projector_FF.div_(weight)
        _mirror(projector_FF)
        return cls(projector_FF, rank=rank)

    def to_dtype(self, dtype: torch.dtype) -> InverseMetric:
        """The same metric in another precision."""
        return InverseMetric(self.matrix_FF.to(dtype), self.condition, self.rank)

    def copy(self, device: torch.device | str) -> InverseMetric:
        """A copy on a device, to be changed by itself; laid out as it is in a file, so that products round alike."""
        matrix_FF = self.matrix_FF.to(device).clone(memory_format=torch.contiguous_format)
        return InverseMetric(matrix_FF, self.condition, self.rank)

    def gain(
        self, keys_FN: Tensor, *, noise: float = 1.0, readout_FN: Tensor | None = None, names: tuple[str, ...] = ()
    ) -> Tensor:
        """Q (F x N): the change D = R Q^T stores residuals R (D x N) at `keys_FN`.

        **Arguments**

        - `noise`: eps; 1 for least squares, 0 to meet the residuals exactly (EMMET, ROME).
        - `readout_FN`: the keys at which residuals are met, where those are others than the keys written to (ROME writes to the
          mean key over contexts and reads at the bare prompt's): G = (eps I + K_read^T B K1)^-1.
        - `names`: the facts, for the error message.

        **Raises** :class:`~bluedit.errors.NumericsError` when eps = 0 and two keys nearly coincide.
        **Cost** O(F^2 N + F N^2).
        """
        keys_FN = self._laid_out(keys_FN)
        projected_FN = self.matrix_FF @ keys_FN
        if readout_FN is not None:
            readout_FN = self._laid_out(readout_FN)
            system_NN = readout_FN.T @ projected_FN
            system_NN.diagonal().add_(noise)
            factor_NN, pivots_N, info = torch.linalg.lu_factor_ex(system_NN)
            # What a pivot could have been: keys that are orthogonal in the metric leave a single one that is nearly 0.
            largest = noise + (readout_FN.norm(dim=0).max() * projected_FN.norm(dim=0).max()).item()
            if info.item() or _nearly_singular(factor_NN.abs(), largest):
                _refuse_alike(keys_FN.T @ projected_FN, names)
            return torch.linalg.lu_solve(factor_NN, pivots_N, projected_FN, left=False)
        gram_NN = _symmetric(keys_FN.T @ projected_FN)
        gram_NN.diagonal().add_(noise)
        factor_NN, info = torch.linalg.cholesky_ex(gram_NN)
        if info.item() or _nearly_singular(factor_NN**2):
            _refuse_alike(gram_NN, names)
        return torch.cholesky_solve(projected_FN.T, factor_NN).T

    def absorb(self, keys_FN: Tensor) -> None:
        """Make `keys_FN` past keys: B <- (B^-1 + K1 K1^T)^-1, in place. O(F^2 N) time, O(F N) memory."""
        if not keys_FN.shape[1]:
            return
        keys_FN = self._laid_out(keys_FN)
        projected_FN = self.matrix_FF @ keys_FN
        gram_NN = _symmetric(keys_FN.T @ projected_FN)
        gram_NN.diagonal().add_(1)
        factor_NN = torch.linalg.cholesky(gram_NN)
        half_NF = torch.linalg.solve_triangular(factor_NN, projected_FN.T, upper=False)
        self.matrix_FF.addmm_(half_NF.T, half_NF, alpha=-1)
        _mirror(self.matrix_FF)

    def _laid_out(self, keys_FN: Tensor) -> Tensor:
        # Products of long rows are rounded by how their factors lie in memory: keys from a file should give the same bits.
        return keys_FN.to(self.matrix_FF).contiguous()


def _symmetric(matrix_NN: Tensor) -> Tensor:
    return (matrix_NN + matrix_NN.T) / 2


def _mirror(matrix_FF: Tensor) -> None:
    """Make a matrix that is symmetric but for rounding exactly so, in place, a block at a time."""
    size = matrix_FF.shape[0]
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        corner = matrix_FF[start:end, start:end]
        corner.copy_(_symmetric(corner))
        matrix_FF[start:end, end:] = matrix_FF[end:, start:end].T


def _nearly_singular(factor_NN: Tensor, largest: float = 0.0) -> bool:
    """Whether the pivots on a factor's diagonal show that all of its precision's digits are lost in some direction."""
    if not factor_NN.numel():
        return False
    pivots_N = factor_NN.diagonal()
    limit = 500 * torch.finfo(factor_NN.dtype).eps * max(pivots_N.max().item(), largest)
    return not bool(torch.isfinite(pivots_N).all()) or pivots_N.min().item() <= limit


def _refuse_alike(gram_NN: Tensor, names: tuple[str, ...]) -> NoReturn:
    one, other = _most_alike(gram_NN)
    if one == other:
        raise NumericsError(
            "the key of the fact has nothing in common with what it is read at in the prior's metric; rephrase its prompt, "
            "raise shrinkage, or choose r-rome"
        )
    who = f"facts {names[one]!r} and {names[other]!r}" if names else f"columns {one} and {other}"
    raise NumericsError(
        f"the keys of {who} nearly coincide, and eps = 0 asks for both residuals to be met exactly; edit them in "
        "separate batches, leave one out, or choose a method with eps = 1 (memit)"
    )


def _most_alike(gram_NN: Tensor) -> tuple[int, int]:
    if gram_NN.shape[0] == 1:
        return 0, 0
    scale = gram_NN.diagonal().clamp_min(torch.finfo(gram_NN.dtype).tiny).sqrt()
    cosine = (gram_NN / scale[:, None] / scale[None, :]).abs().fill_diagonal_(-1)
    index = int(cosine.argmax())
    return tuple(sorted(divmod(index, gram_NN.shape[0])))  # type: ignore[return-value]
