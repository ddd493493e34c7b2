"""The map of a layout that is in no table, worked out from what its layers are made of.

*Concept.* Whatever its parts are called, a decoder layer holds two groups of matrices that end with one back to the hidden
state: the MLP widens the hidden state once, or twice where it is gated, and narrows it again; the attention makes queries,
keys and values before its output.

*Mechanism.* Matrices with the same parent are a group. A group is an MLP when its last matrix takes F to D and every
other takes D to F (or one takes D to 2F, gate and values in one); any other group that ends in D is an attention. What is
not exactly one of each in every layer, of exactly one list of layers, is left to a map file.
"""

from __future__ import annotations

from torch import nn

from bluedit.models.layout.maps import ModuleMap
from bluedit.models.layout.matrices import size

__all__ = ["infer_map"]


def infer_map(model: nn.Module, d_model: int) -> ModuleMap | None:
    """The one map that fits a model of this width; None where there is none, or more than one."""
    found = [
        ModuleMap(layers=path, projection=parts[0], attention_projection=parts[1], norm=_norm(model, path, d_model))
        for path, layers in model.named_modules()
        if isinstance(layers, nn.ModuleList) and len(layers) and (parts := _parts_of_all(layers, d_model))
    ]
    return found[0] if len(found) == 1 else None


def _parts_of_all(layers: nn.ModuleList, d_model: int) -> tuple[str, str] | None:
    """The MLP's and the attention's output projection, where every layer has them in the same place."""
    parts = {_parts(layer, d_model) for layer in layers}
    return parts.pop() if len(parts) == 1 else None


def _parts(layer: nn.Module, d_model: int) -> tuple[str, str] | None:
    groups: dict[str, list[tuple[str, tuple[int, int]]]] = {}
    for path, module in layer.named_modules():
        if (shape := size(module)) is not None:
            groups.setdefault(path.rpartition(".")[0], []).append((path, shape))
    mlps: list[str] = []
    attentions: list[str] = []
    for *before, (path, (d_out, d_in)) in groups.values():
        if not before or d_out != d_model:
            continue
        widening = [shape for _, shape in before]
        gated = widening == [(2 * d_in, d_model)]
        plain = len(widening) <= 2 and set(widening) == {(d_in, d_model)}
        (mlps if gated or plain else attentions).append(path)
    return (mlps[0], attentions[0]) if len(mlps) == len(attentions) == 1 else None


def _norm(model: nn.Module, layers: str, d_model: int) -> str:
    """The only norm next to the layers; none where there are several, since one of them may stand before the layers."""
    parent = layers.rpartition(".")[0]
    norms = [
        f"{parent}.{name}".lstrip(".")
        for name, module in model.get_submodule(parent).named_children()
        if tuple(getattr(getattr(module, "weight", None), "shape", ())) == (d_model,)
    ]
    return norms[0] if len(norms) == 1 else ""
