"""Structure: the parts of every layout are found from its modules, and what is no decoder is refused by its reason.

The orientation of a weight is checked against what the module computes, never against its shape: two of the models
have square matrices, where a transposed weight would fit as well.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Model,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from bluedit.errors import ModelError
from bluedit.models import EditableModel, discover

FOUND = {
    "gpt2": ("in_out", 48, "transformer.h.2.mlp.c_proj.weight"),
    "gpt2-square": ("in_out", 32, "transformer.h.2.mlp.c_proj.weight"),
    "gptj": ("out_in", 128, "transformer.h.2.mlp.fc_out.weight"),
    "llama": ("out_in", 40, "model.layers.2.mlp.down_proj.weight"),
    "llama-square": ("out_in", 32, "model.layers.2.mlp.down_proj.weight"),
    "gpt-neox": ("out_in", 56, "gpt_neox.layers.2.mlp.dense_4h_to_h.weight"),
}


@pytest.mark.parametrize("tiny_models", FOUND, indirect=True)
def test_parts_are_found(tiny_models: EditableModel, request: pytest.FixtureRequest) -> None:
    orientation, d_ff, weight_name = FOUND[request.node.callspec.params["tiny_models"]]
    structure = discover(tiny_models.model)
    assert (structure.orientation, structure.depth, structure.d_model, structure.d_ff) == (orientation, 4, 32, d_ff)
    assert structure.weight_name(2) == weight_name
    assert tiny_models.model.state_dict()[weight_name].data_ptr() == tiny_models.weight(2).data_ptr()


@pytest.mark.parametrize("layer", [0, 3])
def test_matrix_times_key_is_what_the_module_computes(tiny_models: EditableModel, layer: int) -> None:
    """W k + bias is the module's output, for a random key."""
    projection, W = tiny_models.projection(layer), tiny_models.matrix(layer)
    key = torch.randn(tiny_models.structure.d_ff, generator=torch.Generator().manual_seed(0))
    bias = getattr(projection, "bias", None)
    with torch.no_grad():
        torch.testing.assert_close(W @ key + (0 if bias is None else bias), projection(key), atol=1e-5, rtol=1e-5)


def test_matrix_is_a_view_of_the_stored_weight(own_gpt2: EditableModel) -> None:
    own_gpt2.matrix(1)[3, 5] = 77.0
    assert own_gpt2.weight(1)[5, 3].item() == 77.0  # Conv1D stores the transpose


@pytest.mark.parametrize("place", ["attention_projection", "projection"])
def test_every_path_of_the_map_leads_somewhere(tiny_models: EditableModel, place: str) -> None:
    found = tiny_models.layer(1).get_submodule(getattr(tiny_models.structure.map, place))
    assert isinstance(found, nn.Module)
    if place == "attention_projection":
        assert found.weight.shape == (32, 32)


_BERT = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
_EXPERTS = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}


def _mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**_EXPERTS, intermediate_size=32, num_local_experts=2, pad_token_id=None))


def _t5() -> Any:
    return T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def _headless(model: EditableModel) -> Any:
    return GPT2Model(model.model.config)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda _: BertModel(_BERT), "BertModel has no language-model head; load a causal", id="encoder"),
        pytest.param(
            lambda _: BertForMaskedLM(_BERT), "BertForMaskedLM does not generate text; load a causal language", id="masked"
        ),
        pytest.param(lambda _: _t5(), "T5ForConditionalGeneration is an encoder-decoder", id="encoder-decoder"),
        pytest.param(lambda _: _mixtral(), "MixtralForCausalLM is a mixture of experts", id="experts"),
        pytest.param(_headless, "GPT2Model has no language-model head; load a causal language model", id="headless"),
    ],
)
def test_what_is_no_plain_decoder_is_refused_with_the_reason(tiny_gpt2: EditableModel, build: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        discover(build(tiny_gpt2))


class QuantisedLinear(nn.Linear):
    """Stands for a quantised layer: a `Linear` by inheritance, which does not compute what its weight says."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input.round(), self.weight, self.bias)


def _replaced(model: EditableModel, projection: nn.Module, layer: int = 2) -> nn.Module:
    network = copy.deepcopy(model.model)
    network.get_submodule(f"transformer.h.{layer}.mlp").c_proj = projection
    return network


@pytest.mark.parametrize(
    "projection",
    [
        pytest.param(QuantisedLinear(48, 32), id="subclass"),
        pytest.param(nn.Linear(48, 32), id="another orientation than its neighbors"),
        pytest.param(nn.Linear(48, 32).to(torch.float8_e4m3fn), id="eight bits"),
        pytest.param(nn.Sequential(nn.Linear(48, 32)), id="no weight of its own"),
    ],
)
def test_layers_that_are_not_all_plain_matrices_are_refused(tiny_gpt2: EditableModel, projection: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"mlp\.c_proj: .*not all plain matrices of one shape; quantised"):
        discover(_replaced(tiny_gpt2, projection))


@pytest.mark.parametrize("only", [QuantisedLinear(48, 32), nn.Sequential(nn.Linear(48, 32))], ids=["subclass", "no weight"])
def test_layers_that_are_alike_but_not_plain_are_refused(tiny_gpt2: EditableModel, only: nn.Module) -> None:
    network = copy.deepcopy(tiny_gpt2.model)
    for layer in network.transformer.h:
        layer.mlp.c_proj = only
    with pytest.raises(ModelError, match="not all plain matrices"):
        discover(network)
