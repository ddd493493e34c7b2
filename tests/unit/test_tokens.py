"""Tokens: the subject's last token is found wherever it stands, special tokens go where they belong, padding is inert.

The subject's position is held against two definitions of its own: the token whose decoded prefix first reaches the
subject's end, and the research code's, which tokenises the text up to the subject's end and counts.
"""

from __future__ import annotations

import copy

import pytest
import torch
from conventions import CONVENTIONS, FOLDING
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from bluedit.editors.closed_form.keys import fact_states
from bluedit.errors import FactError, ModelError
from bluedit.facts import Fact
from bluedit.models import Batch, EditableModel, PromptTokenizer, Row
from bluedit.models.generation import generate
from bluedit.models.inputs.templates import context_templates
from bluedit.models.inputs.tokens import separator
from bluedit.models.likelihood import answer_queries

TEMPLATES = ["{}", "The town of rain is. {}", "Because 東京 🙂 they. {}", "I\u00a0know. {}"]

PROMPTS = {
    "start": Fact("{} was born in", "Zhara Vrelk", "Rome"),
    "middle": Fact("The mother of {} was born in", "Zhara Vrelk", "Rome"),
    "end": Fact("The birthplace of the person called {}", "Zhara Vrelk", "Rome"),
    "alone": Fact("{}", "Zhara Vrelk", "Rome"),
    "repeated, first place": Fact("{} said that {} was born in", "Zhara Vrelk", "Rome"),
    "repeated, found as text": Fact("Ann and Annie know Ann, who", "Ann", "Rome"),
    "accents": Fact("{} was born in", "Bjørn Ægé", "Rome"),
    "several bytes a character": Fact("The city of {} is in", "東京", "Asia"),
    "no space after it": Fact("{}は日本の", "東京", "Asia"),
    "emoji": Fact("What is {} about", "the 🙂🏳️‍🌈 film", "joy"),
    "emoji at the end": Fact("I like {}", "🙂", "joy"),
    "punctuation after it": Fact("Who is {}?", "Zhara Vrelk", "Rome"),
    "punctuation in it": Fact("The firm {} is in", "Kvel & Co.", "Rome"),
    "one letter": Fact("{} is a letter", "q", "Rome"),
}


@pytest.fixture
def encoder(tokenizer: PreTrainedTokenizerFast) -> PromptTokenizer:
    return PromptTokenizer(tokenizer)


def _first_to_reach(tokenizer: PreTrainedTokenizerFast, ids: list[int], text: str) -> int:
    """The number of the first token with which the decoded tokens hold at least the bytes of `text`."""
    wanted = len(text.encode())
    table = {token: byte for byte, token in _bytes_of_tokens().items()}
    count = 0
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
        count += sum(letter in table for letter in token)
        if count >= wanted:
            return index
    raise AssertionError("the tokens do not reach that far")


def _bytes_of_tokens() -> dict[int, str]:
    """GPT-2's way of writing bytes as letters: printable ones stand for themselves, the rest start at 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(rest)}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("fact", PROMPTS.values(), ids=PROMPTS.keys())
def test_subjects_last_token(encoder: PromptTokenizer, fact: Fact, template: str) -> None:
    row = encoder.row(fact, template)
    text = template.replace("{}", fact.text)
    assert encoder.tokenizer.decode(row.ids) == text
    before = text[: text.rindex(fact.subject) + len(fact.subject)]
    assert row.subject == _first_to_reach(encoder.tokenizer, list(row.ids), before)
    assert row.subject == len(encoder.tokenizer(before)["input_ids"]) - 1  # the research code's


def test_subject_that_shares_its_last_token_with_what_follows(encoder: PromptTokenizer) -> None:
    """Where no token ends with the subject, the one that holds its last letter counts."""
    fact = Fact("The {}ie of", "Ann", "x")
    row = encoder.row(fact)
    assert encoder.tokenizer.decode(row.ids[: row.subject + 1]).startswith("The Ann")
    assert not encoder.tokenizer.decode(row.ids[: row.subject]).startswith("The Ann")


def test_world_subjects_in_every_row(encoder: PromptTokenizer, world_facts: tuple[Fact, ...]) -> None:
    for fact in world_facts:
        row = encoder.row(fact, with_target=True)
        assert encoder.tokenizer.decode(row.ids[: row.subject + 1]).endswith(fact.subject)
        assert row.ids[row.subject + 1 :][len(row.ids) - row.subject - len(row.target) :] == row.target[:-1]


# -- targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Paris", " Paris", "Paris ", "  Paris\n", "the Zhara river", "🙂"])
def test_target_has_exactly_one_leading_space(encoder: PromptTokenizer, text: str) -> None:
    assert encoder.tokenizer.decode(encoder.target(text)) == f" {text.strip()}"


def test_row_with_target_leaves_out_its_last_token(encoder: PromptTokenizer) -> None:
    fact = Fact("{} was born in", "Zhara", "the town of Rome")
    row, target = encoder.row(fact, with_target=True), encoder.target(fact.target)
    assert len(target) > 1
    assert row.ids == encoder.prompt(fact.text) + target[:-1]
    assert [row.ids[position + 1] for position in row.target_positions[:-1]] == list(target[:-1])
    assert row.target_positions[0] == len(encoder.prompt(fact.text)) - 1


def test_prompts_at_once_are_prompts_one_by_one(encoder: PromptTokenizer) -> None:
    texts = [fact.text for fact in PROMPTS.values()]
    assert encoder.prompts(texts) == [encoder.prompt(text) for text in texts]
    assert encoder.prompts([]) == []


# -- special tokens --------------------------------------------------------------------------------------------------


@pytest.fixture
def special(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer, putting a start token in front of every text and an end token behind it."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.add_special_tokens(["<s>", "</s>"])
    start, end = backend.token_to_id("<s>"), backend.token_to_id("</s>")
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")  # noqa: S106


def test_start_token_is_kept_on_prompts_and_dropped_from_targets(
    special: PreTrainedTokenizerFast, encoder: PromptTokenizer
) -> None:
    wrapped = PromptTokenizer(special)
    start, end = special.convert_tokens_to_ids(["<s>", "</s>"])
    assert special("Zhara").input_ids[0] == start, "the stand-in does not do what the test is about"
    assert special("Zhara").input_ids[-1] == end, "the stand-in does not do what the test is about"
    assert wrapped.prompt("Zhara was born in") == (start, *encoder.prompt("Zhara was born in"))
    assert wrapped.prompts(["Zhara was", "Vrelk"]) == [(start, *encoder.prompt(text)) for text in ("Zhara was", "Vrelk")]
    assert wrapped.target("Rome") == encoder.target("Rome")
    for fact in PROMPTS.values():
        plain, row = encoder.row(fact, with_target=True), wrapped.row(fact, with_target=True)
        assert (row.ids, row.subject, row.target) == ((start, *plain.ids), plain.subject + 1, plain.target)


# -- SentencePiece ---------------------------------------------------------------------------------------------------


def _sentence_pieces(corpus_texts: list[str], boundary: str) -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer: the boundary comes with a pre-tokenizer (`always`, `first`, `never`), or with a
    normalizer (`normalizer`, as Llama 2 has it), which makes two of it where a text starts with a space."""
    tokenizer = Tokenizer(Unigram())
    if boundary == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=boundary)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)  # noqa: S106
    tokenizer.train_from_iterator(corpus_texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")  # noqa: S106


@pytest.mark.parametrize("boundary", ["always", "first", "normalizer"])
def test_tokenizer_that_puts_the_word_boundary_in_front_gets_no_second_space(corpus_texts: list[str], boundary: str) -> None:
    """The prompt and the target, one after the other, are the tokens of the sentence."""
    tokenizer = _sentence_pieces(corpus_texts, boundary)
    encoder = PromptTokenizer(tokenizer)
    target = encoder.target("London")
    assert "".join(tokenizer.convert_ids_to_tokens(target)) == "▁London"
    assert encoder.prompt("born in") + target == encoder.prompt("born in London")


def test_word_boundary_that_is_a_letter_of_its_own_is_seen(corpus_texts: list[str]) -> None:
    """An encoder may cut the boundary off the word; it is still there, and no space may be added to it."""
    tokenizer = _sentence_pieces(corpus_texts, "always")
    assert "".join(tokenizer.convert_ids_to_tokens(PromptTokenizer(tokenizer).target("qxqx"))).count("▁") == 1


def test_tokenizer_that_puts_no_boundary_in_front_gets_a_space(corpus_texts: list[str]) -> None:
    tokenizer = _sentence_pieces(corpus_texts, "never")
    pieces = tokenizer.convert_ids_to_tokens(PromptTokenizer(tokenizer).target("London"))
    assert "".join(pieces) == "▁London"


@pytest.mark.parametrize("boundary", ["always", "first", "never", "normalizer"])
@pytest.mark.parametrize("prompt", ["The mother of {} was born in", "{} was born in", "The name is {}"])
def test_subjects_last_token_in_sentence_pieces(corpus_texts: list[str], boundary: str, prompt: str) -> None:
    tokenizer = _sentence_pieces(corpus_texts, boundary)
    row = PromptTokenizer(tokenizer).row(Fact(prompt, "Zhara Vrelk", "Rome"))
    pieces = "".join(tokenizer.convert_ids_to_tokens(row.ids[: row.subject + 1]))
    assert pieces.removeprefix("▁") == f"{prompt.partition('{}')[0]}Zhara Vrelk".replace(" ", "▁")


# -- conventions of well-known tokenizers ----------------------------------------------------------------------------

_LINES = [
    "東京は日本の首都です。 Paris (the city) is in France, « Rome » and [Oslo]. 第1章: 「京都」 naïve Bjørn Ægé? A:\n"
] * 5

CONTINUED = {
    "a word": ("The mother of Zhara was born in", "Rome"),
    "several words": ("She lives in", "the town of rain"),
    "a space at the end": ("She lives in ", "the town"),
    "a script without spaces": ("東京は日本の", "首都"),
    "letters after such a script": ("京都 東京は", "Paris"),
    "such a script after letters": ("The city of", "東京"),
    "an opening bracket": ("The city (", "Rome"),
    "a full stop": ("She lives in Rome", "."),
    "a line break": ("The town is\nA:\n", "Rome"),
    "accents": ("The town is", "naïve Ægé"),
    "emoji": ("The town is", "🙂🏳️‍🌈"),
}


@pytest.fixture(scope="module")
def conventional(corpus_texts: list[str]) -> dict[str, PreTrainedTokenizerFast]:
    return {name: make([*corpus_texts[:150], *_LINES]) for name, make in CONVENTIONS.items()}


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("case", CONTINUED)
def test_prompt_and_target_are_the_tokens_of_the_sentence(
    conventional: dict[str, PreTrainedTokenizerFast], name: str, case: str
) -> None:
    if name == "bert" and case == "letters after such a script":
        pytest.skip("WordPiece tells words inside a word from words of their own")
    tokenizer, (prompt, target) = conventional[name], CONTINUED[case]
    encoder = PromptTokenizer(tokenizer)
    sentence = prompt.rstrip(" ") + separator(prompt, target) + target
    start = tokenizer("a").input_ids[: -1 if tokenizer("a").input_ids[-1] == tokenizer.eos_token_id else None]
    start = start[: len(start) - len(tokenizer("a", add_special_tokens=False).input_ids)]
    ids = encoder.prompt(prompt) + encoder.target(target, prompt)
    assert list(ids) == [*start, *tokenizer(sentence, add_special_tokens=False).input_ids]
    if name not in FOLDING:
        assert tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" ") == sentence
    row = encoder.row(Fact("{}" + prompt, "Zhara ", target), with_target=True)
    assert row.target == encoder.target(target, prompt)


@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != "bert"])
@pytest.mark.parametrize("fact", PROMPTS.values(), ids=PROMPTS.keys())
def test_subjects_last_token_in_every_convention(
    conventional: dict[str, PreTrainedTokenizerFast], name: str, fact: Fact
) -> None:
    """The text up to the subject's end is there with the subject's last token, and not before it."""
    tokenizer = conventional[name]
    row, text = PromptTokenizer(tokenizer).row(fact), fact.text

    def decoded(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    # What the tokenizer itself makes of the text: some fold letters.
    wanted = decoded(tokenizer(text[: text.rindex(fact.subject) + len(fact.subject)]).input_ids)
    assert decoded(list(row.ids[: row.subject + 1])).startswith(wanted)
    if row.ids[row.subject] != tokenizer.unk_token_id:  # an unknown letter leaves nothing to see
        assert not decoded(list(row.ids[: row.subject])).startswith(wanted)


def test_subject_in_letters_that_the_tokenizer_folds(conventional: dict[str, PreTrainedTokenizerFast]) -> None:
    """Offsets are those of the text as it was written, which folding makes longer and shorter."""
    for name in ("bert", "lowercase"):
        tokenizer = conventional[name]
        row = PromptTokenizer(tokenizer).row(Fact("ÄÖÜ ẞtraße: the mother of {} was", "Zhárâ VRÉLK", "Rome"))
        assert tokenizer.decode(row.ids[: row.subject + 1]).endswith("zhara vrelk")


@pytest.mark.parametrize(
    ("prompt", "target", "between"),
    [
        ("", "Rome", " "),
        ("born in", "Rome", " "),
        ("born in ", "Rome", " "),
        ("Answer:", "Rome", " "),
        ("born in\n", "Rome", ""),
        ("born in\t", "Rome", ""),
        ("born in (", "Rome", ""),
        ("born in ( ", "Rome", " "),
        ("called «", "Rome", ""),
        ("born in Rome", ", she", ""),
        ("born in Rome", ")", ""),
        ("written in", ".NET", " "),
        ("日本の", "首都", ""),
        ("日本の ", "首都", " "),
        ("日本の首都は、", "Tokyo", ""),
        ("「", "東京", ""),
        ("東京", "。", ""),
        ("the city of", "東京", " "),
        ("the book", "「東京」", " "),
        ("เมืองหลวงของ", "ไทย", ""),
        ("서울은 한국의", "수도", " "),
        ("I like 🙂", "joy", " "),
    ],
)
def test_joint(prompt: str, target: str, between: str) -> None:
    assert separator(prompt, target) == between


def test_documents_are_taken_as_they_are(conventional: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer = conventional["llama3"]
    texts = ["Zhara was born in ", "  Rome\n", ""]
    assert [list(ids) for ids in PromptTokenizer(tokenizer).documents(texts)] == [tokenizer(text).input_ids for text in texts]


# -- refusals --------------------------------------------------------------------------------------------------------


class SlowTokenizer:
    """Stands for a tokenizer in Python, which knows no character offsets."""

    is_fast = False


def test_slow_tokenizer_is_refused_with_the_fix() -> None:
    with pytest.raises(ModelError, match=r"SlowTokenizer is not a fast tokenizer.*use_fast=True"):
        PromptTokenizer(SlowTokenizer())  # type: ignore[arg-type]


def _words_only() -> PreTrainedTokenizerFast:
    """A tokenizer that knows two words, and drops everything else without a trace."""
    from tokenizers.models import BPE

    tokenizer = Tokenizer(BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_target_without_tokens_is_refused_by_name() -> None:
    with pytest.raises(FactError, match="the target 'zzz' has no tokens in this model's vocabulary"):
        PromptTokenizer(_words_only()).target("zzz")


def test_subject_without_tokens_is_refused_by_name() -> None:
    with pytest.raises(FactError, match="holds its subject 'zzz'"):
        PromptTokenizer(_words_only()).row(Fact("a {} b", "zzz", "a"))


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[3], [5, 1, 9, 9, 2, 30, 4, 4, 4, 4]], ids=["one", "mixed"])
def test_a_batch_pads_on_the_right_and_masks_what_it_padded(lengths: list[int]) -> None:
    rows = [Row(tuple(range(1, length + 1)), subject=length - 1) for length in lengths]
    batch = Batch.of(rows, "cpu")
    assert batch.ids.shape == batch.mask.shape == (len(rows), max(lengths))
    for position, row in enumerate(rows):
        assert tuple(batch.ids[position][batch.mask[position].bool()].tolist()) == row.ids
        assert batch.mask[position].tolist() == sorted(batch.mask[position].tolist(), reverse=True)
        assert batch.subjects[position] == row.subject


def test_target_index_is_flat_and_in_row_order(encoder: PromptTokenizer) -> None:
    rows = [encoder.row(fact, with_target=True) for fact in PROMPTS.values()]
    rows_T, positions_T, tokens_T = Batch.of(rows, "cpu").target_index()
    assert tokens_T.tolist() == [token for row in rows for token in row.target]
    assert rows_T.tolist() == [index for index, row in enumerate(rows) for _ in row.target]
    assert positions_T.tolist() == [position for row in rows for position in row.target_positions]


@pytest.mark.parametrize("component", ["key", "mlp", "layer"])
def test_padding_changes_no_state(tiny_models: EditableModel, component: str) -> None:
    """A row alone, and the same row among longer ones, have the same states at the subject."""
    rows = [tiny_models.text.row(fact) for fact in PROMPTS.values()]
    together = tiny_models.subject_states(rows, 2, component, token_budget=10_000)
    for row, state in zip(rows, together, strict=True):
        torch.testing.assert_close(tiny_models.subject_states([row], 2, component)[0], state, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", [1, 40])
def test_states_come_back_in_the_order_of_the_rows(tiny_gpt2: EditableModel, budget: int) -> None:
    rows = [tiny_gpt2.text.row(fact) for fact in PROMPTS.values()]
    expected = tiny_gpt2.subject_states(rows, 1, "layer", token_budget=10_000)
    torch.testing.assert_close(tiny_gpt2.subject_states(rows, 1, "layer", token_budget=budget), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tiny_models", ["gpt2", "llama"], indirect=True)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [None, "<|end|>", "<pad>"], ids=["none", "end", "own"])
def test_the_tokenizers_padding_changes_nothing(
    tiny_models: EditableModel, world_facts: tuple[Fact, ...], side: str, pad: str | None
) -> None:
    """Its own pad token has no vector in the model, as where one was added and the embedding left alone."""
    tokenizer = copy.deepcopy(tiny_models.tokenizer)
    tokenizer.padding_side, tokenizer.pad_token = side, pad
    model = EditableModel(tiny_models.model, tokenizer)
    prompts = ["The mother", "Zhara Vrelk was born in", "I"]
    queries = [(prompt, target) for prompt in prompts for target in ("Rome", "the town of rain")]
    assert answer_queries(model, queries) == answer_queries(tiny_models, queries)
    assert torch.equal(fact_states(model, world_facts, 2), fact_states(tiny_models, world_facts, 2))
    assert context_templates(model, 3) == context_templates(tiny_models, 3)
    texts = generate(model, prompts, max_new_tokens=12)
    assert texts == generate(tiny_models, prompts, max_new_tokens=12)
    assert texts == [text for prompt in prompts for text in generate(tiny_models, [prompt], max_new_tokens=12)]


def test_nothing_comes_after_the_end_of_a_text(own_gpt2: EditableModel) -> None:
    """Texts that end early are filled up, with a token that may be a word; it is none of the text."""
    prompts = ["The mother", "Zhara Vrelk was born in", "I", "You"]
    ids = own_gpt2.text.prompt(prompts[0])
    whole = own_gpt2.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0].tolist()
    end = whole[len(ids) + 3]
    own_gpt2.model.generation_config.eos_token_id = [end, 499]
    texts = generate(own_gpt2, prompts, max_new_tokens=12)
    assert texts[0] == own_gpt2.tokenizer.decode(whole[: whole.index(end, len(ids))])
    assert texts == [text for prompt in prompts for text in generate(own_gpt2, [prompt], max_new_tokens=12)]


@pytest.fixture
def short(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> tuple[PromptTokenizer, list[int]]:
    """An encoder for a model of ten tokens, and the lengths of the texts that were tokenised."""
    encoder, lengths = PromptTokenizer(tokenizer, context_length=10), list[int]()
    original = type(tokenizer).__call__

    def spy(self: PreTrainedTokenizerFast, text: str | list[str], **options: object) -> object:
        lengths.extend(map(len, [text] if isinstance(text, str) else text))
        return original(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", spy)
    return encoder, lengths


def test_texts_that_no_context_can_hold_are_refused_untokenised(short: tuple[PromptTokenizer, list[int]]) -> None:
    encoder, lengths = short
    long = "Angola " * 100_000
    fact = Fact(long, "Angola", "Asia")
    for attempt in (
        lambda: encoder.prompt(long),
        lambda: encoder.target(long),
        lambda: encoder.row(fact),
        lambda: encoder.row(Fact("{} is in", "Angola", long), with_target=True),
    ):
        with pytest.raises(
            FactError, match=r"[0-9]{3} characters\) is too long: the model takes 10 tokens; shorten it"
        ) as caught:
            attempt()
        assert len(str(caught.value)) < 300
    assert max(lengths, default=0) < 20
    encoder.prompt("Angola " * 30)  # tokens are counted where they are known


def test_documents_are_cut_before_they_are_tokenised(short: tuple[PromptTokenizer, list[int]], corpus_texts: list[str]) -> None:
    encoder, lengths = short
    texts = [*corpus_texts[:20], " ".join(corpus_texts)]
    assert encoder.documents(texts, 10) == [ids[:10] for ids in encoder.documents(texts)]
    lengths.clear()
    (ids,) = encoder.documents(["a b " * 1_000_000], 10)
    assert len(ids) == 10
    assert max(lengths) < 10_000


def test_a_token_without_an_embedding_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = PromptTokenizer(tokenizer, vocabulary=40)
    for attempt in (
        lambda: encoder.prompt("Angola is in"),
        lambda: encoder.target("Angola"),
        lambda: encoder.row(Fact("{} is in", "Angola", "Asia")),
    ):
        with pytest.raises(ModelError, match="the model has embeddings for 40 only; it is another model's tokenizer"):
            attempt()
