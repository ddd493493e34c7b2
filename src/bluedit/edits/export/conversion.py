"""A model of transformers as a GGUF file holds it: settings, names, the order of rows. For Llama and GPT-2.

Two things differ. llama.cpp rotates neighbouring numbers of a head, and transformers the two halves: rows of the query and key
projections of a Llama are put in that order. And GPT-2's `Conv1D` stores matrices transposed; a GGUF file never does.

Other architectures differ in more, and llama.cpp's own converter knows them: they are refused with a word about it. So are
settings of a Llama or GPT-2 that change what is computed and that a file would not say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bluedit.edits.export.gguf_files import Setting, real, text, whole
from bluedit.edits.export.gguf_names import name_map
from bluedit.edits.export.vocabulary import check_vocabulary, vocabulary_settings
from bluedit.errors import ModelError, excerpt
from bluedit.models.gguf import read_gguf
from bluedit.models.layout.matrices import oriented

__all__ = ["Conversion", "convert"]

_ELSEWHERE = "convert the folder with llama.cpp's convert_hf_to_gguf.py --outtype f32, and give that file as --model"


@dataclass(frozen=True)
class Conversion:
    """A model, ready to be written: `tensors` have their shape and what makes their numbers, float32, by name."""

    architecture: str
    blocks: int
    settings: Mapping[str, Setting]
    tensors: Mapping[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]
    tokenizer: Any

    def check(self, path: Path) -> None:
        """**Raises** :class:`~bluedit.errors.ModelError` unless the written file splits texts as the model's tokenizer does."""
        check_vocabulary(read_gguf(path), self.tokenizer)


def convert(network: Any, tokenizer: Any, name: str) -> Conversion:
    """A model and its tokenizer as a GGUF file holds them; `name` is for people. Weights are read when they are written.

    **Raises** :class:`~bluedit.errors.ModelError` for an architecture, a setting or a tokenizer that is not converted here.
    """
    config = network.config
    families: dict[str, Callable[[Any], dict[str, Setting]]] = {"llama": _llama, "mistral": _llama, "gpt2": _gpt2}
    if config.model_type not in families:
        raise ModelError(f"models of architecture {config.model_type!r} are not converted to GGUF here; {_ELSEWHERE}")
    architecture = "gpt2" if config.model_type == "gpt2" else "llama"
    settings = {
        "general.type": text("model"),
        "general.name": text(Path(name).name or "model"),
        "general.quantization_version": whole(2),
        **families[config.model_type](config),
        **vocabulary_settings(tokenizer, config.vocab_size),
    }
    blocks = int(config.num_hidden_layers)
    return Conversion(architecture, blocks, settings, _tensors(network, architecture, blocks), tokenizer)


def _tensors(network: Any, architecture: str, blocks: int) -> dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]:
    names = name_map(architecture, blocks)
    found: dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]] = {}
    tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if tied and name == "lm_head.weight":
            continue  # llama.cpp takes the embedding where there is no output.weight
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise ModelError(
                f"the model's weight {name} has no place in a GGUF file of architecture {architecture}; {_ELSEWHERE}"
            )
        seen = parameter.detach()
        if seen.ndim == 2:
            seen = oriented(network, name, seen)
        found[stored] = (tuple(seen.shape), _maker(seen, _heads(network.config, stored)))
    return found


def _heads(config: Any, stored: str) -> int | None:
    """How many heads a rotated projection has; None for other tensors."""
    if config.model_type == "gpt2":
        return None
    kind = stored.split(".")[-2]
    return {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(kind)


def _maker(weight: Tensor, heads: int | None) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        array = weight.float().cpu().contiguous().numpy()
        if heads is not None:
            array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        return np.ascontiguousarray(array)

    return make


def _llama(config: Any) -> dict[str, Setting]:
    rotation = dict(getattr(config, "rope_parameters", None) or {})
    window = getattr(config, "sliding_window", None)
    _check("the scaling of rotary positions", rotation.get("rope_type", "default"), ("default",))
    _check("the activation", config.hidden_act, ("silu",))
    _check("the bias of the attention", getattr(config, "attention_bias", False), (False,))
    _check("the bias of the MLP", getattr(config, "mlp_bias", False), (False,))
    if window is not None and window < config.max_position_embeddings:
        raise ModelError(f"attention in a sliding window of {window} tokens is not written to GGUF here; {_ELSEWHERE}")
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "llama.block_count": whole(config.num_hidden_layers),
        "llama.context_length": whole(config.max_position_embeddings),
        "llama.embedding_length": whole(config.hidden_size),
        "llama.feed_forward_length": whole(config.intermediate_size),
        "llama.attention.head_count": whole(config.num_attention_heads),
        "llama.attention.head_count_kv": whole(config.num_key_value_heads),
        "llama.attention.key_length": whole(width),
        "llama.attention.value_length": whole(width),
        "llama.attention.layer_norm_rms_epsilon": real(config.rms_norm_eps),
        "llama.rope.freq_base": real(float(rotation.get("rope_theta", 10000.0))),
        "llama.rope.dimension_count": whole(width),
        "llama.vocab_size": whole(config.vocab_size),
    }


def _gpt2(config: Any) -> dict[str, Setting]:
    _check("the activation", config.activation_function, ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"))
    _check("scale_attn_weights", config.scale_attn_weights, (True,))
    _check("scale_attn_by_inverse_layer_idx", config.scale_attn_by_inverse_layer_idx, (False,))
    return {
        "gpt2.block_count": whole(config.n_layer),
        "gpt2.context_length": whole(config.n_positions),
        "gpt2.embedding_length": whole(config.n_embd),
        "gpt2.feed_forward_length": whole(config.n_inner or 4 * config.n_embd),
        "gpt2.attention.head_count": whole(config.n_head),
        "gpt2.attention.layer_norm_epsilon": real(config.layer_norm_epsilon),
    }


def _check(what: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise ModelError(f"{what} of this model ({excerpt(value)}) is not written to GGUF here; {_ELSEWHERE}")
