"""Looking a model over before it is edited: what it is, what is missing, what an edit would take.

Of weights nothing but the headers of files is read: the architecture is built without numbers (on PyTorch's meta device), so a
checkpoint of 70 billion parameters is looked over in seconds. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bluedit.editors.base import Editor
from bluedit.editors.presets import Preset, find_preset
from bluedit.editors.settings import Settings
from bluedit.errors import ModelError, SettingsError, first_line
from bluedit.models.configuration import read_configuration
from bluedit.models.editable import context_length, takes_positions
from bluedit.models.getting import origin_of
from bluedit.models.gguf import GgufHeader, read_gguf, read_gguf_config, read_gguf_tokenizer
from bluedit.models.inputs.tokens import PromptTokenizer
from bluedit.models.layout.maps import ModuleMap
from bluedit.models.layout.structure import Structure, discover
from bluedit.models.loading import UNQUANTISED, choose_device, choose_dtype, locate, quantisation
from bluedit.models.memory.estimate import MemoryPlan, gigabytes, plan_memory, value_flops
from bluedit.models.memory.machine import Memory, memory_of, product_speed
from bluedit.models.weight_files import WeightFiles, read_weight_files
from bluedit.strategies import SINGLE
from bluedit.zoo import DOWNLOADS

__all__ = ["Check", "Examination", "Status", "examine", "plan_for", "plan_line"]

Status = Literal["ok", "warning", "problem"]

_EFFICIENCY = 0.4
"""Of the matrix-product peak, in value optimisation: benchmarks/results/speed.json has 0.31 to 0.46."""
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken")
_TORCH_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_CONVERT = (
    "pickles run code when they are opened, and bluedit does not open them; where you trust them, convert them in Python: "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), and save the tokenizer beside"
)


@dataclass(frozen=True)
class Check:
    """One thing looked at. A problem stands in the way of editing; a warning says what is missing or will be slow.

    `message` names the mend where there is something to mend; `details` are the same facts for machines.
    """

    name: str
    status: Status
    message: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Examination:
    """All checks of one model, in the order they were made."""

    model: str
    checks: tuple[Check, ...]

    @property
    def editable(self) -> bool:
        """Whether nothing stands in the way."""
        return all(check.status != "problem" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """The document that `bluedit doctor --json` prints."""
        return {"model": self.model, "editable": self.editable, "checks": [asdict(check) for check in self.checks]}


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
    folder, check = _find(name)
    checks = [check]
    if folder is None:
        return Examination(name, tuple(checks))
    look = _look_at_file if folder.is_file() else _look_at_folder
    found = look(folder, chosen, module_map, trust_remote_code)
    checks += found.checks
    config, network, structure = found.config, found.network, found.structure
    if config is not None and network is not None and structure is not None:
        known = find_preset(config)
        critical, check = _check_layers(known, method, structure, layers)
        checks.append(check)
        weight_type = chosen if isinstance(chosen, torch.dtype) else found.stored
        settings = method.override(known.settings_for(method.name, method.strategy.name) if known else {})
        if method.needs(settings).second_moments:
            checks.append(_check_corpus(known))
        checks.append(_check_settings(known, method, settings))
        plan = plan_for(network, structure, method, critical, settings, weight_type)
        checks.append(_check_memory(plan, method, critical, settings, target, weight_type))
        checks.append(_estimate_time(network, structure, method, critical, settings, target, weight_type))
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
    config, check = _read_config(folder, trust_remote_code)
    if config is None:
        return _Looked((check, _check_weights(files, None)), torch.float32)
    network, structure, more = _check_architecture(config, module_map, trust_remote_code)
    weights = _check_weights(files, None if quantisation(config) is not None else network)
    tokenizer = _check_tokenizer(folder, config, trust_remote_code)
    stored = _TORCH_TYPES.get(files.dtype or "", getattr(config, "dtype", None))
    stored = stored if isinstance(stored, torch.dtype) else torch.float32
    return _Looked((check, _check_precision(config), *more, weights, tokenizer), stored, config, network, structure)


def _look_at_file(path: Path, chosen: torch.dtype | str, module_map: ModuleMap | None, trust_remote_code: bool) -> _Looked:
    """A GGUF file."""
    try:
        header = read_gguf(path)
    except ModelError as error:
        return _Looked((Check("weights", "problem", str(error)),), torch.float32)
    quantised = _check_quantisation(header, chosen)
    try:
        config = read_gguf_config(header)
    except ModelError as error:
        return _Looked((quantised, Check("configuration", "problem", str(error))), torch.float32)
    kind = str(config.model_type)
    said = f"architecture {header.architecture}, model type {kind}"
    check = Check("configuration", "ok", said, {"architecture": header.architecture, "model_type": kind})
    network, structure, more = _check_architecture(config, module_map, trust_remote_code)
    checks = (check, quantised, *more, _check_numbers(header, network), _check_tokenizer(header, config, trust_remote_code))
    return _Looked(checks, torch.float32, config, network, structure)


# -- files -----------------------------------------------------------------------------------------------------------


def _find(name: str) -> tuple[Path | None, Check]:
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
        message = f"{source} is not here yet, and nothing is downloaded here: run bluedit get {source}"
        return None, Check("model", "problem", message)
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(source, "config.json")
    except ValueError as error:  # no name that the hub could have
        return None, Check("model", "problem", f"{name!r} is no folder and no name of the hub: {first_line(error)}")
    if not isinstance(cached, str):
        return None, Check(
            "model",
            "problem",
            f"there is no folder {name!r}, and the local cache of the hub does not hold it; nothing is downloaded here: run "
            f"hf download {name}",
        )
    folder = Path(cached).parent
    return folder, Check("model", "ok", f"{name}, in the local cache of the hub", {"folder": str(folder)})


def _read_config(folder: Path, trust_remote_code: bool) -> tuple[Any, Check]:
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
            message = "the model comes with code of its own; read it, and say --trust-remote-code where you trust it"
        return None, Check("configuration", "problem", message)
    kind = str(config.model_type)
    return config, Check("configuration", "ok", f"model type {kind}", {"model_type": kind})


def _check_quantisation(header: GgufHeader, chosen: torch.dtype | str) -> Check:
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


def _check_numbers(header: GgufHeader, network: nn.Module | None) -> Check:
    details = {"parameters": header.parameters, "bytes": header.size}
    expected = sum(parameter.numel() for parameter in network.parameters()) if network is not None else 0
    if header.parameters < expected:
        message = f"{header.parameters:,} numbers in the file, and {expected:,} in the model that it describes; fetch it again"
        return Check("weights", "problem", message, details)
    tensors = sum(header.tensors.values())
    return Check("weights", "ok", f"{header.path.name}, {tensors} tensors, {header.parameters:,} numbers", details)


def _check_weights(files: WeightFiles, network: nn.Module | None) -> Check:
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


def _check_tokenizer(source: Path | GgufHeader, config: Any, trust_remote_code: bool) -> Check:
    from transformers import AutoTokenizer

    if isinstance(source, Path) and not any(path.is_file() for pattern in _TOKENIZER_FILES for path in source.glob(pattern)):
        return Check("tokenizer", "problem", "there is none; save it beside the model with tokenizer.save_pretrained")
    try:
        if isinstance(source, Path):
            tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=trust_remote_code, local_files_only=True)
        else:
            tokenizer = read_gguf_tokenizer(source)
        if not tokenizer("a", add_special_tokens=False)["input_ids"]:
            raise ModelError("its vocabulary is empty; save it beside the model with tokenizer.save_pretrained")
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


# -- architecture ----------------------------------------------------------------------------------------------------


def _check_precision(config: Any) -> Check:
    if kind := quantisation(config):
        return Check("precision", "problem", f"the weights are quantised ({kind}); {UNQUANTISED}", {"quantised": kind})
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    return Check("precision", "ok", f"{dtype}, not quantised", {"quantised": None, "dtype": dtype})


def _check_architecture(
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
            return problem(f"{config.model_type} is no causal language model; bluedit edits decoder-only language models")
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


# -- what an edit needs, and takes -----------------------------------------------------------------------------------


def _check_layers(
    known: Preset | None, method: Editor, structure: Structure, layers: Sequence[int] | None
) -> tuple[tuple[int, ...], Check]:
    """The critical layers, and where they are from; where none are known, some to make the plans for."""
    single = method.strategy == SINGLE
    critical, source = tuple(sorted(set(layers or ()))), "named"
    if not critical and method.strategy.fixed_layers:
        critical, source = method.strategy.fixed_layers, "the strategy's"
    if not critical and known:
        critical, source = known.layers_for(method.name, one=single) or (), f"known for {known.name}"
    if wrong := [layer for layer in critical if layer not in structure.dense]:
        raise SettingsError(
            f"layer {wrong[-1]} of this model cannot be edited; choose among layers {', '.join(map(str, structure.dense))}"
        )
    if critical:
        edited = _edited(method, critical)
        details: dict[str, Any] = {"known": known.name if known else None, "layers": list(critical), "edited": list(edited)}
        said = f"critical layers {_listed(critical)} ({source}), edited by {method.label}: {_listed(edited)}"
        return critical, Check("layers", "ok", said, details)
    below = [layer for layer in structure.dense if layer <= structure.depth // 3] or list(structure.dense)
    critical = tuple(below[-1:] if single else below[-5:])
    message = (
        f"the critical layers are not known for {method.name}; find them with bluedit trace and say --layers auto, or name "
        f"them with --layers; plans below assume {_listed(critical)}"
    )
    return critical, Check("layers", "warning", message, {"known": None, "layers": None, "assumed": list(critical)})


def _check_corpus(known: Preset | None) -> Check:
    if known and known.corpus:
        return Check("corpus", "ok", f"second moments are taken over {known.corpus}", {"corpus": known.corpus})
    message = "no text is known to take second moments of keys over; name one: --corpus text:FILE, hub:NAME, or stats:FILE"
    return Check("corpus", "warning", message, {"corpus": None})


def _check_settings(known: Preset | None, method: Editor, settings: Settings) -> Check:
    values = settings.as_dict()
    used = {name: values[name] for name in method.uses}
    if known:
        return Check("settings", "ok", f"known for {known.name}", {"known": known.name, "settings": used})
    message = (
        f"not known for this model; the common ones of {method.name} may edit nothing here: find its own with bluedit tune"
    )
    return Check("settings", "warning", message, {"known": None, "settings": used})


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def _edited(method: Editor, critical: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(step.layer for step in method.strategy.steps(critical)))


def _aims(method: Editor, critical: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(step.target_layer for step in method.strategy.steps(critical)))


def plan_for(
    network: nn.Module, structure: Structure, method: Editor, critical: Sequence[int], settings: Settings, dtype: torch.dtype
) -> MemoryPlan:
    """The memory that an edit takes; see :func:`~bluedit.models.memory.estimate.plan_memory`."""
    needs = method.needs(settings)
    return plan_memory(
        structure,
        sum(parameter.numel() for parameter in network.parameters()),
        layers=_edited(method, critical),
        lowest_aim=min(_aims(method, critical)),
        weight_bytes=dtype.itemsize,
        metric_bytes=needs.metric_bytes,
        caches_keys=needs.keeps_initial,
        trains=needs.trains,
    )


def plan_line(plan: MemoryPlan, device: torch.device) -> str:
    """The plan in one line, with what there is."""
    gpu, memory = device.type == "cuda", memory_of(device)
    needed = plan.on_gpu(stored=True) if gpu else plan.on_cpu
    parts = f"weights {gigabytes(plan.weights)}, inverse metrics {gigabytes(plan.metrics)}"
    if plan.initial:
        parts += f" and as much to undo batches{' in main memory' if gpu else ''}"
    there = f"; {memory.name} has {gigabytes(memory.total)}" if memory else ""
    return f"memory: about {gigabytes(needed)} at most ({parts}){there}"


def _check_memory(
    plan: MemoryPlan, method: Editor, critical: Sequence[int], settings: Settings, device: torch.device, dtype: torch.dtype
) -> Check:
    gpu = device.type == "cuda"
    memory, main = memory_of(device), memory_of(torch.device("cpu"))
    needed, first = (plan.on_gpu(stored=True), plan.on_gpu(stored=False)) if gpu else (plan.on_cpu, plan.on_cpu)
    details: dict[str, Any] = {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": plan.as_dict(),
        "needed": needed,
        "needed_with_statistics": first,
        "needed_main_memory": plan.beside_gpu if gpu else needed,
        "total": memory.total if memory else None,
        "free": memory.free if memory else None,
    }
    if gpu:
        places = (_Place(memory, needed, "on the GPU"), _Place(main, plan.beside_gpu, "in main memory"))
    else:
        places = (_Place(memory, needed, "in main memory"),)
    said = "; ".join(place.said for place in places) + f" ({details['dtype']}): weights {gigabytes(plan.weights)}, "
    if plan.metrics:
        said += f"inverse metrics {gigabytes(plan.metrics)}"
        said += f" and as much again {'in main memory ' if gpu else ''}to undo batches, " if plan.initial else ", "
        said += f"{gigabytes(plan.moments + plan.inverting)} while they are made, "
    said += f"activations {gigabytes(plan.activations)}"
    helps: list[str] = []
    if dtype.itemsize > 2:
        helps.append("--dtype bfloat16")
    if plan.metrics and method.needs(settings).metric_bytes > 4:
        helps.append("--set metric_dtype=float32")
    if len(_edited(method, critical)) > 1:
        helps.append("fewer layers")
    helps.append("several GPUs (--device auto), or --device cpu" if gpu else "a machine with more memory")
    if any(place.memory and plan.weights > place.memory.total for place in places):
        return Check("memory", "problem", f"{said}. The weights alone do not fit; what would help: {'; '.join(helps)}", details)
    if tight := [place for place in places if place.memory and place.needed > place.memory.free]:
        free = ", ".join(gigabytes(place.memory.free) for place in tight if place.memory)
        return Check("memory", "warning", f"{said}. Only {free} are free; what would help: {'; '.join(helps)}", details)
    if gpu and memory and first > memory.free:
        message = f"{said}. Take second moments in a run before (bluedit stats --no-measure): in the same run it would be "
        return Check("memory", "warning", message + gigabytes(first), details)
    return Check("memory", "ok", said, details)


@dataclass(frozen=True)
class _Place:
    memory: Memory | None
    needed: int
    where: str

    @property
    def said(self) -> str:
        there = f" of {gigabytes(self.memory.total)}, {gigabytes(self.memory.free)} free" if self.memory else ""
        return f"about {gigabytes(self.needed)} {self.where}{there}"


def _estimate_time(
    network: nn.Module,
    structure: Structure,
    method: Editor,
    critical: Sequence[int],
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
) -> Check:
    layer = network.get_submodule(structure.layer_path(critical[0]))
    head: Any = network.get_output_embeddings()  # type: ignore[operator]
    speed = product_speed(device, dtype)
    needs = method.needs(settings)
    # Training runs the layers above forward and back, and the weight's own gradient beside.
    aims = tuple(critical) if needs.trains else _aims(method, critical)
    flops = value_flops(
        structure,
        layer_weights=sum(parameter.numel() for parameter in layer.parameters() if parameter.ndim == 2),
        vocabulary=head.weight.shape[0],
        aims=aims,
        evaluations=needs.evaluations,
    )
    seconds = flops / (_EFFICIENCY * speed)
    details: dict[str, Any] = {
        "flops_per_fact": flops, "peak_flops_per_second": speed, "efficiency": _EFFICIENCY, "seconds_per_fact": seconds,
    }  # fmt: skip
    said = (
        f"roughly {_duration(seconds)} a fact: {flops:.2g} FLOPs at {_EFFICIENCY:.0%} of the {speed:.2g} FLOP/s of a matrix "
        "product here"
    )
    if needs.second_moments:
        # A Cholesky factor, and the inverse from it: F^3 multiplications and additions.
        count = len(_edited(method, critical))
        wide = product_speed(torch.device("cpu"), torch.float64)
        inverting = count * 2 * structure.d_ff**3 / (_EFFICIENCY * wide)
        details["seconds_inverting"] = inverting
        said += f"; once, inverting the second moments of {count} layer{'s' * (count > 1)}: {_duration(inverting)}"
    return Check("time", "ok", said, details)


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:,.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{1000 * seconds:.0f} ms" if seconds >= 1e-3 else "less than 1 ms"
