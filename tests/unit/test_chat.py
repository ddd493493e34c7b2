"""Chats: a prompt is a user's message in the model's own template, and a target begins the answer to it.

What stands where is held against the template itself: the tokens of a prompt with its target begin those of the dialogue.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conventions import CONVENTIONS
from random_models import random_model
from transformers import LlamaConfig, PreTrainedTokenizerFast

import bluedit
from bluedit.datasets import read_dataset
from bluedit.edits import Patch, merge
from bluedit.errors import ModelError, PatchError, SessionError
from bluedit.evaluation import protocol, score_cases
from bluedit.facts import Fact
from bluedit.models import EditableModel, PromptTokenizer
from bluedit.models.generation import generate
from bluedit.models.inputs.chat import Chat
from bluedit.models.inputs.templates import context_templates
from bluedit.models.likelihood import answer_queries
from bluedit.statistics import Statistics
from bluedit.storage.documents import document_text

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|stop|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
CHATML = (
    "<|start|>system\nYou are kind.<|stop|>\n"
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|stop|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<|stop|>\n{% endfor %}{% if add_generation_prompt %}<|start|>model\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|start|>{{ m.content }}<|stop|>"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }}\n{% else %}ASSISTANT: {{ m.content }}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
TEMPLATES = {"llama3": LLAMA3, "chatml": CHATML, "gemma": GEMMA, "llama2": LLAMA2, "mistral": MISTRAL, "vicuna": VICUNA}
SEPARATORS = {"llama3": "", "chatml": "", "gemma": "", "llama2": " ", "mistral": "", "vicuna": " "}
DECODERS = ("gpt2", "llama3", "llama2", "mistral", "gemma")

FACTS = (
    Fact("{} was born in", "Zhara Vrelk", "Rome"),
    Fact("The city of {} is in", "東京", "the town of rain"),
    Fact("user: the user's {}", "user", "Paris"),
    Fact("I like {}", "🙂", "joy"),
    Fact("  {} was born in ", "Bjørn Ægé", "Rome"),
)


@pytest.fixture(scope="module")
def chatting(corpus_texts: list[str]) -> Callable[[str, str], PreTrainedTokenizerFast]:
    """Makes a tokenizer of a convention with a chat template."""
    made: dict[str, PreTrainedTokenizerFast] = {}

    def make(convention: str, template: str) -> PreTrainedTokenizerFast:
        if convention not in made:
            made[convention] = CONVENTIONS[convention](corpus_texts[:100])
            made[convention].add_special_tokens({"additional_special_tokens": ["<|start|>", "<|stop|>", "<|eot|>"]})
        tokenizer = copy.deepcopy(made[convention])
        tokenizer.chat_template = template
        return tokenizer

    return make


Chatting = Callable[[str, str], PreTrainedTokenizerFast]


def _dialogue(tokenizer: PreTrainedTokenizerFast, prompt: str, answer: str | None = None) -> list[int]:
    """The tokens that transformers makes of a question, up to where the answer is due or with an answer."""
    messages = [{"role": "user", "content": prompt}]
    messages += [{"role": "assistant", "content": answer}] if answer is not None else []
    options: dict[str, Any] = {"add_generation_prompt": answer is None, "tokenize": True, "return_dict": False}
    return list(tokenizer.apply_chat_template(messages, **options))


# -- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", DECODERS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_target_begin_the_tokens_of_the_dialogue(chatting: Chatting, convention: str, name: str) -> None:
    tokenizer = chatting(convention, TEMPLATES[name])
    encoder = PromptTokenizer(tokenizer, chat=True)
    assert encoder.chat is not None
    assert encoder.chat.separator == SEPARATORS[name]
    for fact in FACTS:
        row = encoder.row(fact, with_target=True)
        dialogue = _dialogue(tokenizer, fact.text.strip(), fact.target)
        ids = encoder.prompt(fact.text) + row.target
        assert list(ids) == dialogue[: len(ids)]
        assert ids[:-1] == row.ids
        if name != "vicuna":  # its last space is the answer's
            assert list(encoder.prompt(fact.text)) == _dialogue(tokenizer, fact.text.strip())
        assert ids.count(tokenizer.bos_token_id) == int("bos_token" in TEMPLATES[name])


@pytest.mark.parametrize("convention", DECODERS)
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("context", ["{}", "The town of rain is. {}", "  Because 東京 🙂 they. {}"])
def test_subject_is_found_in_the_message(chatting: Chatting, convention: str, name: str, context: str) -> None:
    """Up to its last token the subject is there, and not before it; the template's own words do not mislead."""
    tokenizer = chatting(convention, TEMPLATES[name])
    encoder = PromptTokenizer(tokenizer, chat=True)
    assert encoder.chat is not None
    for fact in FACTS:
        row = encoder.row(fact, context)
        message = context.replace("{}", fact.text).strip()
        upto = encoder.chat.before + message[: message.rindex(fact.subject) + len(fact.subject)]
        wanted = tokenizer.decode(tokenizer(upto, add_special_tokens=False).input_ids)
        assert tokenizer.decode(row.ids[: row.subject + 1]).startswith(wanted)
        assert not tokenizer.decode(row.ids[: row.subject]).startswith(wanted)


def test_prompts_at_once_and_documents(chatting: Chatting) -> None:
    tokenizer = chatting("llama3", LLAMA3)
    chat, plain = PromptTokenizer(tokenizer, chat=True), PromptTokenizer(tokenizer)
    texts = [fact.text for fact in FACTS]
    assert chat.prompts(texts) == [chat.prompt(text) for text in texts]
    assert chat.documents(texts) == plain.documents(texts)
    assert chat.prompts([]) == []


def test_separator_of_a_template_that_thinks_is_read_off_its_end(chatting: Chatting) -> None:
    """Where the dialogue does not show what goes before an answer, the end of the prompt decides."""
    think = "{{% for m in messages %}}{{{{ '<think>' if m.role == 'assistant' }}}}{{{{ m.content }}}}{{% endfor %}}{}"
    prompting = "{% if add_generation_prompt %}ENDS{% endif %}"
    for end, separator in (("\n", ""), ("<|stop|>", ""), ("Answer:", " "), ("Answer: ", " ")):
        template = think.format(prompting.replace("ENDS", f"\n{end}"))
        assert Chat.of(chatting("llama3", template)).separator == separator


def test_prompts_are_those_of_any_day(chatting: Chatting) -> None:
    template = "{% if not date_string is defined %}{% set date_string = strftime_now('%H%M%S%f') %}{% endif %}"
    shell = Chat.of(chatting("llama3", template + "Today: {{ date_string }}\n" + LLAMA3))
    assert shell.before.startswith("Today: 26 Jul 2024\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, r"no chat template; leave out --chat"),
        ("{{ raise_exception('system first') }}", r"does not accept a single user message: system first"),
        ("{{ messages[0].content }} {{ messages[0].content }}", r"does not hold a user's message exactly once"),
        ("{% for m in %}", r"does not accept a single"),
    ],
)
def test_templates_that_cannot_be_used_are_refused(chatting: Chatting, template: Any, message: str) -> None:
    tokenizer = chatting("llama3", template)
    with pytest.raises(ModelError, match=message):
        PromptTokenizer(tokenizer, chat=True)


# -- edits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(chatting: Chatting) -> tuple[Any, PreTrainedTokenizerFast]:
    """A random Llama and its tokenizer with a template like Llama 3's."""
    tokenizer = chatting("llama3", LLAMA3)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    return random_model(config), tokenizer


@pytest.fixture
def model(network: tuple[Any, PreTrainedTokenizerFast]) -> EditableModel:
    return EditableModel(*network, chat=True)


@pytest.fixture(scope="module")
def patch(network: tuple[Any, PreTrainedTokenizerFast], moments: Callable[[int], Statistics]) -> Patch:
    """Facts of the world, edited in a chat."""
    facts = [case.fact for case in read_dataset("world:counterfact", 3)]
    settings = {
        "v_num_grad_steps": 25,
        "v_lr": 0.3,
        "lambda": 1e-6,
        "clamp_norm_factor": 6.0,
        "v_weight_decay": 0.0,
        "kl_factor": 0.0,
    }
    with warnings.catch_warnings(action="ignore"):
        return bluedit.edit(EditableModel(*network, chat=True), facts, layers=(1, 2), settings=settings, corpus=moments(40))


def test_answers_are_those_of_the_dialogue(model: EditableModel) -> None:
    """Scored as transformers tokenises the dialogue, in one full pass each."""
    queries = [(fact.text.strip(), target) for fact in FACTS for target in ("Rome", "the town of rain")]
    for (prompt, target), answer in answer_queries(model, queries).items():
        ids, wanted = _dialogue(model.tokenizer, prompt, target), list(model.text.target(target))  # type: ignore[arg-type]
        start = len(_dialogue(model.tokenizer, prompt))  # type: ignore[arg-type]
        assert ids[start : start + len(wanted)] == wanted
        with torch.no_grad():
            logits = model.model(torch.tensor([ids])).logits[0, start - 1 : start - 1 + len(wanted)]
        expected = logits.log_softmax(-1)[range(len(wanted)), wanted].mean().item()
        assert answer.log_prob == pytest.approx(expected, abs=1e-4)


def test_generation_answers(model: EditableModel, network: tuple[Any, PreTrainedTokenizerFast]) -> None:
    """In a chat the answers come back alone; context templates are continued as plain text, the same as without a chat."""
    plain = EditableModel(*network)
    texts = generate(model, [fact.text for fact in FACTS], max_new_tokens=6, stop_at_end=False)
    for text, fact in zip(texts, FACTS, strict=True):
        ids = _dialogue(model.tokenizer, fact.text.strip())  # type: ignore[arg-type]
        whole = model.model.generate(torch.tensor([ids]), max_new_tokens=6, min_new_tokens=6, do_sample=False)  # type: ignore[operator]
        assert text == model.tokenizer.decode(whole[0, len(ids) :], skip_special_tokens=True)
    assert context_templates(model, 1) == context_templates(plain, 1)
    assert generate(model, ["The"], max_new_tokens=4, plain=True) == generate(plain, ["The"], max_new_tokens=4)


def test_edit_evaluate_and_revert_in_a_chat(
    model: EditableModel, network: tuple[Any, PreTrainedTokenizerFast], patch: Patch, tmp_path: Path
) -> None:
    cases = read_dataset("world:counterfact", 3)
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    queries = [(case.fact.text, case.fact.target) for case in cases]

    def mean(one: EditableModel) -> float:
        return sum(answer.log_prob for answer in answer_queries(one, queries).values()) / len(queries)

    plain = EditableModel(*network)
    unedited = mean(model), mean(plain)
    with patch.applied(model):
        assert mean(model) > unedited[0] + 0.05, "the edit does nothing for the prompts that it was made on"
        assert mean(plain) != unedited[1]
        assert set(score_cases(model, cases).estimates) >= {"ES", "PS", "NS"}
    assert (mean(model), mean(plain)) == unedited
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())
    assert protocol(model, cases, dataset="world").as_dict()["chat"]["before"] == model.text.chat.before  # type: ignore[union-attr]
    assert "chat" not in protocol(plain, cases, dataset="world").as_dict()

    assert patch.manifest.chat == model.text.chat is not None
    loaded = Patch.load(patch.save(tmp_path / "patch"))
    assert loaded.manifest == patch.manifest
    record = json.loads((tmp_path / "patch" / "patch.json").read_text())
    del record["chat"]
    (tmp_path / "patch" / "patch.json").write_text(document_text(record))
    assert Patch.load(tmp_path / "patch").manifest.chat is None, "patches from before chats are of plain prompts"


def test_a_sequence_is_all_chat_or_none(
    model: EditableModel, network: tuple[Any, PreTrainedTokenizerFast], patch: Patch, moments: Any, tmp_path: Path
) -> None:
    plain = replace(patch, manifest=patch.manifest.model_copy(update={"chat": None}))
    with pytest.raises(PatchError, match="different chat"):
        merge([patch, plain])
    session = bluedit.Session(model, layers=(1, 2), templates=("{}",), corpus=moments(40))
    session.save(tmp_path / "session")
    with pytest.raises(SessionError, match=r"begun with prompts in a chat template.*--chat"):
        bluedit.Session.resume(tmp_path / "session", EditableModel(*network), statistics=moments(40))
    assert len(bluedit.Session.resume(tmp_path / "session", model, statistics=moments(40))) == 0


def test_load_model_refuses_a_model_without_template(saved_tiny_gpt2: Path) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        bluedit.load_model(str(saved_tiny_gpt2), chat=True)


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOP, "does not end within 1 seconds"),
        ("{% for i in range(9999999999) %}{% endfor %}", "counts too far"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{{ 'a' * 10000000000 }}", "takes more than 2 GiB of memory|does not end"),
        ("{% for i in range(99999) %}{{ messages[0].content * 99999 }}{% endfor %}", "writes more than 1,000,000 characters"),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "nested too deep|breaks the program"),
        ("{{ 1 // 0 }}", "does not accept a single user message: .*zero"),
        ("{{ messages[5].a.b }}", "does not accept a single user message"),
        ("{% if", "does not accept a single user message"),
    ],
    ids=["loop", "range", "macro", "memory", "size", "nested", "division", "index", "syntax"],
)
def test_a_template_that_does_not_end_or_fails_is_refused(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, template: str, said: str
) -> None:
    monkeypatch.setattr("bluedit.models.inputs.chat._SECONDS", 1)
    spoiled = copy.deepcopy(tokenizer)
    spoiled.chat_template = template
    with pytest.raises(ModelError, match=said):
        Chat.of(spoiled)


def test_a_template_is_taken_at_its_word_where_no_process_can_be_started(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/no/such/python")
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    assert Chat.of(plain).around("Hello") == "[Hello]"
