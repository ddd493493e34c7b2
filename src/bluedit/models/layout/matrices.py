"""Linear maps as modules store them: which way round, and how large.

The orientation of a weight is declared by its module, never guessed from its shape: square matrices exist.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Orientation", "orientation", "oriented", "size"]

Orientation = Literal["out_in", "in_out"]
"""How a module stores W (d_out x d_in): `out_in` as it is (`nn.Linear`), `in_out` transposed (GPT-2's `Conv1D`)."""

_EDITABLE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def orientation(module: nn.Module | None) -> Orientation | None:
    """The orientation of a module's weight; None for anything but a plain matrix, such as a quantised layer."""
    from transformers.pytorch_utils import Conv1D

    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in _EDITABLE or weight.ndim != 2:
        return None
    if type(module) is Conv1D:
        return "in_out"
    # A subclass may store something else under the same name, as quantised layers do: it has to show what it computes.
    if type(module) is nn.Linear or (isinstance(module, nn.Linear) and _is_linear(module)):
        return "out_in"
    return None


def size(module: nn.Module | None) -> tuple[int, int] | None:
    """(d_out, d_in) of a plain matrix, else None."""
    stored = orientation(module)
    weight = getattr(module, "weight", None)
    if stored is None or not isinstance(weight, Tensor):
        return None
    rows, columns = weight.shape
    return (rows, columns) if stored == "out_in" else (columns, rows)


def oriented(network: nn.Module, name: str, weight: Tensor) -> Tensor:
    """What is stored under the parameter's `name`, seen as W, d_out x d_in (a view)."""
    return weight.T if orientation(network.get_submodule(name.rpartition(".")[0])) == "in_out" else weight


@torch.no_grad()
def _is_linear(module: nn.Linear) -> bool:
    """Whether the module maps one vector as its weight and bias say; one without numbers shows it with small ones."""
    if module.weight.is_meta:
        try:
            return _is_linear(_small(module))
        except (RuntimeError, AttributeError, TypeError, ValueError):  # it needs more than a weight and a bias
            return False
    vector = torch.linspace(-1, 1, module.in_features, device=module.weight.device, dtype=module.weight.dtype)
    expected = nn.functional.linear(vector, module.weight, module.bias)
    got = module.forward(vector)
    scale = vector.norm() * module.weight.norm()
    return got.shape == expected.shape and bool((got - expected).norm() <= 4 * torch.finfo(vector.dtype).eps * scale)


def _small(module: nn.Linear) -> nn.Linear:
    """A module that computes as this one does, from a weight of a few numbers."""
    small, stand_in = copy.copy(module), nn.Linear(8, 6, bias="bias" in dict(module.named_parameters()), device="cpu")
    small.__dict__ |= {"_parameters": {"bias": None, **dict(stand_in.named_parameters())}, "in_features": 8, "out_features": 6}
    return small
