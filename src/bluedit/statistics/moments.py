"""Second moments of keys, C = E[k k^T].

The uncentred second moment of the inputs of an MLP output projection stands for what the matrix already
stores (Meng et al. 2022, ROME, section 3.1; MEMIT eq. 15): an update is small in the metric C where the text has keys.

Shapes: F d_ff.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from bluedit.errors import DamagedFileError, StatisticsError
from bluedit.statistics.convergence import Point
from bluedit.statistics.inverse import invert
from bluedit.storage.tensors import read_tensors, write_tensors

__all__ = ["SecondMoment"]


@dataclass(frozen=True)
class SecondMoment:
    """C of one layer (F x F, float64, symmetric) and how many tokens it is the mean over.

    - `file`: the file it is stored in, or would be. What is derived from it is stored next to it; only in memory when None.
    - `documents`: how many documents the tokens are from, where that is known.
    - `curve`: how well it had converged after how much text, where that was measured.
    """

    matrix_FF: Tensor
    tokens: int
    file: Path | None = None
    documents: int | None = None
    curve: tuple[Point, ...] = ()

    @cached_property
    def eigenbasis(self) -> tuple[Tensor, Tensor]:
        """C's eigenvalues (F,), rising, and eigenvectors (F x F, as columns), float64: computed once, then read from its file.

        Every threshold of a null space reads the same file. Cost: one eigendecomposition, O(F^3).
        """

        def compute() -> dict[str, Tensor]:
            eigenvalues_F, eigenvectors_FF = torch.linalg.eigh(self.matrix_FF)
            return {"eigenvalues": eigenvalues_F, "eigenvectors": eigenvectors_FF}

        kept = self._derived("eigenbasis", ("eigenvalues", "eigenvectors"), compute)
        return kept["eigenvalues"], kept["eigenvectors"]

    def inverse(self, shrinkage: float = 0.0) -> tuple[Tensor, float]:
        """The inverse of C, shrunk, (F x F, float64), and its condition number: computed once, then read from its file.

        One file serves every lambda, (lambda C)^-1 = C^-1 / lambda.

        **Raises** :class:`~bluedit.errors.NumericsError` when C is not positive definite.
        **Cost** O(F^3) the first time, O(F^2) afterwards.
        """

        def compute() -> dict[str, Tensor]:
            inverse_FF, condition = invert(self.matrix_FF, shrinkage, self.tokens)
            return {"inverse": inverse_FF, "condition": torch.tensor(condition, dtype=torch.float64)}

        kept = self._derived(f"inverse-{float(shrinkage)!r}", ("inverse", "condition"), compute)
        return kept["inverse"], kept["condition"].item()

    def _derived(self, name: str, parts: Sequence[str], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Tensors that follow from C, `parts` by name: from their file next to it if there is one, else computed and stored."""
        path = self.file.with_suffix(f".{name}.safetensors") if self.file else None
        if path is not None and path.exists():
            try:
                stored = read_tensors(path, key=path.name).tensors
                if sorted(stored) != sorted(parts):
                    raise DamagedFileError(path, "is damaged: it holds something else")
            except DamagedFileError as error:
                raise StatisticsError(f"the stored {name} {error}; remove it and run again") from error
            return {key: tensor.to(self.matrix_FF.device) for key, tensor in stored.items()}
        tensors = {key: tensor.contiguous() for key, tensor in compute().items()}
        if path is not None:
            write_tensors(path, tensors, key=path.name)
        return tensors
