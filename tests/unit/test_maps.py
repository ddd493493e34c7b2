"""Module maps: read from files, checked against the model, and worked out where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import bluedit
from bluedit.errors import ModelError
from bluedit.facts import Fact
from bluedit.models import MODULE_MAPS, EditableModel, ModuleMap, discover, load_model, read_module_map
from bluedit.models.layout.infer_layout import infer_map

GPT2 = {
    "layers": "transformer.h", "projection": "mlp.c_proj", "attention_projection": "attn.c_proj", "norm": "transformer.ln_f",
}  # fmt: skip
# Edits the attention in the MLP's place: no table says this.
ODD = GPT2 | {"projection": "attn.c_proj"}


def write(path: Path, entries: dict[str, Any]) -> Path:
    text = json.dumps(entries) if path.suffix == ".json" else "".join(f"{key} = {value!r}\n" for key, value in entries.items())
    path.write_text(text)
    return path


# -- files -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["map.toml", "map.json", "map"])
def test_file_says_where_the_parts_are(tiny_gpt2: EditableModel, tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ODD)
    assert read_module_map(path) == ModuleMap(**ODD)
    model = EditableModel(tiny_gpt2.model, tiny_gpt2.tokenizer, module_map=path)
    assert model.structure.weight_name(1) == "transformer.h.1.attn.c_proj.weight"
    assert (model.structure.orientation, model.structure.d_ff) == ("in_out", 32)
    assert discover(tiny_gpt2.model).map == MODULE_MAPS[0] == ModuleMap(**GPT2)


def test_norm_may_be_left_out(tiny_gpt2: EditableModel, tmp_path: Path) -> None:
    entries = {key: value for key, value in GPT2.items() if key != "norm"}
    assert read_module_map(write(tmp_path / "map.toml", entries)).norm == ""
    model = EditableModel(tiny_gpt2.model, tiny_gpt2.tokenizer, module_map=ModuleMap(**entries))
    # Without it, more weights count as what a hidden state may depend on.
    assert model.fingerprint(1) != tiny_gpt2.fingerprint(1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(
            json.dumps(GPT2 | {"projektion": "x"}), "unknown key 'projektion'. Did you mean 'projection'", id="unknown"
        ),
        pytest.param(
            json.dumps({"layers": "a", "projection": "b"}), "attention_projection is missing; a module map", id="missing"
        ),
        pytest.param(
            json.dumps(GPT2 | {"layers": "a..b"}), "layers is 'a..b'; write names joined by dots, as in", id="no path"
        ),
        pytest.param(json.dumps(GPT2 | {"layers": ""}), "layers is ''; write names", id="empty"),
        pytest.param(json.dumps(GPT2 | {"norm": 3}), "norm is 3; write names joined by dots", id="no text"),
        pytest.param("[]", "a module map is a table of layers, projection", id="no table"),
        pytest.param("{", "map.json cannot be read", id="malformed"),
        pytest.param(None, "map.json cannot be read", id="absent"),
    ],
)
def test_bad_file_is_refused_with_the_reason(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "map.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ModelError) as refused:
        read_module_map(path)
    assert problem in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_malformed_toml(tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text("layers: transformer.h")
    with pytest.raises(ModelError, match=r"map\.toml cannot be read"):
        read_module_map(tmp_path / "map.toml")


@pytest.mark.parametrize(
    ("key", "path", "problem"),
    [
        (
            "layers",
            "transformer.hh",
            "'transformer.hh' is not a list of layers in the model; the nearest that exists: 'transformer.h'",
        ),
        ("layers", "transformer", "is not a list of layers in the model"),
        ("projection", "mlp.c_prj", "'mlp.c_prj' is not in every layer; the nearest that exists: 'mlp.c_proj'"),
        ("attention_projection", "attn.c_prj", "'attn.c_prj' is not in any layer; the nearest that exists: 'attn.c_proj'"),
        ("norm", "transformer.lnf", "'transformer.lnf' is not in the model; the nearest that exists: 'transformer.ln_f'"),
    ],
)
def test_path_that_leads_nowhere_is_named_with_the_nearest(tiny_gpt2: EditableModel, key: str, path: str, problem: str) -> None:
    with pytest.raises(ModelError) as refused:
        discover(tiny_gpt2.model, ModuleMap(**GPT2 | {key: path}))
    assert f"the module map's {key} " in str(refused.value)
    assert problem in str(refused.value)


def test_path_to_what_is_no_matrix_is_refused(tiny_gpt2: EditableModel) -> None:
    with pytest.raises(ModelError, match=r"\(mlp: GPT2MLP\) are not all plain matrices"):
        discover(tiny_gpt2.model, ModuleMap(**GPT2 | {"projection": "mlp"}))


def test_loading_takes_a_map(saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "map.toml", ODD)
    assert load_model(str(saved_tiny_gpt2), device="cpu", module_map=path).structure.map == ModuleMap(**ODD)
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(str(saved_tiny_gpt2), device="cpu", module_map=tmp_path / "absent.toml")


def test_patch_made_with_a_map_needs_none(
    own_gpt2: EditableModel, moments: Callable[[int], Any], world_facts: tuple[Fact, ...]
) -> None:
    """A patch names its weights; which way round they are stored is read off the model that it goes into."""
    mapped = EditableModel(own_gpt2.model, own_gpt2.tokenizer, module_map=ModuleMap(**ODD))
    patch = bluedit.edit(
        mapped, world_facts[:2], layers=(1, 2), templates=["{}"], corpus=moments(32), settings={"v_num_grad_steps": 2}
    )
    name = "transformer.h.1.attn.c_proj.weight"
    assert name in patch.changes
    before = own_gpt2.model.get_parameter(name).detach().clone()
    patch.apply(own_gpt2.model)
    after = own_gpt2.model.get_parameter(name).detach()
    torch.testing.assert_close(after, before + patch.changes[name].dense().float().T, atol=1e-6, rtol=1e-5)
    assert not torch.equal(after, before)
    patch.revert(own_gpt2.model)
    assert torch.equal(own_gpt2.model.get_parameter(name), before)


# -- layouts in no table ---------------------------------------------------------------------------------------------------


class OddConfig(PreTrainedConfig):
    model_type = "odd"


class Looker(nn.Module):
    """Attention of a kind: every token takes the mean of what is before it, weighed by a gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 1)
        self.ask, self.say, self.back = (nn.Linear(width, width) for _ in range(3))

    def forward(self, states_BTD: Tensor) -> Tensor:
        counts_T = torch.arange(1, states_BTD.shape[1] + 1)[:, None]
        return self.back(self.ask(states_BTD).tanh() * self.say(states_BTD * self.gate(states_BTD)).cumsum(1) / counts_T)


class Thinker(nn.Module):
    def __init__(self, width: int, wide: int, gates: int = 1) -> None:
        super().__init__()
        self.grow = nn.Linear(width, wide)
        if gates == 2:
            self.also = nn.Linear(width, wide)
        self.shrink = nn.Linear(wide, width)

    def forward(self, states: Tensor) -> Tensor:
        return self.shrink(self.grow(states).relu())


class Story(nn.Module):
    def __init__(self, look: nn.Module, think: nn.Module) -> None:
        super().__init__()
        self.look, self.think = look, think

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.look(states)
        return states + self.think(states)


class OddModel(PreTrainedModel, GenerationMixin):
    """A causal language model whose parts have names of their own, and which caches nothing."""

    config_class = OddConfig

    def __init__(
        self, config: OddConfig, look: Callable[[], nn.Module], think: Callable[[], nn.Module], lists: int = 1
    ) -> None:
        super().__init__(config)
        self.words = nn.Embedding(500, 32)
        self.house = nn.Module()
        for number in range(lists):
            setattr(self.house, f"storeys{number}", nn.ModuleList(Story(look(), think()) for _ in range(3)))
        self.house.roof = nn.LayerNorm(32)
        self.mouth = nn.Linear(32, 500)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def get_output_embeddings(self) -> nn.Module:
        return self.mouth

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> CausalLMOutput:
        states = self.words(input_ids)
        for story in self.house.storeys0:
            states = story(states)
        return CausalLMOutput(logits=self.mouth(self.house.roof(states)))


def odd(
    look: Callable[[], nn.Module] = lambda: Looker(32), think: Callable[[], nn.Module] = lambda: Thinker(32, 48), lists: int = 1
) -> OddModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OddModel(OddConfig(), look, think, lists).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        return model


FOUND = ModuleMap(
    layers="house.storeys0", projection="think.shrink", attention_projection="look.back", norm="house.roof"
)  # fmt: skip


@pytest.mark.parametrize(
    "think",
    [
        pytest.param(lambda: Thinker(32, 48), id="plain"),
        pytest.param(lambda: Thinker(32, 48, gates=2), id="gated"),
        pytest.param(lambda: Thinker(32, 32), id="square"),
        pytest.param(lambda: Thinker(32, 32, gates=2), id="gated and square"),
    ],
)
def test_map_of_an_unknown_layout(think: Callable[[], nn.Module]) -> None:
    assert discover(odd(think=think)).map == FOUND


def test_gate_and_values_in_one_matrix() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.shrink = nn.Linear(32, 96), nn.Linear(48, 32)

    assert discover(odd(think=Fused)).map == FOUND


class Sequence(nn.Sequential):
    """An attention with queries, keys and values in one matrix of a given height."""

    def __init__(self, height: int) -> None:
        super().__init__()
        self.every, self.back = nn.Linear(32, height), nn.Linear(32, 32)


@pytest.mark.parametrize(
    ("look", "think", "lists"),
    [
        pytest.param(lambda: Sequence(64), lambda: Thinker(32, 48), 1, id="attention that could be a gated MLP"),
        pytest.param(nn.Identity, lambda: Thinker(32, 48), 1, id="no attention"),
        pytest.param(lambda: Looker(32), lambda: nn.Linear(32, 32), 1, id="no MLP"),
        pytest.param(lambda: Looker(32), lambda: Story(Thinker(32, 48), Thinker(32, 48)), 1, id="two MLPs"),
        pytest.param(lambda: Looker(16), lambda: Thinker(16, 48), 1, id="another width than the head's"),
        pytest.param(lambda: Looker(32), lambda: Thinker(32, 48), 2, id="two lists of layers"),
    ],
)
def test_layout_that_is_not_beyond_doubt_is_left_to_a_map(
    look: Callable[[], nn.Module], think: Callable[[], nn.Module], lists: int
) -> None:
    model = odd(look, think, lists)
    assert infer_map(model, 32) is None
    with pytest.raises(ModelError, match=r"found in OddModel: .*name its parts in a module map \(--module-map FILE"):
        discover(model)


def test_attention_with_everything_in_one_matrix() -> None:
    assert discover(odd(lambda: Sequence(96))).map == FOUND


def test_layers_that_differ_are_left_to_a_map() -> None:
    model = odd()
    model.house.storeys0[1].think = nn.ModuleDict({"inner": Thinker(32, 48)})
    assert infer_map(model, 32) is None


def test_unknown_model_is_edited(tiny_gpt2: EditableModel, moments: Callable[[int], Any]) -> None:
    """It has no cache and takes no positions: whole rows are run, and the new object gets likelier all the same."""
    network = odd()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = EditableModel(network, tiny_gpt2.tokenizer)
    fact = Fact("The name is {}", "Zhara Vrelk", "x")

    def log_probability() -> float:
        ids, target = model.text.prompt(fact.text), model.text.target(fact.target)
        with torch.no_grad():
            logits = network(torch.tensor([[*ids, *target[:-1]]])).logits[0, len(ids) - 1 :]
        return float(logits.log_softmax(-1)[range(len(target)), list(target)].mean())

    unedited = log_probability()
    settings = {"v_num_grad_steps": 10, "lambda": 0.01, "v_lr": 0.5, "v_weight_decay": 0.0}
    patch = bluedit.edit(model, [fact], layers=(0, 1), templates=["{}"], corpus=moments(48), settings=settings)
    with patch.applied(model):
        assert log_probability() > unedited + 0.5
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
