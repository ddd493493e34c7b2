"""Checks of a model's files: whether they are there, whole, and can be read without running code from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bluedit.doctor.report import Check
from bluedit.errors import ModelError, first_line
from bluedit.models.configuration import read_configuration
from bluedit.models.embedded import DOWNLOADS
from bluedit.models.getting import origin_of
from bluedit.models.gguf import GgufHeader, read_gguf_tokenizer
from bluedit.models.inputs.tokens import PromptTokenizer
from bluedit.models.loading import locate
from bluedit.models.memory.estimate import gigabytes
from bluedit.models.weight_files import WeightFiles

__all__ = ["check_configuration", "check_numbers", "check_quantisation", "check_tokenizer", "check_weights", "find_model"]

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
_CONVERT = (
    "pickles run code when they are opened, and bluedit does not open them; where you trust them, convert them in Python: "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), and save the tokenizer there too"
)


def find_model(name: str) -> tuple[Path | None, Check]:
    try:
        source = locate(name)
    except ModelError as error:
        return None, Check("model", "problem", str(error))
    if isinstance(source, Path):
        if source.is_file():
            return source, Check("model", "ok", f"GGUF file {source}", {"file": str(source)})
        origin = origin_of(source) or {}
        got = f", got from the {origin['source']} ({origin['from']})" if {"source", "from"} <= origin.keys() else ""
        return source, Check("model", "ok", f"folder {source}{got}", {"folder": str(source)})
    if source in DOWNLOADS:
        message = f"{source} is not cached yet, and this command downloads nothing: run bluedit get {source}"
        return None, Check("model", "problem", message)
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(source, "config.json")
    except ValueError as error:  # no name that the hub could have
        return None, Check("model", "problem", f"{name!r} is neither a folder nor a name on the hub: {first_line(error)}")
    if not isinstance(cached, str):
        return None, Check(
            "model",
            "problem",
            f"there is no folder {name!r}, and the local cache of the hub does not hold it; this command downloads nothing: "
            f"run hf download {name}",
        )
    folder = Path(cached).parent
    return folder, Check("model", "ok", f"{name}, in the local cache of the hub", {"folder": str(folder)})


def check_configuration(folder: Path, trust_remote_code: bool) -> tuple[Any, Check]:
    from transformers import AutoConfig

    path = folder / "config.json"
    if not path.is_file():
        message = "there is no config.json; give a folder written by save_pretrained"
        if (folder / "adapter_config.json").is_file():
            message = "this is an adapter, not a model; merge it into its model with PEFT's merge_and_unload, and save that"
        return None, Check("configuration", "problem", message)
    try:
        read_configuration(path)
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code, local_files_only=True)
    except ModelError as error:
        return None, Check("configuration", "problem", str(error))
    except Exception as error:  # what a configuration class makes of wrong values is its own
        message = f"config.json cannot be used: {first_line(error)}"
        if not trust_remote_code and "trust_remote_code" in str(error):
            message = "the model comes with its own code; read it, and add --trust-remote-code if you trust it"
        return None, Check("configuration", "problem", message)
    kind = str(config.model_type)
    return config, Check("configuration", "ok", f"model type {kind}", {"model_type": kind})


def check_quantisation(header: GgufHeader, chosen: torch.dtype | str) -> Check:
    """What kinds of numbers a GGUF file holds, and what an edit of them means."""
    dtype = str(chosen if isinstance(chosen, torch.dtype) else torch.float32).removeprefix("torch.")
    details = {"tensors": dict(header.tensors), "numbers": dict(header.numbers), "quantised": header.quantised, "dtype": dtype}
    size = torch.finfo(getattr(torch, dtype)).bits // 8 * header.parameters
    said = (
        f"{header.types}; {'dequantised to' if header.quantised else 'read as'} {dtype} when it is loaded "
        f"({gigabytes(size)} for {gigabytes(header.size)} in the file). The edit is made on that copy: the file stays as "
        "it is, and bluedit patch apply writes a Hugging Face folder"
    )
    if header.quantised:
        said += ". What the quantisation lost stays lost, and quantising the result again rounds the edit too"
    if cautions := header.cautions:
        return Check("precision", "warning", f"{said}. But {'; '.join(cautions)}", details)
    return Check("precision", "ok", said, details)


def check_numbers(header: GgufHeader, network: nn.Module | None) -> Check:
    details = {"parameters": header.parameters, "bytes": header.size}
    expected = sum(parameter.numel() for parameter in network.parameters()) if network is not None else 0
    if header.parameters < expected:
        message = f"{header.parameters:,} numbers in the file, and {expected:,} in the model that it describes; fetch it again"
        return Check("weights", "problem", message, details)
    tensors = sum(header.tensors.values())
    return Check("weights", "ok", f"{header.path.name}, {tensors} tensors, {header.parameters:,} numbers", details)


def check_weights(files: WeightFiles, network: nn.Module | None) -> Check:
    """Whether all files are there and whole, and hold as many numbers as the architecture has."""
    details: dict[str, Any] = asdict(files) | {"parameters": files.parameters}

    def problem(message: str) -> Check:
        return Check("weights", "problem", message, details)

    if files.broken:
        return problem("; ".join(f"{name} {what}" for name, what in files.broken.items()) + "; fetch the folder again")
    if files.missing:
        count = len(files.missing)
        return problem(f"{count} of {count + len(files.files)} shards are missing: {_few(files.missing)}; fetch them again")
    if not files.files:
        if files.pickles:
            return problem(f"no safetensors weights, only {_few(files.pickles)}: {_CONVERT}")
        if files.others:
            return problem(f"no model.safetensors or its index, only {_few(files.others)}; restore the folder")
        return problem("no weights: no model.safetensors, and no index of shards; fetch them, or save the model here")
    expected = sum(parameter.numel() for parameter in network.parameters()) if network is not None else 0
    if files.parameters < expected:
        return problem(f"{files.parameters:,} numbers in the files, and {expected:,} in the model of config.json; restore them")
    count = f"{len(files.files)} shards" if len(files.files) > 1 else ", ".join(files.files)
    return Check("weights", "ok", f"{count}, {files.parameters:,} numbers, {files.dtype}", details)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_tokenizer(source: Path | GgufHeader, config: Any, trust_remote_code: bool) -> Check:
    from transformers import AutoTokenizer

    if isinstance(source, Path) and not any(path.is_file() for pattern in _TOKENIZER_FILES for path in source.glob(pattern)):
        return Check("tokenizer", "problem", "there is none; save it next to the model with tokenizer.save_pretrained")
    try:
        if isinstance(source, Path):
            tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=trust_remote_code, local_files_only=True)
        else:
            tokenizer = read_gguf_tokenizer(source)
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:
            raise ModelError("its vocabulary is empty; save it next to the model with tokenizer.save_pretrained")
        encoder = PromptTokenizer(tokenizer)
    except ModelError as error:
        return Check("tokenizer", "problem", str(error))
    except Exception as error:  # libraries that a tokenizer needs, files that it cannot read
        return Check("tokenizer", "problem", f"it cannot be loaded: {first_line(error)}")
    kind, size = type(tokenizer).__name__, len(tokenizer)
    start = [str(token) for token in tokenizer.convert_ids_to_tokens(list(encoder.prompt("")))]
    chat = bool(getattr(tokenizer, "chat_template", None))
    details = {"class": kind, "fast": True, "size": size, "starts_with": start, "chat_template": chat}
    said = (
        f"{kind}, fast, {size:,} tokens, prompts start with {' '.join(start) or 'no special token'}, "
        f"{'a' if chat else 'no'} chat template"
    )
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if isinstance(rows, int) and size > rows:
        return Check("tokenizer", "warning", f"{said}; the model has only {rows:,} tokens: is it this model's?", details)
    return Check("tokenizer", "ok", said, details)
