"""Module maps: where the parts of a decoder are, as data.

A map is four dotted paths. Those of published architectures are in :data:`MODULE_MAPS`; a layout that is not among them
is described by a file of the same four entries, read by :func:`read_module_map`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bluedit.errors import ModelError, did_you_mean, excerpt
from bluedit.storage.parsing import parse_json, parse_toml, read_text

__all__ = ["MODULE_MAPS", "ModuleMap", "read_module_map"]

_LARGEST = 2**20
"""Bytes of a map: it is four lines."""
_Path = Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")]


class ModuleMap(BaseModel):
    """Dotted paths of a decoder's parts.

    - `layers`: the list of decoder layers, from the model.
    - `projection`: the MLP's output projection, from a layer. Its weight is what edits change.
    - `attention_projection`: the attention's output projection, from a layer.
    - `norm`: the norm after the last layer, from the model; empty where there is none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    layers: _Path
    projection: _Path
    attention_projection: _Path
    norm: Annotated[str, Field(pattern=r"^(\w+(\.\w+)*)?$")] = ""


def _map(layers: str, projection: str, attention_projection: str, norm: str = "") -> ModuleMap:
    return ModuleMap(layers=layers, projection=projection, attention_projection=attention_projection, norm=norm)


# fmt: off
MODULE_MAPS: tuple[ModuleMap, ...] = (
    # GPT-2 and its descendants, GPT-BigCode.
    _map("transformer.h", "mlp.c_proj", "attn.c_proj", "transformer.ln_f"),
    # GPT-Neo.
    _map("transformer.h", "mlp.c_proj", "attn.attention.out_proj", "transformer.ln_f"),
    # GPT-J, CodeGen: parallel blocks with their own names.
    _map("transformer.h", "mlp.fc_out", "attn.out_proj", "transformer.ln_f"),
    # BLOOM, Falcon.
    _map("transformer.h", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f"),
    # MPT.
    _map("transformer.blocks", "ffn.down_proj", "attn.out_proj", "transformer.norm_f"),
    # Llama, Mistral, Qwen, Gemma, OLMo, Granite, Cohere, GLM, ...: gated MLPs with a down projection.
    _map("model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm"),
    # The same as the language model of one that also sees.
    _map("model.language_model.layers", "mlp.down_proj", "self_attn.o_proj", "model.language_model.norm"),
    # StarCoder 2.
    _map("model.layers", "mlp.c_proj", "self_attn.o_proj", "model.norm"),
    # Phi.
    _map("model.layers", "mlp.fc2", "self_attn.dense", "model.final_layernorm"),
    # GPT-NeoX and Pythia.
    _map("gpt_neox.layers", "mlp.dense_4h_to_h", "attention.dense", "gpt_neox.final_layer_norm"),
    # OPT: no module holds its MLP. One size, with its norms after the sums, has none at the end.
    _map("model.decoder.layers", "fc2", "self_attn.out_proj", "model.decoder.final_layer_norm"),
    _map("model.decoder.layers", "fc2", "self_attn.out_proj"),
)
# fmt: on


def read_module_map(path: str | Path) -> ModuleMap:
    """Read a module map from a TOML file, or a JSON file where the name ends so.

    **Raises** :class:`~bluedit.errors.ModelError` with one line per problem.
    """
    path = Path(path).expanduser()
    try:
        text = read_text(path, _LARGEST)
        document = parse_json(text) if path.suffix == ".json" else parse_toml(text)
    except (OSError, ValueError) as error:  # both formats' errors, and text that is not UTF-8, are ValueErrors
        raise ModelError(f"the module map {path} cannot be read: {error}") from error
    try:
        return ModuleMap.model_validate(document)
    except ValidationError as error:
        raise ModelError("\n".join(f"{path}: {_problem(one)}" for one in error.errors())) from error


def _problem(error: Any) -> str:
    place = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "extra_forbidden":
        return did_you_mean(place, ModuleMap.model_fields, what="key")
    if not place:
        return f"a module map is a table of {', '.join(ModuleMap.model_fields)}"
    if error["type"] == "missing":
        return f"{place} is missing; a module map names {', '.join(ModuleMap.model_fields)}"
    return f"{place} is {excerpt(error['input'])}; write names joined by dots, as in {getattr(MODULE_MAPS[0], place)}"
