"""Models whose numbers are not finite: refused with the weight's name or the prompt, never scored or edited."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import bluedit
from bluedit.datasets import Case
from bluedit.edits import LowRank, Patch
from bluedit.errors import ModelError, NumericsError, PatchError
from bluedit.evaluation import score_cases
from bluedit.facts import Fact
from bluedit.models import EditableModel, load_model
from bluedit.models.generation import generate
from bluedit.precision import all_finite
from bluedit.tracing.restoring import TraceSettings
from bluedit.tracing.trace import trace_cases

WEIGHT = "transformer.h.3.mlp.c_fc.weight"


def _damage(model: EditableModel, name: str = WEIGHT, value: float = math.nan) -> EditableModel:
    with torch.no_grad():
        model.model.get_parameter(name).view(-1)[7] = value
    return model


@pytest.fixture
def loud_gpt2(own_gpt2: EditableModel) -> EditableModel:
    """A model of finite weights whose logits overflow."""
    with torch.no_grad():
        own_gpt2.model.get_parameter("transformer.ln_f.weight").fill_(3e38)
    return own_gpt2


def test_finiteness_is_seen_where_a_sum_overflows() -> None:
    assert all_finite(torch.full((4,), 3e38))
    assert all_finite(torch.full((200,), 60000.0, dtype=torch.float16))
    assert all_finite(torch.zeros(0))
    for value in (math.nan, math.inf, -math.inf):
        assert not all_finite(torch.tensor([1.0, value]))
    assert not all_finite(torch.tensor([math.inf, -math.inf]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_with_a_weight_that_is_not_finite_is_not_loaded(
    saved_tiny_gpt2: Path, tmp_path: Path, value: float
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in saved_tiny_gpt2.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights[WEIGHT].view(-1)[7] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"weight {WEIGHT} is not finite .*1 of"):
        load_model(str(folder))


def test_a_model_from_memory_is_refused_where_its_weights_are_hashed(own_gpt2: EditableModel) -> None:
    name = own_gpt2.structure.weight_name(1)
    _damage(own_gpt2, name)
    with pytest.raises(ModelError, match=name):
        own_gpt2.fingerprint()
    with pytest.raises(ModelError, match=name):
        own_gpt2.weight_fingerprint(1)


@pytest.mark.parametrize("method", ["memit", "ft-m"])
def test_an_edit_of_a_model_that_is_not_finite_is_refused(
    own_gpt2: EditableModel, world_facts: tuple[Fact, ...], moments: Callable[[int], Any], method: str
) -> None:
    _damage(own_gpt2)
    with pytest.raises((ModelError, NumericsError), match=r"not finite|no finite"):
        bluedit.edit(own_gpt2, world_facts[:2], method=method, layers=[1], strategy="single:1", corpus=moments(48))


def test_scores_of_logits_that_are_not_finite_are_refused(loud_gpt2: EditableModel) -> None:
    case = Case(fact=Fact("{} was born in", "Ada Lovelace", "Paris"), true_target="London")
    with pytest.raises(NumericsError, match=r"no finite logits after the prompt 'Ada Lovelace was born in'"):
        score_cases(loud_gpt2, [case])
    with pytest.raises(NumericsError, match="no finite logits"):
        trace_cases(loud_gpt2, [case], TraceSettings(samples=1))


@pytest.mark.parametrize("top_k", [None, 5])
def test_generation_from_logits_that_are_not_finite_is_refused(loud_gpt2: EditableModel, top_k: int | None) -> None:
    with pytest.raises(NumericsError, match="no finite logits after the prompt 'The end'"):
        generate(loud_gpt2, ["The end"], max_new_tokens=2, top_k=top_k)


def test_states_that_are_not_finite_name_the_text(own_gpt2: EditableModel) -> None:
    _damage(own_gpt2, "transformer.h.0.mlp.c_fc.weight", 3e38)
    _damage(own_gpt2, "transformer.h.0.mlp.c_proj.weight", math.inf)
    rows = [own_gpt2.text.row(Fact("{} was born in", "Ada Lovelace", "Paris"))]
    with pytest.raises(NumericsError, match="hidden state of layer 1 is not finite for the text 'Ada Lovelace was born in'"):
        own_gpt2.subject_states(rows, 1, "layer")


def test_a_patch_that_overflows_its_weight_is_taken_back(tiny_gpt2: EditableModel, make_patch: Callable[..., Patch]) -> None:
    half = EditableModel(copy.deepcopy(tiny_gpt2.model).half(), tiny_gpt2.tokenizer)
    patch = make_patch(half, (1,))
    ((name, change),) = patch.changes.items()
    assert isinstance(change, LowRank)
    huge = Patch({name: LowRank.of(1e5 * change.residual_DN, change.gain_FN)}, patch.manifest)
    before = half.weight(1).detach().clone()
    with pytest.raises(PatchError, match=rf"{name} would not be finite with this patch.*float16"):
        huge.apply(half)
    assert torch.equal(half.weight(1), before)
