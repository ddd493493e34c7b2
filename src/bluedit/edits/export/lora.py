"""A PEFT adapter from a patch: `adapter_model.safetensors` and `adapter_config.json`, for PEFT, vLLM and whatever reads those.

LoRA adds (alpha / r) B A to a weight (Hu et al. 2022). A low-rank change R Q^T is that with B = R, A = Q^T and alpha = r: no
training, no approximation. Weights that a patch does not touch have no entry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bluedit.edits.base import Edit
from bluedit.edits.export.blueprint import Blueprint
from bluedit.edits.export.low_rank import Factors, factor_all
from bluedit.edits.export.outputs import RECORD, Exported, Part, folder_kind
from bluedit.errors import ModelError, PatchError, SettingsError, did_you_mean
from bluedit.models.layout.matrices import orientation
from bluedit.storage.documents import write_document
from bluedit.storage.files import atomic_folder, contents, writable_target

__all__ = ["LORA", "LORA_TYPES", "export_lora", "factor_type"]

LORA = folder_kind("an adapter that bluedit wrote", "lora")
"""What is replaced by an adapter where that is asked for."""
LORA_TYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The types of an adapter's numbers, by name."""
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""


def export_lora(
    edit: Edit,
    path: str | Path,
    base: Blueprint,
    *,
    rank: int | None = None,
    dtype: str = "float32",
    base_name: str | None = None,
    replace: bool = False,
) -> Exported:
    """Write a patch as a PEFT adapter: a folder, whole or not at all.

    **Arguments**

    - `base`: the model that the patch is for.
    - `rank`: at most so many columns per weight, the best by SVD; see :func:`~bluedit.edits.export.low_rank.factor`. Left
      out, the change is exact.
    - `dtype`: of the factors.
    - `base_name`: the model that the adapter names as its own; by default what loads exactly `base`.

    **Raises** :class:`~bluedit.errors.PatchError` where the patch does not fit the model, or is not low rank and no `rank` is
    given; :class:`~bluedit.errors.ModelError` without the package `peft`.
    """
    if find_spec("peft") is None:
        raise ModelError("the package peft, which describes adapters, is missing; pip install 'bluedit[peft]'")
    target = writable_target(Path(path).expanduser(), replace=replace, kind=LORA)
    base.check(edit)
    factors = factor_all(edit.changes, rank, factor_type(dtype))
    modules = {_module(name): one for name, one in factors.items()}
    config = _configuration(base, modules, base_name or base.base_name)
    tensors = {
        f"base_model.model.{module}.lora_{letter}.weight": tensor
        for module, one in modules.items()
        for letter, tensor in (("A", one.down_RF), ("B", one.up_DR))
    }
    parts = tuple(
        Part(weight=name, stored=_module(name), kind=dtype, rank=one.rank, error=one.error) for name, one in factors.items()
    )
    with atomic_folder(target, replace=LORA if replace else None) as folder:
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        about = {"format": "bluedit-export", "format_version": 1, "kind": "lora", "patch": edit.digest}
        errors = {part.weight: {"rank": part.rank, "error": part.error} for part in parts}
        write_document(folder / RECORD, {**about, "weights": errors, "files": contents(folder)})
    return Exported(
        path=target,
        kind="lora",
        base=config["base_model_name_or_path"],
        parts=parts,
        notes=_notes(factors, rank, config["base_model_name_or_path"]),
    )


def factor_type(name: str) -> torch.dtype:
    """The type of that name. **Raises** :class:`~bluedit.errors.SettingsError` for an unknown one."""
    if name not in LORA_TYPES:
        raise SettingsError(did_you_mean(name, LORA_TYPES, what="type of an adapter's numbers"))
    return LORA_TYPES[name]


def _module(weight: str) -> str:
    module, _, kind = weight.rpartition(".")
    if kind != "weight" or not module:
        raise PatchError(f"{weight} is not the weight of a module, and no adapter can change it; export a checkpoint")
    return module


def _configuration(base: Blueprint, modules: Mapping[str, Factors], base_name: str) -> dict[str, Any]:
    """What `adapter_config.json` holds. Modules stand in it by their full names: nothing else can match them."""
    from peft import LoraConfig, TaskType

    ranks = {module: one.rank for module, one in modules.items()}
    largest = max(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != largest}
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
        base_model_name_or_path=base_name,
        target_modules=list(modules),
        r=largest,
        lora_alpha=largest,
        rank_pattern=dict(others),
        alpha_pattern=dict(others),  # alpha = r everywhere: the product is added as it is
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=_transposed(base, modules),
    )
    document = config.to_dict()
    document["target_modules"] = sorted(modules)  # a set, whose order would differ from run to run
    return document


def _transposed(base: Blueprint, modules: Mapping[str, Factors]) -> bool:
    """Whether the modules store their weights transposed, as GPT-2's `Conv1D` does; an adapter says that once for all."""
    stored = {orientation(base.network.get_submodule(module)) for module in modules}
    if len(stored) > 1:
        raise PatchError("some of the patch's weights are stored transposed and some are not; export a checkpoint instead")
    return stored == {"in_out"}


def _notes(factors: Mapping[str, Factors], rank: int | None, base: str) -> tuple[str, ...]:
    largest = max(one.rank for one in factors.values())
    found: list[str] = []
    if largest > _VLLM_RANKS[-1]:
        found.append(f"vLLM loads adapters up to rank {_VLLM_RANKS[-1]}, and this one has {largest}; compress it with --rank")
    else:
        needed = next(one for one in _VLLM_RANKS if one >= largest)
        found.append(f"vLLM needs --max-lora-rank {needed} for it (its default is 16)")
    if rank is not None and (worst := max(one.error for one in factors.values())) > 0:
        found.append(f"compressed to rank {largest}: up to {worst:.2%} of a change is lost")
    if Path(base).is_absolute():
        found.append(
            "adapter_config.json names a folder of this machine as the base model; before you share it, set --base-model"
        )
    return tuple(found)
