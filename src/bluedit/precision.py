"""The precision that changes are computed in."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["wide"]


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where that is what it is: deltas, losses and changes never narrow a model's
    numbers."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
