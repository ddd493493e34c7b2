"""The examination itself: all checks of one model, in the order of a checklist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bluedit.doctor.architecture import check_architecture, check_precision
from bluedit.doctor.cost import check_memory, estimate_time, plan_for
from bluedit.doctor.files import (
    check_configuration,
    check_numbers,
    check_quantisation,
    check_tokenizer,
    check_weights,
    find_model,
)
from bluedit.doctor.needs import check_corpus, check_layers, check_settings
from bluedit.doctor.report import Check, Examination
from bluedit.editors.base import Editor
from bluedit.editors.presets import find_preset
from bluedit.errors import ModelError
from bluedit.models.gguf import read_gguf, read_gguf_config
from bluedit.models.layout.maps import ModuleMap
from bluedit.models.layout.structure import Structure
from bluedit.models.opening import choose_device, choose_dtype, quantisation
from bluedit.models.weight_files import read_weight_files

__all__ = ["examine"]

_TORCH_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def examine(
    name: str,
    method: Editor,
    *,
    layers: Sequence[int] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    module_map: ModuleMap | None = None,
    trust_remote_code: bool = False,
) -> Examination:
    """Look over a folder, a GGUF file, a model by name, or a hub name that is in the local cache.

    **Arguments**: those of :func:`~bluedit.models.load_model`; `method` and `layers` are what the plans are made for.

    **Raises** :class:`~bluedit.errors.SettingsError` for a device or layers that are not there.
    """
    target = choose_device(None if device == "auto" else device)
    chosen = choose_dtype(dtype, target)
    folder, check = find_model(name)
    checks = [check]
    if folder is None:
        return Examination(name, tuple(checks))
    look = _look_at_file if folder.is_file() else _look_at_folder
    found = look(folder, chosen, module_map, trust_remote_code)
    checks += found.checks
    config, network, structure = found.config, found.network, found.structure
    if config is not None and network is not None and structure is not None:
        known = find_preset(config)
        critical, check = check_layers(known, method, structure, layers)
        checks.append(check)
        weight_type = chosen if isinstance(chosen, torch.dtype) else found.stored
        settings = method.override(known.settings_for(method.name, method.strategy.name) if known else {}, {})
        if method.needs(settings).second_moments:
            checks.append(check_corpus(known))
        checks.append(check_settings(known, method, settings))
        plan = plan_for(network, structure, method, critical, settings, weight_type)
        checks.append(check_memory(plan, method, critical, settings, target, weight_type))
        checks.append(estimate_time(network, structure, method, critical, settings, target, weight_type))
    return Examination(name, tuple(checks))


@dataclass(frozen=True)
class _Looked:
    """What was found in a model's files: `stored` is the type that its numbers have when none is asked for."""

    checks: tuple[Check, ...]
    stored: torch.dtype
    config: Any = None
    network: nn.Module | None = None
    structure: Structure | None = None


def _look_at_folder(folder: Path, chosen: torch.dtype | str, module_map: ModuleMap | None, trust_remote_code: bool) -> _Looked:
    del chosen  # a folder's weights can be had in any type
    files = read_weight_files(folder)
    config, check = check_configuration(folder, trust_remote_code)
    if config is None:
        return _Looked((check, check_weights(files, None)), torch.float32)
    network, structure, more = check_architecture(config, module_map, trust_remote_code)
    weights = check_weights(files, None if quantisation(config) is not None else network)
    tokenizer = check_tokenizer(folder, config, trust_remote_code)
    stored = _TORCH_TYPES.get(files.dtype or "", getattr(config, "dtype", None))
    stored = stored if isinstance(stored, torch.dtype) else torch.float32
    return _Looked((check, check_precision(config), *more, weights, tokenizer), stored, config, network, structure)


def _look_at_file(path: Path, chosen: torch.dtype | str, module_map: ModuleMap | None, trust_remote_code: bool) -> _Looked:
    """A GGUF file."""
    try:
        header = read_gguf(path)
    except ModelError as error:
        return _Looked((Check("weights", "problem", str(error)),), torch.float32)
    quantised = check_quantisation(header, chosen)
    try:
        config = read_gguf_config(header)
    except ModelError as error:
        return _Looked((quantised, Check("configuration", "problem", str(error))), torch.float32)
    kind = str(config.model_type)
    said = f"architecture {header.architecture}, model type {kind}"
    check = Check("configuration", "ok", said, {"architecture": header.architecture, "model_type": kind})
    network, structure, more = check_architecture(config, module_map, trust_remote_code)
    checks = (check, quantised, *more, check_numbers(header, network), check_tokenizer(header, config, trust_remote_code))
    return _Looked(checks, torch.float32, config, network, structure)
