"""GGUF files: llama.cpp's format, one file with numbers, mostly quantised, settings, tokenizer and chat template.

A change cannot be added to blocks of four bits. The numbers are therefore *dequantised* when the file is loaded: every block is
written out as the floats that it stands for, into an ordinary model of transformers. That model is edited; the file stays as it
is. What the quantisation lost of the original weights stays lost.

The header is read here, with a check of every length, so that a file can be looked over at once and without any library.
transformers and the `gguf` package do the rest.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import mmap
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bluedit.errors import BlueditError, ModelError, excerpt, first_line, shortened
from bluedit.models.configuration import check_sizes
from bluedit.progress import Progress, silent, stage

__all__ = [
    "INSTALL",
    "GgufHeader",
    "check_supported",
    "is_gguf",
    "read_gguf",
    "read_gguf_config",
    "read_gguf_header",
    "read_gguf_model",
    "read_gguf_tokenizer",
]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
INSTALL = "pip install 'bluedit[gguf]'"
"""How the package is had that dequantises."""
_AGAIN = "fetch the file again"


class _Kind(NamedTuple):
    """A way to store numbers: its name, how many numbers are in a block, and the bytes of one."""

    name: str
    numbers: int
    width: int


_KINDS: Mapping[int, _Kind] = {
    0: _Kind("F32", 1, 4), 1: _Kind("F16", 1, 2), 2: _Kind("Q4_0", 32, 18), 3: _Kind("Q4_1", 32, 20), 6: _Kind("Q5_0", 32, 22),
    7: _Kind("Q5_1", 32, 24), 8: _Kind("Q8_0", 32, 34), 9: _Kind("Q8_1", 32, 40), 10: _Kind("Q2_K", 256, 84),
    11: _Kind("Q3_K", 256, 110), 12: _Kind("Q4_K", 256, 144), 13: _Kind("Q5_K", 256, 176), 14: _Kind("Q6_K", 256, 210),
    15: _Kind("Q8_K", 256, 292), 16: _Kind("IQ2_XXS", 256, 66), 17: _Kind("IQ2_XS", 256, 74), 18: _Kind("IQ3_XXS", 256, 98),
    19: _Kind("IQ1_S", 256, 50), 20: _Kind("IQ4_NL", 32, 18), 21: _Kind("IQ3_S", 256, 110), 22: _Kind("IQ2_S", 256, 82),
    23: _Kind("IQ4_XS", 256, 136), 24: _Kind("I8", 1, 1), 25: _Kind("I16", 1, 2), 26: _Kind("I32", 1, 4),
    27: _Kind("I64", 1, 8), 28: _Kind("F64", 1, 8), 29: _Kind("IQ1_M", 256, 56), 30: _Kind("BF16", 1, 2),
    34: _Kind("TQ1_0", 256, 54), 35: _Kind("TQ2_0", 256, 66), 39: _Kind("MXFP4", 32, 17), 40: _Kind("NVFP4", 64, 36),
}  # fmt: skip
"""The format's types of tensors by number; numbers that are missing were given up."""
_PLAIN = ("F32", "F16", "BF16", "F64")

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST_NAME = 4096
_MOST_DIMENSIONS = 8
_MOST_LAYERS = 10_000

_DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r", "codeshell")
"""How vocabularies split texts, as files name it, in which each digit stands alone; transformers does not know these."""
_AS_GPT2 = ("default", "gpt-2", "phi-2", "mpt", "olmo", "")
"""Those that split as GPT-2 does, which is what transformers does with every name that it does not know."""


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    - `metadata`: its settings; of lists only how many entries they have.
    - `tensors`, `numbers`: how many tensors, and numbers in them, there are of each type (`Q4_1`, `F32`).
    - `names`: of the tensors.
    - `size`: bytes of the file.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, int]
    numbers: Mapping[str, int]
    names: frozenset[str]
    size: int

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def types(self) -> str:
        """The types for people: `Q4_1: 210 tensors, F32: 61`."""
        counts = sorted(self.tensors.items(), key=lambda pair: -self.numbers[pair[0]])
        first, *rest = (f"{name}: {count}" for name, count in counts)
        return ", ".join([f"{first} tensors", *rest])

    @property
    def quantised(self) -> bool:
        return any(name not in _PLAIN for name in self.numbers)

    @property
    def blocks(self) -> int:
        """How many layers there are."""
        count = self.metadata.get(f"{self.architecture}.block_count")
        if not isinstance(count, int) or not 0 < count <= _MOST_LAYERS:
            raise ModelError(f"{self.path} does not say how many layers it has (block_count is {excerpt(count)}); {_AGAIN}")
        return count

    @property
    def parameters(self) -> int:
        return sum(self.numbers.values())

    @property
    def splits_otherwise(self) -> str | None:
        """How the vocabulary splits texts, where nobody here knows that; texts are then split as for GPT-2."""
        name = str(self.metadata.get("tokenizer.ggml.pre", ""))
        if self.metadata.get("tokenizer.ggml.model") != "gpt2" or name in (*_AS_GPT2, *_DIGITS_ALONE):
            return None
        with contextlib.suppress(ImportError):
            from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

            return None if name in GGUF_PRE_TOKENIZER_SPLITS else name
        return name

    @property
    def scaled_rotation(self) -> bool:
        """Whether rotary positions are scaled by a tensor, as in Llama 3.1, which transformers does not read."""
        return "rope_freqs.weight" in self.names

    @property
    def cautions(self) -> list[str]:
        """What may make the model in transformers another one than llama.cpp runs."""
        found: list[str] = []
        if (split := self.splits_otherwise) is not None:
            found.append(
                f"the file's pre-tokenizer, {excerpt(split)}, is unknown: some texts may be tokenised differently than in "
                "training"
            )
        if self.scaled_rotation:
            found.append(
                "the file scales its rotary positions (rope_freqs.weight), which transformers does not read: the model "
                "computes differently than in training; prefer its Hugging Face folder"
            )
        return found


def is_gguf(path: Path) -> bool:
    """Whether a file is meant as a GGUF file: it is called so, or begins so."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == _MAGIC
    except OSError:
        return False


# -- the header ------------------------------------------------------------------------------------------------------


class _CutOffError(ValueError):
    """The file ends before what it announces."""


class _Reader:
    """Reads little-endian values one after the other, never beyond the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.place, self.size = data, 4, len(data)

    def number(self, form: str) -> Any:
        self.need(width := struct.calcsize(form))
        (value,) = struct.unpack_from(form, self._data, self.place)
        self.place += width
        return value

    def text(self) -> str:
        length = self.number("<Q")
        self.need(length)
        self.place += length
        return self._data[self.place - length : self.place].decode("utf-8", "replace")

    def count(self, least: int) -> int:
        """How many things follow, each of which takes at least so many bytes."""
        count = self.number("<Q")
        self.need(count * least)
        return count

    def value(self, kind: int) -> Any:
        """One setting; of a list the number of its entries."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"a setting of the unknown type {kind}")
        inner = self.number("<I")
        if inner in _SCALARS:
            width = struct.calcsize(_SCALARS[inner])
            count = self.count(width)
            self.place += count * width
            return count
        if inner != _STRING:
            raise ValueError(f"a list of the unknown type {inner}")
        count = self.count(8)
        for _ in range(count):
            length = self.number("<Q")
            self.need(length)
            self.place += length
        return count

    def need(self, count: int) -> None:
        if self.place + count > self.size:
            raise _CutOffError


def read_gguf(path: Path) -> GgufHeader:
    """The header of a model's file, once it is sure that the file is as long as that says.

    **Raises** :class:`~bluedit.errors.ModelError` for a file that is not GGUF, is cut off, or holds only a part of a model.
    """
    header = read_gguf_header(path)
    _check_whole_model(header)
    return header


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a file of any kind, an adapter's too; errors are those of :func:`read_gguf`."""
    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise ModelError(f"{path} is not a GGUF file: it does not begin with the letters GGUF; {_AGAIN}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read_header(path, _Reader(data))
    except _CutOffError:
        raise ModelError(f"{path} is cut off: it is shorter than its header says; {_AGAIN}") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {first_line(error)}") from error
    except ValueError as error:
        if isinstance(error, BlueditError):
            raise
        raise ModelError(f"{path} is damaged: its header has {error}; {_AGAIN}") from error


def _read_header(path: Path, reader: _Reader) -> GgufHeader:
    if (version := reader.number("<I")) not in _VERSIONS:
        raise ModelError(
            f"{path} is of version {version} of GGUF, and only {' and '.join(map(str, _VERSIONS))} are read (little-endian); "
            "convert it with a recent llama.cpp"
        )
    tensor_count, setting_count = reader.number("<Q"), reader.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(setting_count):
        name = reader.text()
        metadata[name] = reader.value(reader.number("<I"))
    tensors: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    names: set[str] = set()
    end = 0
    for _ in range(tensor_count):
        name = reader.text()
        if len(name) > _LONGEST_NAME or (dimensions := reader.number("<I")) > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor {excerpt(name)} of no possible name or shape")
        shape = [reader.number("<Q") for _ in range(dimensions)]
        kind, offset, total = reader.number("<I"), reader.number("<Q"), math.prod(shape)
        known = _KINDS.get(kind, _Kind(f"type {kind}", 1, 0))  # of what is not known any size will do
        names.add(name)
        tensors[known.name] += 1
        numbers[known.name] += total
        end = max(end, offset + total // known.numbers * known.width)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
        raise ValueError(f"the alignment {excerpt(alignment)}")
    start = -(-reader.place // alignment) * alignment
    if start + end > reader.size:
        raise _CutOffError
    if not isinstance(metadata.get("general.architecture"), str):
        raise ValueError("no general.architecture")
    return GgufHeader(path, metadata, dict(tensors), dict(numbers), frozenset(names), reader.size)


def _check_whole_model(header: GgufHeader) -> None:
    parts = header.metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise ModelError(f"{header.path} is one of {parts} parts of a model; join them with llama.cpp's gguf-split --merge")
    kind = header.metadata.get("general.type", "model")
    if kind != "model" or not header.tensors:
        what = f"holds {excerpt(kind)}" if kind != "model" else "holds no tensors"
        raise ModelError(f"{header.path} {what}, and no language model; give the file of the model itself")


# -- what transformers makes of it -----------------------------------------------------------------------------------


def check_supported(header: GgufHeader) -> None:
    """**Raises** :class:`~bluedit.errors.ModelError` when the `gguf` package is missing, or cannot dequantise a type."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{header.path} is a GGUF file, and the package that dequantises those is missing; {INSTALL}")
    from transformers.utils.import_utils import is_gguf_available

    if not is_gguf_available():
        raise ModelError(f"the package gguf is too old for transformers; {INSTALL} --upgrade")
    if unknown := [name for name in header.tensors if not _dequantised(name)]:
        raise ModelError(
            f"{header.path} holds tensors of type {shortened(', '.join(unknown))}, which the package gguf cannot dequantise; "
            "take a file of the same model in another quantisation, best F16 or Q8_0, or the folder it was made from"
        )


def _dequantised(kind: str) -> bool:
    """Whether the `gguf` package can write out a block of this type: tried on an empty one."""
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize

    try:
        number = next(number for number, known in _KINDS.items() if known.name == kind)
        width = _KINDS[number].width
        dequantize(np.zeros((1, width), np.uint8), GGMLQuantizationType(number))
    except (StopIteration, NotImplementedError, ValueError, KeyError):
        return False
    return True


def read_gguf_config(header: GgufHeader) -> Any:
    """The configuration of transformers for a file.

    **Raises** :class:`~bluedit.errors.ModelError` where transformers has none.
    """
    from transformers import AutoConfig

    check_supported(header)
    place = _place(header)
    try:
        config: Any = AutoConfig.from_pretrained(place.pop("folder"), **place)
    except Exception as error:  # its errors are of every kind
        raise ModelError(
            f"transformers cannot make a model of {header.path} (architecture {header.architecture}): {first_line(error)}; "
            "load the Hugging Face folder that the file was made from"
        ) from error
    check_sizes(config.to_dict(), str(header.path))
    # The title in the file's settings, under a name that would count as a setting of the model.
    if hasattr(config, "_model_name_or_path"):
        del config._model_name_or_path
    return config


def read_gguf_tokenizer(header: GgufHeader) -> Any:
    """The tokenizer in a file, with its chat template.

    **Raises** :class:`~bluedit.errors.ModelError` where there is none, or none that can be built.
    """
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if not header.metadata.get("tokenizer.ggml.tokens"):
        raise ModelError(f"{header.path} holds no tokenizer; load the Hugging Face folder that it was made from")
    try:
        # Not from_pretrained: that would take a tokenizer.json that happens to lie next to the file.
        tokenizer: Any = PreTrainedTokenizerFast(gguf_file=header.path.name, name_or_path=str(header.path.absolute().parent))
    except Exception as error:  # its errors are of every kind
        raise ModelError(f"the tokenizer of {header.path} cannot be built: {first_line(error)}") from error
    if header.metadata.get("tokenizer.ggml.pre") in _DIGITS_ALONE and header.metadata["tokenizer.ggml.model"] == "gpt2":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def read_gguf_model(
    header: GgufHeader, config: Any, dtype: torch.dtype, progress: Progress = silent, **options: Any
) -> tuple[Any, Mapping[str, Any]]:
    """The dequantised model: an ordinary one, that can be saved. And which of its weights the file does not hold.

    `options` go to `AutoModelForCausalLM.from_pretrained`.
    """
    import transformers

    for caution in header.cautions:
        warnings.warn(caution, stacklevel=3)
    if hasattr(transformers, "GgufConfig"):  # earlier versions always dequantise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    place = _place(header)
    with _dequantising(progress):
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            place.pop("folder"), config=config, dtype=dtype, output_loading_info=True, **place, **options
        )
    model, report = loaded
    # What would make save_pretrained refuse, where transformers left it: the numbers are plain floats now.
    for owner, name in ((model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config")):
        if getattr(owner, name, None) is not None:
            delattr(owner, name)
    model.config._name_or_path = str(header.path)
    return model, report


def _place(header: GgufHeader) -> dict[str, str]:
    return {"folder": str(header.path.absolute().parent), "gguf_file": header.path.name}


@contextlib.contextmanager
def _dequantising(progress: Progress) -> Generator[None]:
    """Have transformers count the tensors it reads with `progress`, and not with a bar of its own on standard error.

    And have it make the table of names once, and not for every module: that takes longer than all the rest.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reading

    def counted(items: Iterable[Any], **_: Any) -> Iterator[Any]:
        tensors = list(items)
        with stage(progress, "dequantising", len(tensors)) as advance:
            for tensor in tensors:
                yield tensor
                advance(1)

    with _replaced(reading, "tqdm", lambda _: counted), _replaced(gguf, "get_tensor_name_map", functools.cache):
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str, change: Callable[[Any], Any]) -> Generator[None]:
    """A function of a module recreated from itself while the block runs; nothing where there is none of that name."""
    before = getattr(module, name, None)
    if before is None:
        yield
        return
    setattr(module, name, change(before))
    try:
        yield
    finally:
        setattr(module, name, before)
