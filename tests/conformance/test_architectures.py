"""Every architecture passes one battery: its parts are found, looked into, injected at, edited, scored, and put back.

Models are tiny and random, made from transformers' own configurations. Truth is the plain model, one row at a time: nothing
padded, nothing cached, PyTorch's own hooks on modules that this file names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import transformers
from random_models import random_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import bluedit
from bluedit.datasets import Case
from bluedit.editors.closed_form.optimizer import optimise_values
from bluedit.edits import Patch
from bluedit.facts import Fact
from bluedit.methods import METHODS
from bluedit.models import EditableModel, Row
from bluedit.models.forward.prefix import Injection

WIDTH, DEPTH, LENGTH, WINDOW = 32, 4, 96, 5

_COMMON = {"vocab_size": 500, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.3}
_PLAIN = {
    "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "max_position_embeddings": LENGTH, **_COMMON,
}  # fmt: skip
_GROUPED = {**_PLAIN, "pad_token_id": None, "intermediate_size": 40, "num_key_value_heads": 2}
_GPT2 = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": LENGTH, **_COMMON}
_GEMMA = {**_GROUPED, "head_dim": 8, "sliding_window": WINDOW}
_BLOOM = {"hidden_size": WIDTH, "n_layer": DEPTH, "n_head": 4, **_COMMON}
_HYBRID = {
    "head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "layer_types": [*["linear_attention"] * 3, "full_attention"], **_GROUPED,
}  # fmt: skip
_VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, **_GROUPED}


@dataclass(frozen=True)
class Architecture:
    """A configuration, and where the parts of the model it makes are.

    - `whole`: whether whole rows are run because prefixes cannot be cached.
    - `dense`, `attending`: layers with one MLP output projection, and with an attention of the usual kind.
    """

    config: str
    options: dict[str, Any]
    layers: str
    projection: str
    attention: str
    norm: str
    d_ff: int = 40
    orientation: str = "out_in"
    length: int = LENGTH
    whole: bool = False
    dense: tuple[int, ...] = (0, 1, 2, 3)
    attending: tuple[int, ...] = (0, 1, 2, 3)

    def build(self) -> transformers.PreTrainedModel:
        kind = getattr(transformers, self.config, None)
        if kind is None:
            pytest.skip(f"this release of transformers has no {self.config}")
        return random_model(kind(**self.options))

    def module(self, model: EditableModel, layer: int, component: str) -> nn.Module:
        block = model.model.get_submodule(self.layers)[layer]  # type: ignore[index]
        return block.get_submodule({"layer": "", "attention": self.attention}.get(component, self.projection))

    def has(self, layer: int, component: str) -> bool:
        return layer in {"layer": range(DEPTH), "attention": self.attending}.get(component, self.dense)


def llama_like(config: str, options: dict[str, Any] = _GROUPED, **more: Any) -> Architecture:
    return Architecture(config, options, "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm", **more)


ARCHITECTURES = {
    "gpt2": Architecture(
        "GPT2Config", {**_GPT2, "n_inner": 48}, "transformer.h", "mlp.c_proj", "attn.c_proj", "transformer.ln_f", 48, "in_out"
    ),
    "gpt-bigcode": Architecture(
        "GPTBigCodeConfig", {**_GPT2, "n_inner": 48}, "transformer.h", "mlp.c_proj", "attn.c_proj", "transformer.ln_f", 48
    ),
    "gpt-neo": Architecture(
        "GPTNeoConfig",
        {"hidden_size": WIDTH, "num_layers": DEPTH, "num_heads": 4, "attention_types": [[["global", "local"], 2]],
         "window_size": WINDOW, "intermediate_size": 48, "max_position_embeddings": LENGTH, **_COMMON},
        "transformer.h", "mlp.c_proj", "attn.attention.out_proj", "transformer.ln_f", 48,
    ),
    "gpt-neox": Architecture(
        "GPTNeoXConfig", {**_PLAIN, "intermediate_size": 56},
        "gpt_neox.layers", "mlp.dense_4h_to_h", "attention.dense", "gpt_neox.final_layer_norm", 56,
    ),
    "gptj": Architecture(
        "GPTJConfig", {**_GPT2, "rotary_dim": 4}, "transformer.h", "mlp.fc_out", "attn.out_proj", "transformer.ln_f", 128
    ),
    "codegen": Architecture(
        "CodeGenConfig", {**_GPT2, "rotary_dim": 4}, "transformer.h", "mlp.fc_out", "attn.out_proj", "transformer.ln_f", 128
    ),
    "opt": Architecture(
        "OPTConfig", {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": WIDTH},
        "model.decoder.layers", "fc2", "self_attn.out_proj", "model.decoder.final_layer_norm", 48,
    ),
    # Norms after the sums, none at the end, embeddings narrower than the hidden state.
    "opt-350m": Architecture(
        "OPTConfig", {**_PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 24, "do_layer_norm_before": False},
        "model.decoder.layers", "fc2", "self_attn.out_proj", "", 48,
    ),
    "bloom": Architecture(
        "BloomConfig", _BLOOM,
        "transformer.h", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f", 128, length=2048,
    ),
    "falcon": Architecture(
        "FalconConfig", {**_PLAIN, "ffn_hidden_size": 48},
        "transformer.h", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f", 48,
    ),
    "falcon-new": Architecture(
        "FalconConfig", {**_PLAIN, "ffn_hidden_size": 48, "new_decoder_architecture": True, "num_kv_heads": 2},
        "transformer.h", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f", 48,
    ),
    "falcon-alibi": Architecture(
        "FalconConfig",
        {**_PLAIN, "ffn_hidden_size": 48, "alibi": True, "multi_query": False, "bias": True, "parallel_attn": False},
        "transformer.h", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f", 48,
    ),
    "mpt": Architecture(
        "MptConfig",
        {"d_model": WIDTH, "n_heads": 4, "n_layers": DEPTH, "max_seq_len": LENGTH, "vocab_size": 500, "initializer_range": 0.3},
        "transformer.blocks", "ffn.down_proj", "attn.out_proj", "transformer.norm_f", 128,
    ),
    "llama": llama_like("LlamaConfig", {**_GROUPED, "attention_bias": True, "mlp_bias": True}),
    "mistral": llama_like("MistralConfig", {**_GROUPED, "sliding_window": WINDOW}),
    "qwen2": llama_like("Qwen2Config"),
    "qwen3": llama_like("Qwen3Config", {**_GROUPED, "head_dim": 8}),
    "gemma": llama_like("GemmaConfig", {**_GROUPED, "head_dim": 8}),
    "gemma2": llama_like("Gemma2Config", {**_GEMMA, "final_logit_softcapping": 4.0, "attn_logit_softcapping": 2.0}),
    "gemma3": llama_like("Gemma3TextConfig", _GEMMA),
    "gemma3-vision": Architecture(
        "Gemma3Config",
        {"text_config": _GEMMA, "vision_config": _VISION, "mm_tokens_per_image": 4, "boi_token_index": 496,
         "eoi_token_index": 497, "image_token_index": 498, "initializer_range": 0.3},
        "model.language_model.layers", "mlp.down_proj", "self_attn.o_proj", "model.language_model.norm",
    ),
    # Its upper layers take keys and values from lower ones.
    "gemma4": llama_like(
        "Gemma4TextConfig",
        {**_GEMMA, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 500,
         "layer_types": ["sliding_attention", "full_attention"] * 2},
        whole=True,
    ),
    "phi": Architecture("PhiConfig", _GROUPED, "model.layers", "mlp.fc2", "self_attn.dense", "model.final_layernorm"),
    "phi3": llama_like("Phi3Config"),
    "olmo": llama_like("OlmoConfig"),
    "olmo2": llama_like("Olmo2Config"),
    "olmo3": llama_like("Olmo3Config", {**_GROUPED, "sliding_window": WINDOW}),
    "stablelm": llama_like("StableLmConfig"),
    "granite": llama_like(
        "GraniteConfig",
        {**_GROUPED, "logits_scaling": 3.0, "residual_multiplier": 0.5, "embedding_multiplier": 2.0},
    ),
    "smollm3": llama_like("SmolLM3Config"),
    "cohere": llama_like("CohereConfig", {**_GROUPED, "logit_scale": 0.3}),
    "cohere2": llama_like("Cohere2Config", {**_GROUPED, "sliding_window": WINDOW}),
    "glm": llama_like("GlmConfig", {**_GROUPED, "head_dim": 8}),
    "glm4": llama_like("Glm4Config", {**_GROUPED, "head_dim": 8}),
    "nemotron": llama_like("NemotronConfig"),
    "starcoder2": Architecture(
        "Starcoder2Config", {**_GROUPED, "sliding_window": WINDOW},
        "model.layers", "mlp.c_proj", "self_attn.o_proj", "model.norm",
    ),
    # Dense layers beside mixtures of experts.
    "qwen3-moe": llama_like("Qwen3MoeConfig", {**_EXPERTS, "mlp_only_layers": [0, 1, 2]}, dense=(0, 1, 2)),
    # Linear attention remembers a state, which is no prefix of keys and values.
    "qwen3.5": llama_like("Qwen3_5TextConfig", _HYBRID, whole=True, attending=(3,)),
    # In no table: worked out from their matrices.
    "xglm": Architecture(
        "XGLMConfig",
        {"vocab_size": 500, "d_model": WIDTH, "ffn_dim": 48, "num_layers": DEPTH, "attention_heads": 4,
         "max_position_embeddings": LENGTH, "init_std": 0.3},
        "model.layers", "fc2", "self_attn.out_proj", "model.layer_norm", 48,
    ),
    "biogpt": Architecture(
        "BioGptConfig", {**_PLAIN, "pad_token_id": 1, "intermediate_size": 48},
        "biogpt.layers", "fc2", "self_attn.out_proj", "biogpt.layer_norm", 48,
    ),
    "persimmon": Architecture(
        "PersimmonConfig", _GROUPED, "model.layers", "mlp.dense_4h_to_h", "self_attn.dense", "model.final_layernorm"
    ),
    "modernbert-decoder": Architecture(
        "ModernBertDecoderConfig",
        {**_PLAIN, "pad_token_id": 0, "cls_token_id": 0, "sep_token_id": 0, "intermediate_size": 40, "local_attention": 6},
        "model.layers", "mlp.Wo", "attn.Wo", "model.final_norm",
    ),
    # The decoder of an encoder-decoder, alone; it places tokens itself.
    "bart": Architecture(
        "BartConfig",
        {"vocab_size": 500, "d_model": WIDTH, "decoder_layers": DEPTH, "decoder_ffn_dim": 48, "decoder_attention_heads": 4,
         "max_position_embeddings": LENGTH, "init_std": 0.3},
        "model.decoder.layers", "fc2", "self_attn.out_proj", "", 48,
    ),
    # No cache at all.
    "openai-gpt": Architecture(
        "OpenAIGPTConfig", {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": LENGTH, "vocab_size": 500,
                            "initializer_range": 0.3},
        "transformer.h", "mlp.c_proj", "attn.c_proj", "", 128, "in_out", whole=True,
    ),
}  # fmt: skip

FACTS = (
    Fact("q was born in", "q", "Rome"),  # one token: the subject's last is at position 0
    Fact("The mother of the person called {} was born in the town of", "Zhara Vrelk", "the river"),
    Fact("{} is", "Ezl", "a gardener"),
    Fact("The name is {}", "Kvel & Co", "x"),  # the subject ends the prompt
)
COMPONENTS = ("key", "mlp", "attention", "layer")
TEMPLATES = ("{}", "The old mill. {}")
SETTINGS = {"lambda": 2.0, "v_lr": 0.3, "v_num_grad_steps": 3}

# Random weights are small, and some changes outgrow them: that is not what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:the change of layer")


@dataclass(frozen=True)
class Subject:
    """One architecture with its model, which is left as it was."""

    architecture: Architecture
    model: EditableModel

    @property
    def rows(self) -> list[Row]:
        return [self.model.text.row(fact, with_target=True) for fact in FACTS]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def one(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> Subject:
    architecture = ARCHITECTURES[request.param]
    return Subject(architecture, EditableModel(architecture.build(), tokenizer))


@pytest.fixture(autouse=True)
def _untouched(one: Subject) -> Iterator[None]:
    network = one.model.model
    before = {name: value.clone() for name, value in network.state_dict().items()}
    yield
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def close(got: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest entry, in float32."""
    assert got.shape == expected.shape
    assert got.isfinite().all()
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@contextlib.contextmanager
def listening(module: nn.Module, component: str, hear: Callable[[Tensor], Tensor | None]) -> Generator[None]:
    """PyTorch's own hook on a module that one row runs through; `hear` gets (T, D)."""

    def changed(hidden: Tensor) -> Tensor | None:
        new = hear(hidden.flatten(0, -2))
        return None if new is None else new.view_as(hidden)

    def after(_: nn.Module, __: Any, output: Any) -> Any:
        new = changed(output if isinstance(output, Tensor) else output[0])
        return new if new is None or isinstance(output, Tensor) else (new, *output[1:])

    if component == "key":
        handle = module.register_forward_pre_hook(lambda _, inputs: changed(inputs[0]))
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def plain(one: Subject, row: Row, added: Sequence[tuple[int, str, Tensor]] = ()) -> Tensor:
    """Logits of one row from its subject on, with vectors added at the subject."""
    with contextlib.ExitStack() as stack:
        for layer, component, vector in added:
            place = torch.tensor([row.subject])

            def add(hidden: Tensor, place: Tensor = place, vector: Tensor = vector) -> Tensor:
                return hidden.index_add(0, place, vector[None])

            stack.enter_context(listening(one.architecture.module(one.model, layer, component), component, add))
        return one.model.model(input_ids=torch.tensor([row.ids])).logits[0, row.subject :]


def test_parts_are_found(one: Subject) -> None:
    structure, architecture = one.model.structure, one.architecture
    found = structure.map
    assert (found.layers, found.projection, found.attention_projection, found.norm) == (
        architecture.layers, architecture.projection, architecture.attention, architecture.norm,
    )  # fmt: skip
    assert (structure.orientation, structure.depth) == (architecture.orientation, DEPTH)
    assert (structure.d_model, structure.d_ff) == (WIDTH, architecture.d_ff)
    assert structure.dense == architecture.dense
    assert one.model.context_length == architecture.length


def test_matrix_times_key_is_what_the_projection_computes(one: Subject) -> None:
    projection = one.architecture.module(one.model, 1, "mlp")
    assert one.model.projection(1) is projection
    key = torch.randn(one.architecture.d_ff, generator=torch.Generator().manual_seed(0))
    bias = getattr(projection, "bias", None)
    with torch.no_grad():
        close(one.model.matrix(1) @ key + (0 if bias is None else bias), projection(key))


@pytest.mark.parametrize("component", COMPONENTS)
@torch.no_grad()
def test_states_are_those_of_a_plain_pass(one: Subject, component: str) -> None:
    """Rows of different lengths in one padded batch, against each alone."""
    for layer in (layer for layer in (0, 3) if one.architecture.has(layer, component)):
        seen: list[Tensor] = []
        for row in one.rows:
            module = one.architecture.module(one.model, layer, component)
            with listening(module, component, lambda hidden, row=row, seen=seen: seen.append(hidden[row.subject].clone())):
                one.model.model(input_ids=torch.tensor([row.ids]))
        close(one.model.subject_states(one.rows, layer, component), torch.stack(seen))


@pytest.mark.parametrize("components", [("layer",), ("mlp",), ("mlp", "attention")], ids="+".join)
@torch.no_grad()
def test_injection_is_that_of_a_plain_pass(one: Subject, components: tuple[str, ...]) -> None:
    """The prefix-cached rerun of layers and tokens, padding and all, against whole passes of single rows."""
    rows = one.rows
    delta_VBD = torch.randn(len(components), len(rows), WIDTH, generator=torch.Generator().manual_seed(3))
    for layer in (layer for layer in range(DEPTH) if all(one.architecture.has(layer, component) for component in components)):
        injection = Injection(one.model, rows, layer, components)
        for chosen in (range(len(rows)), [3, 1]):
            if len(chosen) < len(rows):
                injection.select(torch.tensor(chosen))
            kept = [rows[index] for index in chosen]
            places = [(number, place) for number, row in enumerate(kept) for place in range(len(row.ids) - row.subject)]
            ran: list[int] = []
            last = one.architecture.module(one.model, DEPTH - 1, "layer")
            with listening(last, "layer", lambda hidden, ran=ran: ran.append(len(hidden))):
                got = injection.logits(delta_VBD[:, list(chosen)], *torch.tensor(places).T)
            expected = [
                plain(
                    one,
                    rows[index],
                    [(layer, component, delta_VBD[number, index]) for number, component in enumerate(components)],
                )
                for index in chosen
            ]
            close(got, torch.cat(expected))
            unchanged = torch.cat([plain(one, row) for row in kept])
            assert (got - unchanged).norm() > 1e-3 * unchanged.norm()
            # These take no positions: they are not trusted to embed, or first look at, tokens that were moved.
            untold = layer == 0 and components != ("layer",) and one.model.model.config.model_type in ("bloom", "mpt", "bart")
            whole = one.architecture.whole or untold
            width = max(len(row.ids) if whole else len(row.ids) - row.subject for row in rows)
            if layer < DEPTH - 1 or components != ("layer",):  # else the last layer is cut out itself
                assert ran == [width * len(kept)]


def test_values_are_those_of_plain_passes(one: Subject) -> None:
    settings = METHODS["memit"].override(SETTINGS)
    values = optimise_values(one.model, FACTS[1:3], 0, TEMPLATES, settings)
    for column, fact in enumerate(FACTS[1:3]):
        expected, evaluations, loss = oracles.optimise(one.model, fact, 0, TEMPLATES, settings)
        assert values.evaluations[column] == evaluations
        assert values.losses[column] == pytest.approx(loss, rel=1e-4)
        # Adam divides by the gradient's size: rounding counts where that is next to nothing.
        assert (values.targets_DN[:, column] - expected).norm() <= 1e-2 * (expected - values.initial_DN[:, column]).norm()


def test_edit_is_scored_saved_and_reverted(one: Subject, moments: Callable[[int], Any], tmp_path: Path) -> None:
    """BLUE writes into the boundary layers and nowhere else; the patch's file does what the edit did, and undoes it."""
    model, name = one.model, one.model.structure.weight_name
    options = {"layers": (0, 1, 2), "templates": TEMPLATES, "settings": SETTINGS}
    patch = bluedit.edit(model, FACTS[1:3], corpus=moments(model.structure.d_ff), **options)
    assert set(patch.changes) == {name(0), name(2)}
    patch.save(tmp_path / "patch.safetensors")
    loaded = Patch.load(tmp_path / "patch.safetensors")

    cases = [Case(fact=fact, true_target="Paris", neighborhood=("Ezl is",), neighborhood_target="Paris") for fact in FACTS[1:3]]
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    plain_scores = bluedit.score_cases(model, cases).as_dict()
    unedited = plain(one, one.rows[1])
    with loaded.applied(model):
        after = {key: value.clone() for key, value in model.model.state_dict().items()}
        assert {key for key in after if not torch.equal(after[key], before[key])} == {name(0), name(2)}
        for layer in (0, 2):
            change = patch.changes[name(layer)].dense()
            assert change.shape == (WIDTH, one.architecture.d_ff)
            W = model.structure.oriented(before[name(layer)])
            close(model.matrix(layer), W + change.float())
        assert (plain(one, one.rows[1]) - unedited).norm() > 1e-3 * unedited.norm()
        assert bluedit.score_cases(model, cases).as_dict().keys() == plain_scores.keys()
    assert bluedit.score_cases(model, cases).as_dict() == plain_scores
