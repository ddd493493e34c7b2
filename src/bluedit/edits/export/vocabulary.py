"""A tokenizer as a GGUF file holds it: tokens, merges, and the name of the way in which it splits texts.

Byte-level BPE alone, as GPT-2, SmolLM2, Llama 3 and Qwen have it. How texts are split before the merges is only named in a GGUF
file, and llama.cpp has the rules: the name is found by the rules in the tokenizer, and checked on texts after writing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from bluedit.edits.export.gguf_files import Setting, text, texts, truth, whole, wholes
from bluedit.errors import ModelError
from bluedit.models.gguf import GgufHeader, read_gguf_tokenizer

__all__ = ["check_vocabulary", "vocabulary_settings"]

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""Kinds of tokens in the format."""
_ELSEWHERE = "convert the folder with llama.cpp's convert_hf_to_gguf.py --outtype f32, and give that file as --model"
_TRIED = (
    "Paris is the capital of France, isn't it?",
    "In 1990,  3.14159 \n\n\tand 12345678 things' ends",
    "Zürich, 東京 and Москва: naïve café №1 👍🏽",
    "def f(x):\n    return x**2  # squares\r\n",
)
"""Texts that ways of splitting differ on: digits, spaces, line ends, contractions, other scripts."""


def vocabulary_settings(tokenizer: Any, size: int) -> dict[str, Setting]:
    """The settings that hold a tokenizer, for a model with a vocabulary of `size`.

    **Raises** :class:`~bluedit.errors.ModelError` for a tokenizer that is not byte-level BPE, or splits in an unknown way.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: Mapping[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    model = state.get("model") or {}
    split = _split_name(state.get("pre_tokenizer"))
    if model.get("type") != "BPE" or split is None or state.get("normalizer") or model.get("byte_fallback"):
        raise ModelError(f"the model's tokenizer is not one whose rules can be named in a GGUF file here; {_ELSEWHERE}")
    added = {entry["id"]: entry for entry in state.get("added_tokens", ())}
    known = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [known.get(number, f"[PAD{number}]") for number in range(size)]
    kinds = [_kind(number, known, added) for number in range(size)]
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    begun = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] and tokenizer.bos_token_id is not None
    settings = {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text(split),
        "tokenizer.ggml.tokens": texts(tokens),
        "tokenizer.ggml.token_type": wholes(kinds),
        "tokenizer.ggml.merges": texts(merges),
        "tokenizer.ggml.add_bos_token": truth(begun),
        "tokenizer.ggml.add_space_prefix": truth(False),
    }
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    for ours, theirs in named.items():
        if (number := getattr(tokenizer, f"{ours}_token_id", None)) is not None:
            settings[f"tokenizer.ggml.{theirs}_token_id"] = whole(number)
    if isinstance(tokenizer.chat_template, str):
        settings["tokenizer.chat_template"] = text(tokenizer.chat_template)
    return settings


def check_vocabulary(header: GgufHeader, tokenizer: Any) -> None:
    """**Raises** :class:`~bluedit.errors.ModelError` where a written file's tokenizer is not the one it was made from."""
    written = read_gguf_tokenizer(header)
    for tried in _TRIED:
        expected = tokenizer(tried, add_special_tokens=False)["input_ids"]
        if written(tried, add_special_tokens=False)["input_ids"] != expected:
            raise ModelError(f"the model's tokenizer would split texts otherwise from a GGUF file; {_ELSEWHERE}")


def _kind(number: int, known: Mapping[int, str], added: Mapping[int, Any]) -> int:
    if number not in known:
        return _UNUSED
    if number in added:
        return _CONTROL if added[number]["special"] else _USER_DEFINED
    return _NORMAL


def _split_name(rules: Any) -> str | None:
    """llama.cpp's name for a way of splitting texts; None for one that has none here."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    parts = list(_parts(rules))
    if not parts or parts[-1].get("type") != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return None
    *first, level = parts
    if level.get("use_regex", True):
        if not first:
            return "gpt-2"
        digits = len(first) == 1 and first[0].get("type") == "Digits" and first[0].get("individual_digits")
        return "smollm" if digits else None
    if len(first) != 1 or first[0].get("type") != "Split" or first[0].get("behavior") != "Isolated":
        return None
    pattern = (first[0].get("pattern") or {}).get("Regex")
    preferred = ("llama-bpe", "qwen2", "tekken", "gpt-4o")
    return next((name for name in preferred if GGUF_PRE_TOKENIZER_SPLITS.get(name) == pattern), None)


def _parts(rules: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a tokenizer's splitting, one after the other."""
    if not rules:
        return
    if rules.get("type") == "Sequence":
        for one in rules["pretokenizers"]:
            yield from _parts(one)
    else:
        yield rules
