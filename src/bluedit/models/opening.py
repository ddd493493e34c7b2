"""Open a model's folder or GGUF file: its network, tokenizer and weights, on a device, ready to edit."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bluedit.errors import BlueditError, ModelError, SettingsError, did_you_mean, excerpt, first_line
from bluedit.models.configuration import check_sizes
from bluedit.models.editable import EditableModel
from bluedit.models.gguf import GgufHeader, read_gguf, read_gguf_config, read_gguf_model, read_gguf_tokenizer
from bluedit.models.inputs.chat import Chat
from bluedit.models.layout.maps import ModuleMap, read_module_map
from bluedit.progress import Progress, silent

__all__ = ["DTYPES", "UNQUANTISED", "choose_device", "choose_dtype", "open_model", "quantisation"]

DTYPES: dict[str, torch.dtype | str] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The weight types a model can be edited in, by name; `auto` is the checkpoint's own."""

UNQUANTISED = (
    "a change cannot be added to them: load the checkpoint that they were made from, edit it in float32, bfloat16 or float16, "
    "and quantise the result again"
)
"""What to do about quantised weights."""


def open_model(
    source: str,
    *,
    name: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    module_map: ModuleMap | str | Path | None = None,
    trust_remote_code: bool = False,
    chat: bool = False,
    progress: Progress = silent,
    **kwargs: Any,
) -> EditableModel:
    """Load a model from a folder, a GGUF file or a name of the hub.

    `name` is what the user called it, for messages; the other arguments, and errors, are those of
    :func:`~bluedit.models.loading.load_model`.
    """
    name = source if name is None else name
    if isinstance(module_map, (str, Path)):
        module_map = read_module_map(module_map)
    if str(device) == "auto":
        kwargs.setdefault("device_map", "auto")
        device = None
    target = choose_device(device)
    chosen = choose_dtype(dtype, target)
    placed = kwargs.get("device_map") is not None
    # With sizes that do not fit transformers raises an error that points to a table in its log: they are told below.
    ignored = kwargs.pop("ignore_mismatched_sizes", False)
    kwargs["ignore_mismatched_sizes"] = True
    if Path(source).is_file():
        model, tokenizer, report = _from_gguf(read_gguf(Path(source)), chosen, chat, progress, kwargs)
    else:
        model, tokenizer, report = _from_folder(name, source, chosen, chat, trust_remote_code, kwargs)
    if not ignored and (mismatched := sorted(report["mismatched_keys"])):
        weight, stored, wanted = mismatched[0]
        raise ModelError(
            f"the model {name!r} does not fit its config.json: the weight {weight} is {_shape(stored)} in the file, and "
            f"{_shape(wanted)} by the configuration ({len(mismatched)} such weights); restore the folder"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"the model {name!r} lacks weights that its config.json asks for, such as {missing[0]}; restore the folder"
        )
    try:
        ready = (model if placed else model.to(target)).eval()
        editable = EditableModel(ready, tokenizer, module_map=module_map, chat=chat)
    except RuntimeError as error:  # a device of that number, or a backend, that is not there
        raise SettingsError(f"the model cannot be put on device {str(target)!r}: {first_line(error)}") from error
    editable.check_finite()
    return editable


_Parts = tuple[Any, Any, Mapping[str, Any]]
"""A model, its tokenizer, and transformers' report on the weights."""


def _from_folder(
    name: str, source: str, dtype: torch.dtype | str, chat: bool, trust_remote_code: bool, kwargs: dict[str, Any]
) -> _Parts:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

    options = {"trust_remote_code": trust_remote_code}
    with _loading(name, "its configuration"):
        check_sizes(PretrainedConfig.get_config_dict(source)[0], f"the configuration of {name}")
        config = AutoConfig.from_pretrained(source, **options)
    if "quantization_config" not in kwargs and (kind := quantisation(config)):
        raise ModelError(f"the weights of {name!r} are quantised ({kind}); {UNQUANTISED}")
    with _loading(name, "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        # Where there are no tokenizer files transformers makes up an empty tokenizer.
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:
            raise ModelError(f"{name} holds no tokenizer; save it next to the model with tokenizer.save_pretrained")
        if chat:
            Chat.of(tokenizer)  # says what is missing before the weights are read
    with _loading(name, "its weights"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, use_safetensors=True, output_loading_info=True, **options, **kwargs
        )
    model, report = loaded
    return model, tokenizer, report


def _from_gguf(header: GgufHeader, dtype: torch.dtype | str, chat: bool, progress: Progress, kwargs: dict[str, Any]) -> _Parts:
    config, tokenizer = read_gguf_config(header), read_gguf_tokenizer(header)
    if chat:
        Chat.of(tokenizer)
    # Norms are float32 in files of any type: in another one the model is not the file's.
    numbers = dtype if isinstance(dtype, torch.dtype) else torch.float32
    with _loading(str(header.path), "its weights"):
        model, report = read_gguf_model(header, config, numbers, progress, **kwargs)
    return model, tokenizer, report


@contextlib.contextmanager
def _loading(name: str, part: str) -> Generator[None]:
    """Inside, what libraries make of files that are not what they should be becomes a :class:`~bluedit.errors.ModelError`."""
    try:
        yield
    except (BlueditError, MemoryError):
        raise
    except Exception as error:  # their errors are of every kind; some are plain exceptions
        reason = "a file is nested too deep" if isinstance(error, RecursionError) else first_line(error)
        raise ModelError(f"the model {name!r} could not be loaded, at {part}: {reason}") from error


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; a GPU when there is one and none is named.

    **Raises** :class:`~bluedit.errors.SettingsError` for a device that is not there.
    """
    try:
        target = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError as error:
        raise SettingsError(f"there is no device {excerpt(str(device))}; write cpu, cuda, cuda:1, mps or auto") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device {str(device)!r} asked for, but no GPU is available; use --device cpu")
    return target


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | str:
    """The weight type of that name; left out, float32 on a CPU and the checkpoint's own elsewhere.

    **Raises** :class:`~bluedit.errors.SettingsError` for an unknown name.
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise SettingsError(did_you_mean(dtype, DTYPES, what="dtype"))
    return (DTYPES[dtype] if isinstance(dtype, str) else dtype) or (torch.float32 if device.type == "cpu" else "auto")


def quantisation(config: Any) -> str | None:
    """How the weights of a checkpoint are quantised, as its configuration says: `gptq, 4 bits`; None where they are not."""
    settings = getattr(config, "quantization_config", None)
    if not settings:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    flags = {4: settings.get("load_in_4bit"), 8: settings.get("load_in_8bit")}
    bits = settings.get("bits") or next((bits for bits, flag in flags.items() if flag), None)
    method = str(settings.get("quant_method", "by an unnamed method"))
    return f"{method}, {bits} bits" if bits else method
