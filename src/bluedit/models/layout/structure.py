"""Where the parts of a decoder are: found from the modules a checkpoint has, never from its name.

*Concept.* Locate-then-edit needs a handful of places in a model: the list of decoder layers, in each layer the MLP's
output projection (the matrix that is edited) and the attention's, and after the layers the final norm and the head.

*Mechanism.* A :class:`~bluedit.models.layout.maps.ModuleMap` names these places by dotted path. One that the user wrote is
taken at its word. Otherwise the known maps are tried in order, and the first whose paths all exist describes the model;
where none does, the map is worked out from the shapes of the matrices (:mod:`bluedit.models.layout.infer_layout`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from bluedit.errors import ModelError
from bluedit.models.layout.infer_layout import infer_map
from bluedit.models.layout.maps import MODULE_MAPS, ModuleMap
from bluedit.models.layout.matrices import Orientation, orientation, size

__all__ = ["Structure", "discover"]


@dataclass(frozen=True)
class Structure:
    """What :func:`discover` found in one model.

    - `map`: the module map that fits.
    - `orientation`: how the output projections store W (d_model x d_ff).
    - `depth`, `d_model`, `d_ff`: number of layers, width of the hidden state, width of the key.
    - `dense`: the layers whose MLP has one output projection, in order; the others are mixtures of experts.
    """

    map: ModuleMap
    orientation: Orientation
    depth: int
    d_model: int
    d_ff: int
    dense: tuple[int, ...]

    def layer_path(self, layer: int) -> str:
        return f"{self.map.layers}.{layer}"

    def weight_name(self, layer: int) -> str:
        """The state-dict name of the weight that edits of `layer` change."""
        return f"{self.layer_path(layer)}.{self.map.projection}.weight"

    def oriented(self, weight: Tensor) -> Tensor:
        """The stored weight seen as W, d_model x d_ff (a view)."""
        return weight if self.orientation == "out_in" else weight.T


def discover(model: nn.Module, module_map: ModuleMap | None = None) -> Structure:
    """Find a decoder's parts, or check those that `module_map` names.

    **Raises** :class:`~bluedit.errors.ModelError` for encoder-decoders, encoders, mixtures of experts in every layer, maps
    that do not fit, and models whose layers look like nothing known, saying which.
    """
    config = getattr(model, "config", None)
    name = type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder; bluedit edits decoder-only language models")
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise ModelError(f"{name} has no language-model head; load a causal language model (AutoModelForCausalLM)")
    if not getattr(model, "can_generate", lambda: True)():
        raise ModelError(f"{name} does not generate text; load a causal language model (AutoModelForCausalLM)")
    if module_map is not None:
        _check_paths(model, module_map)
        return _describe(model, module_map)
    for candidate in MODULE_MAPS:
        if _fits(model, candidate):
            return _describe(model, candidate)
    experts = [path for path, _ in model.named_modules() if _is_experts(path)]
    if experts:
        raise ModelError(f"{name} is a mixture of experts ({experts[0]}); its MLP is not a single matrix that can be edited")
    # Architectures that can be either say so in their configuration.
    if getattr(config, "is_decoder", True) is False:
        raise ModelError(
            f"{name} is an encoder, which also attends to later tokens; bluedit edits decoder-only language models"
        )
    inferred = infer_map(model, head.weight.shape[-1])
    if inferred is None:
        raise ModelError(
            f"no decoder layers with one MLP output projection each found in {name}: its layout is not known, and does not "
            "follow from its matrices without doubt; name its parts in a module map (--module-map FILE; see docs/models.md)"
        )
    return _describe(model, inferred)


def _fits(model: nn.Module, module_map: ModuleMap) -> bool:
    """Whether all paths exist. A layer may have experts in place of the projection, and another kind of attention."""
    layers = _get(model, module_map.layers)
    return (
        isinstance(layers, nn.ModuleList)
        and (not module_map.norm or _get(model, module_map.norm) is not None)
        and any(_get(layer, module_map.projection) is not None for layer in layers)
        and any(_get(layer, module_map.attention_projection) is not None for layer in layers)
        and all(_get(layer, module_map.projection) is not None or _has_experts(layer) for layer in layers)
    )


def _check_paths(model: nn.Module, module_map: ModuleMap) -> None:
    """Raises :class:`~bluedit.errors.ModelError` for the first path of a map that leads nowhere, naming the nearest one."""
    lists = [path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    if module_map.layers not in lists:
        raise ModelError(_nowhere("layers", module_map.layers, "is not a list of layers in the model", lists))
    layers = model.get_submodule(module_map.layers)
    modules = [path for path, _ in model.named_modules() if path and not path.startswith(f"{module_map.layers}.")]
    if module_map.norm and module_map.norm not in modules:
        raise ModelError(_nowhere("norm", module_map.norm, "is not in the model", modules))
    for key, needed in (("projection", all), ("attention_projection", any)):
        path = getattr(module_map, key)
        if not needed(_get(layer, path) is not None or (needed is all and _has_experts(layer)) for layer in layers.children()):
            matrices = [place for layer in layers.children() for place, module in layer.named_modules() if size(module)]
            raise ModelError(_nowhere(key, path, f"is not in {'every' if needed is all else 'any'} layer", matrices))


def _nowhere(key: str, path: str, problem: str, there: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(path, list(there), n=1, cutoff=0)
    return f"the module map's {key} {path!r} {problem}" + (f"; the nearest that exists: {nearest[0]!r}" if nearest else "")


def _describe(model: nn.Module, module_map: ModuleMap) -> Structure:
    layers = list(model.get_submodule(module_map.layers).children())
    projections = {
        index: projection
        for index, layer in enumerate(layers)
        if (projection := _get(layer, module_map.projection)) is not None
    }
    orientations: set[Orientation | None] = {orientation(projection) for projection in projections.values()}
    sizes = {size(projection) for projection in projections.values()}
    stored, shape = orientations.pop(), sizes.pop()
    if orientations or sizes or stored is None or shape is None:
        kinds = ", ".join(sorted({type(projection).__name__ for projection in projections.values()}))
        raise ModelError(
            f"the MLP output projections of {type(model).__name__} ({module_map.projection}: {kinds}) are not all plain "
            "matrices of one shape; quantised or mixed layers cannot be edited: load the model in float32, bfloat16 or "
            "float16, and quantise it again after the edit"
        )
    return Structure(module_map, stored, len(layers), *shape, tuple(projections))


def _is_experts(path: str) -> bool:
    return path.rpartition(".")[2] == "experts"


def _has_experts(layer: nn.Module) -> bool:
    return any(_is_experts(path) for path, _ in layer.named_modules())


def _get(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
