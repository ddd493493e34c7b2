"""What weights are called in GGUF files. The names of every architecture are a table of the package `gguf`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from bluedit.errors import ModelError, PatchError
from bluedit.models.gguf import INSTALL

__all__ = ["architecture_of", "check_installed", "name_map", "weight_names"]

_ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama", "mistral": "llama", "gpt2": "gpt2", "gpt_neox": "gptneox", "gpt_bigcode": "starcoder", "bloom": "bloom",
    "falcon": "falcon", "mpt": "mpt", "phi": "phi2", "phi3": "phi3", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "starcoder2": "starcoder2", "stablelm": "stablelm", "olmo": "olmo",
    "olmo2": "olmo2", "granite": "granite", "cohere": "command-r", "cohere2": "cohere2", "nemotron": "nemotron",
    "smollm3": "smollm3", "exaone4": "exaone4", "glm4": "glm4",
}  # fmt: skip
"""llama.cpp's names of architectures, by transformers' `model_type`."""

_AS_THEY_ARE = re.compile(r"blk\.\d+\.(ffn_down|attn_output)\.weight")
"""Tensors that llama.cpp stores as modules compute them, d_out x d_in: no rows are put in another order, nothing is fused."""


def check_installed() -> None:
    """**Raises** :class:`~bluedit.errors.ModelError` without the package `gguf`."""
    if find_spec("gguf") is None:
        raise ModelError(f"the package gguf, which writes GGUF files, is missing; {INSTALL}")


def architecture_of(config: Any) -> str:
    """llama.cpp's name of a configuration's architecture.

    **Raises** :class:`~bluedit.errors.ModelError` for one that is not in the table.
    """
    kind = str(config.get_text_config().model_type)
    if kind not in _ARCHITECTURES:
        raise ModelError(
            f"what llama.cpp calls the architecture {kind!r} is not known here; convert the folder with llama.cpp's "
            "convert_hf_to_gguf.py, and give that file as --model"
        )
    return _ARCHITECTURES[kind]


def name_map(architecture: str, blocks: int) -> Any:
    """The package's table of names of an architecture.

    **Raises** :class:`~bluedit.errors.ModelError` where it has none.
    """
    import gguf

    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise ModelError(f"the package gguf does not know the architecture {architecture!r}; {INSTALL} --upgrade")
    return gguf.get_tensor_name_map(known[architecture], blocks)


def weight_names(weights: Iterable[str], architecture: str, blocks: int) -> dict[str, str]:
    """The names of changed weights in a GGUF file, by their names in transformers.

    **Raises** :class:`~bluedit.errors.PatchError` for weights that llama.cpp stores in another form than modules have them:
    only output projections of MLP and attention are the same in both.
    """
    names, found = name_map(architecture, blocks), dict[str, str]()
    for weight in weights:
        name = names.get_name(weight, try_suffixes=(".weight",))
        if name is None or not _AS_THEY_ARE.fullmatch(name):
            raise PatchError(
                f"the patch changes {weight}, which a GGUF file of architecture {architecture} does not hold in the same form; "
                "export a checkpoint, and convert that with llama.cpp's convert_hf_to_gguf.py"
            )
        found[weight] = name
    return found
