"""Structure: the parts of every layout are found from its modules, and what is no decoder is refused by its reason.

The orientation of a weight is checked against what the module computes, never against its shape: two of the models
have square matrices, where a transposed weight would fit as well.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from random_models import random_model
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BertModel,
    Gemma3nTextConfig,
    GPT2Model,
    MambaConfig,
    MixtralConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import bluedit
from bluedit.errors import ModelError, SettingsError
from bluedit.facts import Fact
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
_SMALL = {
    "vocab_size": 500, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 32, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_EXPERTS = {**_SMALL, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}


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
        pytest.param(
            lambda _: BertLMHeadModel(_BERT),
            "BertLMHeadModel is an encoder, which also attends to later tokens",
            id="looks right",
        ),
        pytest.param(
            lambda _: random_model(MixtralConfig(**_SMALL, num_local_experts=2)),
            r"MixtralForCausalLM is a mixture of experts \(model\.layers\.0\.mlp\.experts\)",
            id="mixtral",
        ),
        pytest.param(
            lambda _: random_model(Qwen3MoeConfig(**_EXPERTS)), "Qwen3MoeForCausalLM is a mixture of experts", id="qwen3-moe"
        ),
        # Its shared expert sees every token, but what it says is weighed by a gate.
        pytest.param(
            lambda _: random_model(Qwen2MoeConfig(**_EXPERTS, shared_expert_intermediate_size=8)),
            "Qwen2MoeForCausalLM is a mixture of experts",
            id="shared expert",
        ),
        pytest.param(
            lambda _: random_model(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50, state_size=4)),
            "found in MambaForCausalLM: its layout is not known.*--module-map FILE",
            id="no attention",
        ),
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


# -- layers that are not alike ---------------------------------------------------------------------------------------------

_FACT = Fact("{} was born in", "Ezl", "Rome")


def test_only_the_layers_that_are_mixtures_are_refused(tiny_gpt2: EditableModel) -> None:
    model = EditableModel(random_model(Qwen3MoeConfig(**_EXPERTS, mlp_only_layers=[0, 2])), tiny_gpt2.tokenizer)
    assert model.structure.dense == (0, 2)
    with pytest.raises(SettingsError, match=r"layer 1 is a mixture of experts: .* choose among layers 0, 2"):
        bluedit.edit(model, [_FACT], layers=(0, 1, 2), templates=["{}"])


def test_dense_layers_above_mixtures_are_edited(tiny_gpt2: EditableModel, moments: Callable[[int], Any]) -> None:
    model = EditableModel(random_model(Qwen3MoeConfig(**_EXPERTS, mlp_only_layers=[1, 2])), tiny_gpt2.tokenizer)
    patch = bluedit.edit(model, [_FACT], layers=(1, 2), templates=["{}"], corpus=moments(model.structure.d_ff))
    assert sorted(record.layer for record in patch.manifest.optimisation) == [1, 2]


def test_dense_layers_of_different_sizes_are_refused(tiny_gpt2: EditableModel) -> None:
    network = copy.deepcopy(tiny_gpt2.model)
    network.transformer.h[1].mlp.c_proj = type(network.transformer.h[1].mlp.c_proj)(32, 40)
    with pytest.raises(ModelError, match="not all plain matrices of one shape"):
        discover(network)


def test_site_that_a_layer_does_not_have(tiny_gpt2: EditableModel) -> None:
    """A layer with linear attention has no output projection of the usual kind; PMET needs one."""
    kinds = ["linear_attention", "linear_attention", "full_attention"]
    linear = {f"linear_{which}_head_dim": 8 for which in ("key", "value")} | {
        f"linear_num_{which}_heads": 2 for which in ("key", "value")
    }
    if not hasattr(transformers, "Qwen3_5TextConfig"):
        pytest.skip("this release of transformers has no Qwen 3.5")
    config = transformers.Qwen3_5TextConfig(**_SMALL, head_dim=8, layer_types=kinds, **linear)
    model = EditableModel(random_model(config), tiny_gpt2.tokenizer)
    with pytest.raises(ModelError, match=r"layer 0 has no self_attn\.o_proj, and so no attention to look at"):
        model.subject_states([model.text.row(_FACT)], 0, "attention")
    assert model.subject_states([model.text.row(_FACT)], 2, "attention").shape == (1, 16)


def test_layers_that_hand_on_more_than_a_vector_a_token(tiny_gpt2: EditableModel) -> None:
    extra = {"head_dim": 8, "laurel_rank": 4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 500}
    kinds = ["full_attention"] * 3
    config = Gemma3nTextConfig(**_SMALL, **extra, layer_types=kinds, num_kv_shared_layers=0, activation_sparsity_pattern=None)
    model = EditableModel(random_model(config), tiny_gpt2.tokenizer)
    with pytest.raises(ModelError, match=r"layer 1 outputs a hidden state of shape .*, not one vector per token"):
        model.subject_states([model.text.row(_FACT)], 1, "layer")
