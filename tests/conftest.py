"""What tests share: tiny random models of every layout, a tokenizer trained on the synthetic world, facts of that world.

Nothing here is downloaded, and no test touches the user's cache. The models are random, so tests prove mechanics
(places, bits, equations), never quality.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import random_model
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from bluedit.datasets import World
from bluedit.edits import LowRank, Manifest, Patch
from bluedit.edits.manifest import FactRecord, WeightRecord
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.statistics import SecondMoment, Statistics

torch.set_num_threads(1)  # for matrices as small as these, threads only wait for one another

VOCABULARY = 500
DEPTH = 4
WIDTH = 32
LENGTH = 96

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
_LLAMA_LIKE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "initializer_range": 0.3,
    **_COMMON,
}
_GPT2 = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": LENGTH, "initializer_range": 0.3, **_COMMON}

CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    # Dropout of 0.1 stays on: a test that forgets evaluation mode should fail.
    "gpt2": lambda: GPT2Config(n_inner=48, **_GPT2),
    "gpt2-square": lambda: GPT2Config(n_inner=WIDTH, **_GPT2),
    "gptj": lambda: GPTJConfig(rotary_dim=4, **_GPT2),
    "llama": lambda: LlamaConfig(
        intermediate_size=40, num_key_value_heads=2, tie_word_embeddings=False, pad_token_id=None, **_LLAMA_LIKE
    ),
    "llama-square": lambda: LlamaConfig(intermediate_size=WIDTH, num_key_value_heads=4, pad_token_id=None, **_LLAMA_LIKE),
    "gpt-neox": lambda: GPTNeoXConfig(intermediate_size=56, rotary_pct=0.5, **_LLAMA_LIKE),
}
"""Configurations by name. Weights are drawn wide (0.3), so that differences between results are no rounding errors."""


def build_model(name: str, seed: int = 0) -> PreTrainedModel:
    """The named tiny model with random weights, in evaluation mode."""
    return random_model(CONFIGURATIONS[name](), seed)


def train_tokenizer(texts: list[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2's: any text can be encoded, whatever its script."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")  # noqa: S106


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of this session: an empty one, never the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLUEDIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def world() -> World:
    return World(0)


@pytest.fixture(scope="session")
def corpus_texts(world: World) -> list[str]:
    return world.corpus(300)


@pytest.fixture(scope="session")
def corpus_file(corpus_texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus as a text file, one document per line."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(corpus_texts) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(corpus_texts: list[str]) -> PreTrainedTokenizerFast:
    return train_tokenizer(corpus_texts)


@pytest.fixture(scope="session")
def _models(tokenizer: PreTrainedTokenizerFast) -> dict[str, EditableModel]:
    assert len(tokenizer) == VOCABULARY
    return {name: EditableModel(build_model(name), tokenizer) for name in CONFIGURATIONS}


@pytest.fixture(scope="session")
def _originals(_models: dict[str, EditableModel]) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {key: value.clone() for key, value in model.model.state_dict().items()} for name, model in _models.items()}


@pytest.fixture(autouse=True)
def _models_untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """The session shares its models: a test that leaves one changed is itself the one that fails."""
    used = "_models" in request.fixturenames
    originals = request.getfixturevalue("_originals") if used else {}
    models = request.getfixturevalue("_models") if used else {}
    yield
    for name, model in models.items():
        network = model.model
        assert not network.training, f"{name} was left in training mode"
        assert not getattr(getattr(network, "_bluedit_applied", None), "patches", ()), f"{name} was left with a patch applied"
        hooked = [path for path, module in network.named_modules() if module._forward_hooks or module._forward_pre_hooks]
        assert not hooked, f"{name} was left with hooks on {hooked}"
        assert all(parameter.requires_grad for parameter in network.parameters()), f"{name} was left frozen"
        changed = [key for key, value in network.state_dict().items() if not torch.equal(value, originals[name][key])]
        assert not changed, f"{name} was left with other weights: {changed}"


@pytest.fixture(params=list(CONFIGURATIONS))
def tiny_models(request: pytest.FixtureRequest, _models: dict[str, EditableModel]) -> EditableModel:
    """Each tiny model in turn. Leave it as it was: the session shares it."""
    return _models[request.param]


@pytest.fixture
def tiny_gpt2(_models: dict[str, EditableModel]) -> EditableModel:
    """A tiny GPT-2. Leave it as it was: the session shares it."""
    return _models["gpt2"]


@pytest.fixture
def own_gpt2(tiny_gpt2: EditableModel) -> EditableModel:
    """A tiny GPT-2 of the test's own, to change as it likes."""
    return EditableModel(copy.deepcopy(tiny_gpt2.model), tiny_gpt2.tokenizer)


@pytest.fixture
def other_gpt2(tokenizer: PreTrainedTokenizerFast) -> EditableModel:
    """A tiny GPT-2 of the test's own with the same configuration and other weights."""
    return EditableModel(build_model("gpt2", seed=1), tokenizer)


@pytest.fixture(scope="session")
def saved_tiny_gpt2(_models: dict[str, EditableModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny GPT-2 and its tokenizer, as `save_pretrained` writes it. Do not write into it."""
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    _models["gpt2"].model.save_pretrained(folder)
    _models["gpt2"].tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def world_records(world: World) -> list[dict[str, Any]]:
    """Six CounterFact records of the world."""
    return world.counterfact(6)


@pytest.fixture(scope="session")
def world_facts(world_records: list[dict[str, Any]]) -> tuple[Fact, ...]:
    rewrites = [record["requested_rewrite"] for record in world_records]
    return tuple(
        Fact(rewrite["prompt"], rewrite["subject"], rewrite["target_new"]["str"], id=f"w{number}")
        for number, rewrite in enumerate(rewrites)
    )


@pytest.fixture(scope="session")
def moments() -> Callable[[int], Statistics]:
    """Statistics of random, well-conditioned second moments for keys of a given width."""

    def make(d_ff: int) -> Statistics:
        generator = torch.Generator().manual_seed(1)
        known: dict[int, SecondMoment] = {}
        for layer in range(DEPTH):
            keys_TF = torch.randn(4 * d_ff, d_ff, generator=generator, dtype=torch.float64)
            known[layer] = SecondMoment(keys_TF.T @ keys_TF / len(keys_TF), len(keys_TF))
        return Statistics(precomputed=known)

    return make


@pytest.fixture(scope="session")
def make_patch() -> Callable[..., Patch]:
    """Builds a patch of random factors by hand: what an edit makes, without the edit."""

    def make(
        model: EditableModel, layers: tuple[int, ...] = (1, 2), *, seed: int = 0, facts: int = 3, scale: float = 0.1
    ) -> Patch:
        generator = torch.Generator().manual_seed(seed)
        structure = model.structure
        changes = {
            structure.weight_name(layer): LowRank.of(
                scale * torch.randn(structure.d_model, facts, generator=generator),
                torch.randn(structure.d_ff, facts, generator=generator),
            )
            for layer in layers
        }
        weights = {
            structure.weight_name(layer): WeightRecord(
                layer=layer,
                before=model.weight_fingerprint(layer),
                norm=(norm := changes[structure.weight_name(layer)].norm()),
                relative_norm=norm / math.sqrt(float(model.matrix(layer).float().square().sum())),
            )
            for layer in layers
        }
        manifest = Manifest(
            model="tiny",
            configuration=model.configuration_fingerprint(),
            method="memit",
            strategy="boundary",
            layers=layers,
            settings={"lambda": 5.0},
            templates=("{}",),
            seed=seed,
            facts=tuple(
                FactRecord(id=str(number), prompt="{} was born in", subject=f"Ædä {number} 東京", target="Paris")
                for number in range(facts)
            ),
            weights=weights,
            versions={"bluedit": "0"},
        )
        return Patch(changes, manifest)

    return make


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data beside the checkout; tests that need it are skipped where it is not."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the shared folder beside the checkout")
    return folder


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON Lines and returns the file."""

    def write(rows: list[dict[str, Any]], name: str = "facts.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
