"""Changes of one weight, in the smallest form that holds them exactly.

| kind | holds | comes from |
|---|---|---|
| low rank | R (D x N) and Q (F x N); the change is R Q^T | every closed form; PRUNE (its columns are singular directions) |
| masked | R, Q, and one bit per entry; entries without it are 0 | RECT |
| dense | the change itself (D x F) | fine-tuning, sums of unlike changes |

Shapes: D d_model, F d_ff, N facts (or directions).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bluedit.precision import upcast

__all__ = ["Change", "Dense", "LowRank", "Masked", "largest_singular_value", "read_change", "total"]


class Change(ABC):
    """A change D of one weight W, d_model x d_ff, in float32 (float64 for float64 models)."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(d_model, d_ff)."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """The rank is at most this."""

    @abstractmethod
    def dense(self) -> Tensor:
        """D, d_model x d_ff."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a patch stores, by the part's name; :func:`read_change` is the way back."""

    def norm(self) -> float:
        """The Frobenius norm of D."""
        return self.dense().double().norm().item()

    def largest_singular_value(self) -> float:
        """The spectral norm of D."""
        return largest_singular_value(self.dense())

    def add_to(self, weight_DF: Tensor) -> None:
        """weight += D in place: computed in the wider precision of both, rounded once to the weight's."""
        change_DF = self.dense().to(weight_DF.device)
        dtype = torch.promote_types(change_DF.dtype, weight_DF.dtype)
        weight_DF.copy_(change_DF.to(dtype) + weight_DF.to(dtype))

    @property
    def nbytes(self) -> int:
        """How much it takes to store."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def check(self) -> None:
        """**Raises** `ValueError` when a number is not finite, or parts are not of the one precision that changes have."""
        numbers = {part: tensor for part, tensor in self.tensors().items() if part != "mask"}
        for part, tensor in numbers.items():
            if tensor.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"its {part} is {tensor.dtype}, not float32 or float64")
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"its {part} is not finite")
        if len({tensor.dtype for tensor in numbers.values()}) > 1:
            raise ValueError("its factors are of two precisions; both are float32, or both float64")


@dataclass(frozen=True)
class LowRank(Change):
    """R Q^T, stored as factors: `residual_DN` (D x N) times the transpose of `gain_FN` (F x N).

    Column n of both is fact n's: the change is a sum over facts.
    """

    kind: ClassVar = "low rank"

    residual_DN: Tensor
    gain_FN: Tensor

    def __post_init__(self) -> None:
        if self.residual_DN.ndim != 2 or self.gain_FN.ndim != 2 or self.residual_DN.shape[1] != self.gain_FN.shape[1]:
            raise ValueError(
                f"factors of shapes {tuple(self.residual_DN.shape)} and {tuple(self.gain_FN.shape)} do not belong together"
            )

    @classmethod
    def of(cls, residual_DN: Tensor, gain_FN: Tensor) -> LowRank:
        """The change with these factors, rounded to the residual's precision: what is stored is what is installed."""
        residual_DN = upcast(residual_DN)
        return cls(residual_DN, gain_FN.to(residual_DN))

    @property
    def shape(self) -> tuple[int, int]:
        return self.residual_DN.shape[0], self.gain_FN.shape[0]

    @property
    def rank(self) -> int:
        return self.residual_DN.shape[1]

    def dense(self) -> Tensor:
        """D; O(D F N)."""
        # How factors lie in memory decides the order of sums: laid out alike, a patch from a file gives the bits of the one
        # saved.
        return self.residual_DN.contiguous() @ self.gain_FN.contiguous().T

    def norm(self) -> float:
        """The Frobenius norm of D, from N x N Gram matrices alone."""
        residual_NN = self.residual_DN.double().T @ self.residual_DN.double()
        gain_NN = self.gain_FN.double().T @ self.gain_FN.double()
        return (residual_NN * gain_NN).sum().clamp_min(0).sqrt().item()

    def tensors(self) -> dict[str, Tensor]:
        return {"residual": self.residual_DN, "gain": self.gain_FN}


@dataclass(frozen=True)
class Masked(Change):
    """R Q^T with all entries zeroed but those of a mask, stored at one bit each: `bits` is D x ceil(F/8), uint8, numpy's
    packing."""

    kind: ClassVar = "masked"

    factors: LowRank
    bits: Tensor

    def __post_init__(self) -> None:
        rows, columns = self.factors.shape
        if self.bits.dtype != torch.uint8 or tuple(self.bits.shape) != (rows, -(-columns // 8)):
            raise ValueError(f"a mask of shape {tuple(self.bits.shape)} does not belong to a change of {rows} x {columns}")

    @classmethod
    def of(cls, factors: LowRank, mask_DF: Tensor) -> Masked:
        """The entries of a low-rank change where a boolean mask is true."""
        return cls(factors, torch.from_numpy(np.packbits(mask_DF.cpu().numpy(), axis=1)))

    @property
    def mask_DF(self) -> Tensor:
        """The mask, D x F, boolean."""
        return torch.from_numpy(np.unpackbits(self.bits.cpu().numpy(), axis=1, count=self.shape[1])).bool()

    @property
    def shape(self) -> tuple[int, int]:
        return self.factors.shape

    @property
    def rank(self) -> int:
        return min(self.shape)

    def dense(self) -> Tensor:
        """D; O(D F N)."""
        change_DF = self.factors.dense()
        return change_DF.masked_fill_(~self.mask_DF.to(change_DF.device), 0)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.factors.tensors(), "mask": self.bits}


@dataclass(frozen=True)
class Dense(Change):
    """A change entry by entry, D x F."""

    kind: ClassVar = "dense"

    change_DF: Tensor

    def __post_init__(self) -> None:
        if self.change_DF.ndim != 2:
            raise ValueError(f"a change of shape {tuple(self.change_DF.shape)} is not a matrix")

    @property
    def shape(self) -> tuple[int, int]:
        return self.change_DF.shape[0], self.change_DF.shape[1]

    @property
    def rank(self) -> int:
        return min(self.shape)

    def dense(self) -> Tensor:
        return self.change_DF

    def tensors(self) -> dict[str, Tensor]:
        return {"change": self.change_DF}


def largest_singular_value(matrix_DF: Tensor) -> float:
    """The spectral norm of a matrix, from the eigenvalues of its smaller Gram matrix. O(D F min(D, F))."""
    matrix_DF = matrix_DF.double()
    gram = matrix_DF @ matrix_DF.T if matrix_DF.shape[0] <= matrix_DF.shape[1] else matrix_DF.T @ matrix_DF
    return torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt().item()


def total(changes: Sequence[Change]) -> Change:
    """The sum of changes of one weight, applied one after the other: low-rank ones side by side, others densely."""
    if len(changes) == 1:
        return changes[0]
    factors = [change for change in changes if isinstance(change, LowRank)]
    if len(factors) == len(changes):
        return LowRank(torch.cat([one.residual_DN for one in factors], 1), torch.cat([one.gain_FN for one in factors], 1))
    return Dense(torch.stack([change.dense() for change in changes]).sum(0))


def read_change(parts: Mapping[str, Tensor]) -> Change:
    """A change from its stored parts.

    **Raises** `ValueError` when they are not those of one kind, do not fit, or are not finite.
    """
    names = sorted(parts)
    if names == ["change"]:
        change: Change = Dense(parts["change"])
    elif names in (["gain", "residual"], ["gain", "mask", "residual"]):
        change = LowRank(parts["residual"], parts["gain"])
        if "mask" in parts:
            change = Masked(change, parts["mask"])
    else:
        raise ValueError(f"its parts ({', '.join(names) or 'none'}) are not those of a change")
    change.check()
    return change
