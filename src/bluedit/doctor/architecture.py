"""Checks of a model's architecture: whether bluedit finds its way in it, from the configuration alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bluedit.doctor.report import Check
from bluedit.errors import ModelError, first_line
from bluedit.models.editable import context_length, takes_positions
from bluedit.models.layout.maps import ModuleMap
from bluedit.models.layout.structure import Structure, discover
from bluedit.models.opening import UNQUANTISED, quantisation

__all__ = ["check_architecture", "check_precision"]


def check_precision(config: Any) -> Check:
    if kind := quantisation(config):
        return Check("precision", "problem", f"the weights are quantised ({kind}); {UNQUANTISED}", {"quantised": kind})
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return Check("precision", "ok", f"{dtype}, not quantised", {"quantised": None, "dtype": dtype})


def check_architecture(
    config: Any, module_map: ModuleMap | None, trust_remote_code: bool
) -> tuple[nn.Module | None, Structure | None, list[Check]]:
    """The network without numbers, and what was found in it."""
    from transformers import AutoModelForCausalLM

    def problem(message: str) -> tuple[None, None, list[Check]]:
        return None, None, [Check("architecture", "problem", message)]

    try:
        with torch.device("meta"):
            network: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # the architecture's own code runs here
        if getattr(config, "is_encoder_decoder", False):
            return problem(f"{config.model_type} is an encoder-decoder; bluedit edits decoder-only language models")
        if "Unrecognized configuration class" in str(error):
            return problem(f"{config.model_type} is not a causal language model; bluedit edits decoder-only language models")
        return problem(f"the model of config.json cannot be built: {first_line(error)}")
    try:
        structure = discover(network, module_map)
    except ModelError as error:
        return problem(str(error))
    text = config.get_text_config()
    settings = {key: getattr(text, key, None) for key in ("final_logit_softcapping", "logit_scale", "logits_scaling")}
    logits = {key: value for key, value in settings.items() if value not in (None, 1)}
    tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
    positions, length = takes_positions(network), context_length(config)
    details: dict[str, Any] = {
        "class": type(network).__name__,
        "map": structure.map.model_dump(),
        "orientation": structure.orientation,
        "layers": structure.depth,
        "d_model": structure.d_model,
        "d_ff": structure.d_ff,
        "dense_layers": list(structure.dense),
        "head_tied": tied,
        "logits": logits,
        "takes_positions": positions,
        "context_length": length,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    where = structure.map
    said = (
        f"{type(network).__name__}: {structure.depth} layers ({where.layers}), d_model {structure.d_model:,}, d_ff "
        f"{structure.d_ff:,}; edited: {where.projection}, attention: {where.attention_projection}, norm: "
        f"{where.norm or 'none'}; head {'tied to the embedding' if tied else 'of its own'}, logits "
        f"{', '.join(f'{key}={value}' for key, value in logits.items()) or 'as they are'}; {length:,} tokens of context, "
        f"positions {'given' if positions else 'its own'}"
    )
    checks = [Check("architecture", "ok", said, details)]
    if len(structure.dense) < structure.depth:
        sparse = structure.depth - len(structure.dense)
        dense = ", ".join(map(str, structure.dense))
        message = f"{sparse} layers are mixtures of experts, which cannot be edited; choose among layers {dense}"
        checks.append(Check("dense layers", "warning", message, {"dense_layers": list(structure.dense)}))
    return network, structure, checks
