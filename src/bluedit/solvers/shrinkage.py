"""Shrinkage of a second moment towards a multiple of the identity."""

from __future__ import annotations

from torch import Tensor

__all__ = ["shrink"]


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
