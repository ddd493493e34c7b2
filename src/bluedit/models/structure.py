"""Where the parts of a decoder are: found from the modules a checkpoint has, never from its name.

*Concept.* Locate-then-edit needs a handful of places in a model: the list of decoder layers, in each layer the MLP
and its output projection (the matrix that is edited) and the attention's output projection, and after the layers
the final norm and the head.

*Mechanism.* A :class:`ModuleMap` names these places by dotted path. The known maps are data, tried in order: the
first whose paths all exist, with an output projection of a type whose orientation is known, describes the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from bluedit.errors import ModelError

__all__ = ["MODULE_MAPS", "ModuleMap", "Structure", "discover"]

Orientation = Literal["out_in", "in_out"]


@dataclass(frozen=True, kw_only=True)
class ModuleMap:
    """Dotted paths of a decoder's parts; `mlp`, `projection` and `attention_projection` are relative to a layer."""

    layers: str
    mlp: str
    projection: str
    attention_projection: str
    norm: str


# fmt: off
MODULE_MAPS: tuple[ModuleMap, ...] = (
    # GPT-2 and its many descendants.
    ModuleMap(
        layers="transformer.h", mlp="mlp", projection="mlp.c_proj", attention_projection="attn.c_proj",
        norm="transformer.ln_f",
    ),
    # GPT-J: a parallel block with its own names.
    ModuleMap(
        layers="transformer.h", mlp="mlp", projection="mlp.fc_out", attention_projection="attn.out_proj",
        norm="transformer.ln_f",
    ),
    # Llama, Mistral, Qwen, Gemma, OLMo, Granite, ...: gated MLPs with a down projection.
    ModuleMap(
        layers="model.layers", mlp="mlp", projection="mlp.down_proj", attention_projection="self_attn.o_proj",
        norm="model.norm",
    ),
    # GPT-NeoX and Pythia.
    ModuleMap(
        layers="gpt_neox.layers", mlp="mlp", projection="mlp.dense_4h_to_h", attention_projection="attention.dense",
        norm="gpt_neox.final_layer_norm",
    ),
)
# fmt: on


@dataclass(frozen=True)
class Structure:
    """What :func:`discover` found in one model.

    - `map`: the module map that fits.
    - `orientation`: how the output projection stores W (d_model x d_ff): `out_in` as it is (`nn.Linear`), `in_out`
      transposed (GPT-2's `Conv1D`). Declared by the module's type, since square matrices exist.
    - `depth`, `d_model`, `d_ff`: number of layers, width of the hidden state, width of the key.
    """

    map: ModuleMap
    orientation: Orientation
    depth: int
    d_model: int
    d_ff: int

    def layer_path(self, layer: int) -> str:
        return f"{self.map.layers}.{layer}"

    def weight_name(self, layer: int) -> str:
        """The state-dict name of the weight that edits of `layer` change."""
        return f"{self.layer_path(layer)}.{self.map.projection}.weight"

    def oriented(self, weight: Tensor) -> Tensor:
        """The stored weight seen as W, d_model x d_ff (a view)."""
        return weight if self.orientation == "out_in" else weight.T


def discover(model: nn.Module) -> Structure:
    """Find a decoder's parts.

    **Raises** :class:`~bluedit.errors.ModelError` for encoder-decoders, encoders, mixtures of experts and models whose
    layers look like nothing known, saying which.
    """
    config = getattr(model, "config", None)
    name = type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder; bluedit edits decoder-only language models")
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise ModelError(f"{name} has no language-model head; load a causal language model (AutoModelForCausalLM)")
    for candidate in MODULE_MAPS:
        layers = _get(model, candidate.layers)
        if isinstance(layers, nn.ModuleList) and len(layers) and _get(model, candidate.norm) is not None:
            projections = [_get(layer, candidate.projection) for layer in layers]
            if all(projection is not None for projection in projections):
                return _describe(candidate, projections, name)
    experts = [path for path, _ in model.named_modules() if path.rsplit(".", 1)[-1] == "experts"]
    if experts:
        raise ModelError(f"{name} is a mixture of experts ({experts[0]}); its MLP is no single matrix that could be edited")
    raise ModelError(
        f"no decoder layers with an MLP output projection found in {name}; known layouts: "
        + ", ".join(f"{known.layers}.*.{known.projection}" for known in MODULE_MAPS)
    )


def _describe(module_map: ModuleMap, projections: list[nn.Module | None], name: str) -> Structure:
    orientations: set[Orientation | None] = {_orientation(projection) for projection in projections}
    weights = [getattr(projection, "weight", None) for projection in projections]  # quantised layers may have none
    shapes = {tuple(weight.shape) for weight in weights if isinstance(weight, Tensor)}
    if len(orientations) != 1 or None in orientations or len(shapes) != 1:
        kinds = ", ".join(sorted({type(projection).__name__ for projection in projections}))
        raise ModelError(
            f"the MLP output projections of {name} ({module_map.projection}: {kinds}) are not all plain matrices of one "
            "shape; quantised or mixed layers cannot be edited: load the model in float32, bfloat16 or float16"
        )
    orientation = orientations.pop()
    assert orientation is not None
    rows, columns = shapes.pop()
    d_model, d_ff = (rows, columns) if orientation == "out_in" else (columns, rows)
    return Structure(module_map, orientation, len(projections), d_model, d_ff)


def _orientation(module: nn.Module | None) -> Orientation | None:
    from transformers.pytorch_utils import Conv1D

    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        return None
    # A subclass may store something else under the same name (quantised layers do): only the plain types count.
    if type(module) is Conv1D:
        return "in_out"
    return "out_in" if type(module) is nn.Linear else None


def _get(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
