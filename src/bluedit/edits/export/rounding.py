"""What a type of numbers leaves of a change: the rounding error of the changed weight against the change.

A quantised weight moves in steps. An edit smaller than the step is partly rounded away, and rounding the rest of the matrix
adds noise. Both are measured on the weight itself: E = stored(W + D) - (W + D).

Shapes: D d_model, F d_ff, N columns of the change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bluedit.edits.changes import Change, LowRank, Masked
from bluedit.edits.export.gguf_files import blocks_of, find_type
from bluedit.errors import ModelError

__all__ = ["LOSSLESS", "LOST", "Rounding", "choose_type", "measure", "survives"]

LOSSLESS = ("f16", "f32")
"""Types to choose from where none is asked for, the smallest first."""
_KEEPS = 0.02
"""||E|| / ||D|| up to which a type counts as one that does not lose the edit."""
LOST = 0.1
"""||E V|| / ||D|| from which on an edit is warned about; see :class:`Rounding`."""


@dataclass(frozen=True)
class Rounding:
    """What storing a changed weight in a type does to the change.

    - `array`: as it is stored.
    - `error`: ||E|| / ||D||, Frobenius norms: the rounding of the whole matrix.
    - `error_at_keys`: ||E V|| / ||D||, with V an orthonormal basis of the directions that D reads: what keys that D answers to
      see of it. Rounding goes in all F directions, and D reads N of them.
    """

    array: np.ndarray
    error: float
    error_at_keys: float


def measure(weight_DF: Tensor, change: Change, kind: str) -> Rounding:
    """Store W + D in a type, and compare.

    **Raises** :class:`~bluedit.errors.ModelError` where rows cannot be cut into the blocks of the type, or numbers overflow it.
    """
    import gguf

    number = find_type(kind)
    if not blocks_of(weight_DF.shape[1], number):
        size = gguf.GGML_QUANT_SIZES[number][0]
        raise ModelError(
            f"rows of {weight_DF.shape[1]} numbers cannot be cut into blocks of {size}, as {kind} needs; use --type f16 or f32"
        )
    changed_DF = weight_DF.float().clone()
    change.add_to(changed_DF)
    with np.errstate(over="ignore"):
        array = gguf.quants.quantize(changed_DF.numpy(), number)
    back_DF = torch.from_numpy(np.array(gguf.quants.dequantize(array, number), dtype=np.float32)).reshape(changed_DF.shape)
    if not bool(torch.isfinite(back_DF).all()):
        raise ModelError(f"the changed weight does not fit {kind}; use --type bf16 or f32")
    error_DF = (back_DF - changed_DF).double()
    size = change.norm()
    if not size:
        return Rounding(array, 0.0, 0.0)
    basis_FN = _directions(change)
    return Rounding(array, error_DF.norm().item() / size, (error_DF @ basis_FN).norm().item() / size)


def _directions(change: Change) -> Tensor:
    """An orthonormal basis of the directions that a change reads, F x N; of those of its factors where it is masked."""
    factors = change.factors if isinstance(change, Masked) else change
    if isinstance(factors, LowRank):
        return torch.linalg.qr(factors.gain_FN.double()).Q
    return torch.linalg.svd(change.dense().double(), full_matrices=False).Vh.T


def choose_type(weight_DF: Tensor, change: Change) -> str:
    """The smallest type that does not lose the edit: float16 where ||E|| is at most 2 % of ||D||, else float32."""
    for kind in LOSSLESS:
        try:
            if measure(weight_DF, change, kind).error <= _KEEPS:
                return kind
        except ModelError:  # beyond float16
            continue
    return LOSSLESS[-1]


def survives(error_at_keys: float) -> bool:
    """Whether so much rounding leaves the edit as it was made, by :data:`LOST`."""
    return error_at_keys <= LOST
