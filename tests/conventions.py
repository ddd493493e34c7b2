"""Small tokenizers that follow the conventions of well-known ones, trained on a few texts."""

# ruff: noqa: S106 (tokens, not passwords)

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import PreTrainedTokenizerFast

__all__ = ["CONVENTIONS", "FOLDING"]

_VOCABULARY = 420
_SPECIAL = ["<unk>", "<s>", "</s>"]
_ALPHABET = pre_tokenizers.ByteLevel.alphabet()
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _finished(tokenizer: Tokenizer, single: str | None = "<s> $A") -> PreTrainedTokenizerFast:
    if single is not None:
        ids = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
        template = processors.TemplateProcessing(single=single, special_tokens=ids)
        before = tokenizer.post_processor
        tokenizer.post_processor = processors.Sequence([before, template]) if before else template
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )


def _trained(tokenizer: Tokenizer, texts: Sequence[str], trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_level(texts: Sequence[str], pre_tokenizer: Any, trim_offsets: bool, single: str | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=_SPECIAL, initial_alphabet=_ALPHABET, show_progress=False
    )
    return _finished(_trained(tokenizer, texts, trainer), single)


def gpt2(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level, nothing in front."""
    return _byte_level(texts, pre_tokenizers.ByteLevel(add_prefix_space=False), False, None)


def prefix_space(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level with `add_prefix_space`, as RoBERTa's can be: start and end token, offsets without the space."""
    return _byte_level(texts, pre_tokenizers.ByteLevel(add_prefix_space=True), True, "<s> $A </s>")


def llama3(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level with words cut by an expression of its own, and a start token."""
    words = pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _byte_level(texts, pre_tokenizers.Sequence([words, byte_level]), True, "<s> $A")


def _byte_fallback(texts: Sequence[str], normalizer: Any, pre_tokenizer: Any, decoder: list[Any]) -> PreTrainedTokenizerFast:
    """SentencePiece's BPE as it is converted: characters it does not know fall apart into bytes."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=_SPECIAL, initial_alphabet=["▁"], limit_alphabet=70, show_progress=False
    )
    state = json.loads(_trained(tokenizer, texts, trainer).to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    state["model"] |= {"byte_fallback": True, "fuse_unk": True}
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *decoder])
    return _finished(tokenizer)


def llama2(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A space in front of every piece of text, put there by the normalizer: a text with a space of its own has two."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _byte_fallback(texts, normalizer, None, [decoders.Strip(" ", 1, 0)])


def mistral(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A space in front of the first piece of text only."""
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _byte_fallback(texts, None, metaspace, [decoders.Strip(" ", 1, 0)])


def gemma(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """No space in front."""
    return _byte_fallback(texts, normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), [])


def _unigram(texts: Sequence[str], scheme: str, single: str | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=_VOCABULARY, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False)
    return _finished(_trained(tokenizer, texts, trainer), single)


def t5(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Unigram pieces, compatibility forms folded, a boundary in front of every word, an end token."""
    return _unigram(texts, "always", "$A </s>")


def unigram(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """The same without a boundary in front, and with a start token."""
    return _unigram(texts, "never", "<s> $A")


def bert(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """WordPiece: lower case, no accents, white space gone, start and end tokens."""
    tokenizer = Tokenizer(WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=_VOCABULARY, special_tokens=_SPECIAL, show_progress=False)
    return _finished(_trained(tokenizer, texts, trainer), "<s> $A </s>")


def lowercase(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level after accents are stripped and letters made small."""
    tokenizer = gpt2(texts)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    return tokenizer


CONVENTIONS: dict[str, Callable[[Sequence[str]], PreTrainedTokenizerFast]] = {
    maker.__name__: maker for maker in (gpt2, prefix_space, llama3, llama2, mistral, gemma, t5, unigram, bert, lowercase)
}
FOLDING = ("t5", "unigram", "bert", "lowercase")
"""Those that do not give back what they were given."""
