"""Exports of an edited SmolLM2 in llama.cpp and PEFT. `benchmarks/export_checks.py` asks more facts, and scores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from llama_cpp import greedy

import bluedit
from bluedit.cli.demo_real import read_questions
from bluedit.edits import Patch
from bluedit.edits.export import export_gguf, export_gguf_lora, export_lora, read_blueprint
from bluedit.edits.export.blueprint import Blueprint, with_original_file
from bluedit.models import EditableModel, load_model
from bluedit.models.getting import get_model, origin_of

NAME = "smollm2-135m-instruct"
FACTS, TOKENS = 3, 2

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*downloaded from the package registry"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing"),
]
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
def model(_own_cache: None) -> EditableModel:
    get_model(NAME)
    return load_model(NAME, device="cpu")


@pytest.fixture(scope="module")
def patch(model: EditableModel) -> Patch:
    edited = bluedit.edit(model, [case.fact for case, _ in read_questions(NAME, FACTS)])
    assert isinstance(edited, Patch)
    return edited


@pytest.fixture(scope="module")
def base(model: EditableModel) -> Blueprint:
    found = read_blueprint(NAME)
    if (origin_of(Path(found.source)) or {}).get("source") != "registry":
        pytest.skip("the model here is the hub's, which was not made from a GGUF file")
    return with_original_file(found)


def answers(model: EditableModel, prompts: list[list[int]]) -> list[list[int]]:
    found = [model.model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False) for ids in prompts]  # pyright: ignore[reportCallIssue]
    return [one[0, len(ids) :].tolist() for one, ids in zip(found, prompts, strict=True)]


def test_exports_answer_as_the_patch(model: EditableModel, patch: Patch, base: Blueprint, tmp_path: Path) -> None:
    """In llama.cpp: all tensors in float16, with the patch and with the adapter. In PEFT: the adapter's logits.

    A quantised file is computed with in eight bits there, so only the first token is compared beside it.
    """
    from peft import PeftModel

    assert base.gguf is not None
    prompts = [model.tokenizer(fact.text)["input_ids"] for fact in patch.facts]
    with patch.applied(model):
        expected = answers(model, prompts)
        with torch.no_grad():
            logits = model.model(torch.tensor([prompts[0]])).logits
    assert answers(model, prompts) != expected
    whole = export_gguf(patch, tmp_path / "whole.gguf", base, kind="f16", all_tensors=True)
    adapter = export_gguf_lora(patch, tmp_path / "adapter.gguf", base)
    touched = export_gguf(patch, tmp_path / "touched.gguf", base)
    # Float16, or float32 where float16 would lose too much of a small change.
    assert {part.kind for part in touched.parts} <= {"F16", "F32"}
    assert greedy(whole.path, prompts, TOKENS) == expected
    first = [one[:1] for one in expected]
    assert greedy(touched.path, prompts, 1) == first
    assert greedy(base.gguf.path, prompts, 1, adapter.path) == first
    export_lora(patch, tmp_path / "adapter", base)
    adapted = PeftModel.from_pretrained(load_model(NAME, device="cpu").model, tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(torch.tensor([prompts[0]])).logits, logits, rtol=1e-3, atol=1e-3)
