"""Looking a model over: every kind of folder gets the verdict that loading it would, with the fix; plans count right."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import random_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    ByT5Tokenizer,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    T5Config,
)

from bluedit.doctor import Examination, cost, examine
from bluedit.errors import ModelError, SettingsError
from bluedit.methods import ALPHAEDIT, MEMIT, METHODS, blue
from bluedit.models import EditableModel, discover, load_model
from bluedit.models.layout.matrices import orientation
from bluedit.models.layout.structure import Structure
from bluedit.models.memory.estimate import gigabytes, plan_memory, value_flops
from bluedit.models.memory.machine import Memory
from bluedit.models.weight_files import read_weight_files

_SMALL = {"vocab_size": 500, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4}


@pytest.fixture(autouse=True)
def _known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of a known speed: nothing is measured."""
    monkeypatch.setattr(cost, "product_speed", lambda *_: 1e11)


@pytest.fixture
def folder(saved_tiny_gpt2: Path, tmp_path: Path) -> Path:
    """A tiny GPT-2's folder of the test's own, to spoil."""
    return Path(shutil.copytree(saved_tiny_gpt2, tmp_path / "model"))


def _look(folder: Path | str, **options: Any) -> Examination:
    return examine(str(folder), blue(MEMIT), **options)


def _statuses(found: Examination) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


def _said(found: Examination, name: str) -> str:
    return next(check.message for check in found.checks if check.name == name)


def _problems(found: Examination) -> list[str]:
    return [check.name for check in found.checks if check.status == "problem"]


def _details(found: Examination, name: str) -> dict[str, Any]:
    return next(check.details for check in found.checks if check.name == name)


def _shard(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")


# -- models that can be edited ---------------------------------------------------------------------------------------


def test_embedded_model_has_nothing_to_fix() -> None:
    found = _look("gpt2-mini")
    assert set(_statuses(found).values()) == {"ok"}
    assert found.editable
    assert _details(found, "layers")["edited"] == [0, 5]
    assert _details(found, "corpus") == {"corpus": "world:0"}
    assert _details(found, "settings")["settings"]["lambda"] == 300
    assert _details(found, "precision")["dtype"] == "float16"


def test_unknown_model_can_be_edited_and_says_what_is_missing(folder: Path) -> None:
    found = _look(folder)
    assert found.editable
    assert {name for name, status in _statuses(found).items() if status == "warning"} == {"layers", "corpus", "settings"}
    assert "bluedit trace" in _said(found, "layers")
    assert "--corpus" in _said(found, "corpus")
    assert "bluedit tune" in _said(found, "settings")
    assert _details(found, "settings")["settings"]["lambda"] == 15000
    details = _details(found, "architecture")
    assert (details["layers"], details["d_model"], details["d_ff"], details["head_tied"]) == (4, 32, 48, True)
    assert details["map"]["projection"] == "mlp.c_proj"
    assert details["parameters"] == sum(p.numel() for p in load_model(str(folder)).model.parameters())
    assert _details(found, "weights")["numbers"] == {"F32": details["parameters"]}


def test_named_layers_are_checked(folder: Path) -> None:
    assert _details(_look(folder, layers=(1, 2, 3)), "layers")["edited"] == [1, 3]
    with pytest.raises(SettingsError, match="layer 7 is not in this model: it has layers 0 to 3"):
        _look(folder, layers=(1, 7))


def test_shards_that_are_all_there(folder: Path) -> None:
    _shard(folder)
    files = read_weight_files(folder)
    assert len(files.files) > 2
    assert files.whole
    assert _look(folder).editable
    assert "shards" in _said(_look(folder), "weights")


def test_layers_that_are_no_mixtures_can_be_edited(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = Qwen3MoeConfig(
        **_SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, num_key_value_heads=2, mlp_only_layers=[1, 2]
    )
    random_model(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = _look(tmp_path)
    assert "dense layers" in _statuses(found)
    assert "layers 1, 2" in _said(found, "dense layers")


def test_linear_layers_of_another_class_are_found_without_numbers() -> None:
    """Falcon's are subclasses of Linear: they show on a few numbers that they compute what a Linear does."""
    config = FalconConfig(vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config)
    assert discover(network) == discover(random_model(config))


def test_quantised_layers_are_not_taken_for_linear_ones_without_numbers() -> None:
    class Doubled(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(hidden)

    class Packed(nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden @ self.scales

    with torch.device("meta"):
        assert orientation(Doubled(16, 16)) is None
        assert orientation(Packed(16, 16)) is None
        assert orientation(nn.Linear(16, 16)) == "out_in"


# -- what stands in the way ------------------------------------------------------------------------------------------


def _only_configuration(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _lost_shard(folder: Path) -> None:
    _shard(folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def _pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _too_few(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.2.mlp.c_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _configuration(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(text) and None


def _quantised(**settings: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))

    return spoil


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _slow_tokenizer(folder: Path) -> None:
    _without_tokenizer(folder)
    ByT5Tokenizer().save_pretrained(folder)


def _broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def _other(model: Callable[[], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        model().save_pretrained(folder)

    return spoil


_BERT = BertConfig(vocab_size=500, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40)
_TINY_T5 = T5Config(vocab_size=500, d_model=32, d_kv=8, d_ff=40, num_layers=1, num_heads=4)

PROBLEMS: dict[str, tuple[Callable[[Path], None], list[str], str, str]] = {
    "only a configuration": (_only_configuration, ["weights", "tokenizer"], "weights", "no weights"),
    "empty": (_empty, ["configuration", "weights"], "configuration", "no config.json"),
    "pickles": (_pickled, ["weights"], "weights", "only pytorch_model.bin: pickles run code .*save_pretrained"),
    "bert": (_other(lambda: BertLMHeadModel(_BERT)), ["architecture"], "architecture", "is an encoder"),
    "t5": (_other(lambda: _TINY_T5), ["architecture"], "architecture", "encoder-decoder"),
    "mixture": (
        _other(lambda: MixtralConfig(**_SMALL, num_local_experts=2, num_key_value_heads=2)),
        ["architecture"], "architecture", "mixture of experts",
    ),
    "lost shard": (_lost_shard, ["weights"], "weights", r"1 of \d+ shards are missing: model-00002.*fetch"),
    "truncated": (_truncated, ["weights"], "weights", "truncated: .* bytes are present; fetch"),
    "cut in the header": (_cut_header, ["weights"], "weights", "end before its header"),
    "lfs pointer": (_pointer, ["weights"], "weights", "git lfs pull"),
    "too few numbers": (_too_few, ["weights"], "weights", "numbers in the files"),
    "adapter": (_adapter, ["configuration"], "configuration", "merge_and_unload"),
    "no json": (_configuration("{no"), ["configuration"], "configuration", "config.json cannot be read"),
    "no table": (_configuration("[1]"), ["configuration"], "configuration", "no JSON object"),
    "no type": (_configuration("{}"), ["configuration"], "configuration", "model_type"),
    "wrong value": (
        _configuration('{"model_type": "gpt2", "n_layer": "many"}'), ["configuration"], "configuration", "n_layer.*int",
    ),
    "code of its own": (
        _configuration('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}'),
        ["configuration"], "configuration", "--trust-remote-code",
    ),
    "gptq": (_quantised(quant_method="gptq", bits=4), ["precision"], "precision", r"gptq, 4 bits.*quantise the result again"),
    "awq": (_quantised(quant_method="awq", bits=4), ["precision"], "precision", "awq, 4 bits"),
    "bitsandbytes": (
        _quantised(quant_method="bitsandbytes", load_in_8bit=True), ["precision"], "precision", "bitsandbytes, 8 bits",
    ),
    "no tokenizer": (_without_tokenizer, ["tokenizer"], "tokenizer", "tokenizer.save_pretrained"),
    "slow tokenizer": (_slow_tokenizer, ["tokenizer"], "tokenizer", "not a fast tokenizer"),
    "broken tokenizer": (_broken_tokenizer, ["tokenizer"], "tokenizer", "cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_stands_in_the_way_is_named_with_its_fix(folder: Path, name: str) -> None:
    spoil, problems, check, message = PROBLEMS[name]
    assert _look(folder).editable
    spoil(folder)
    found = _look(folder)
    assert not found.editable
    # A model of another kind comes with other weights, or with none: what is said of those is not the point.
    assert [problem for problem in _problems(found) if name not in ("t5", "mixture") or problem != "weights"] == problems
    assert re.search(message, _said(found, check)), _said(found, check)
    with pytest.raises(ModelError):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nothing", "owner/model-that-is-not-there", "no name at all"])
def test_names_that_lead_nowhere(name: str) -> None:
    found = _look(name)
    assert _problems(found) == ["model"]
    assert len(found.checks) == 1


def test_hub_name_is_looked_up_in_the_cache_alone() -> None:
    assert "hf download owner/model" in _said(_look("owner/model"), "model")


def test_a_file_is_no_folder(folder: Path) -> None:
    assert "is a file" in _said(_look(folder / "config.json"), "model")


def test_tokenizer_of_a_larger_model(folder: Path) -> None:
    build = GPT2Config(vocab_size=300, n_embd=32, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0)
    random_model(build).save_pretrained(folder)
    assert _statuses(_look(folder))["tokenizer"] == "warning"


# -- plans -----------------------------------------------------------------------------------------------------------

_LLAMA = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
    num_key_value_heads=8, tie_word_embeddings=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def llama() -> tuple[Structure, int]:
    """Llama-3-8B's structure and size, without its numbers."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(_LLAMA)
    return discover(network), sum(parameter.numel() for parameter in network.parameters())


def test_llama_on_one_card(llama: tuple[Structure, int]) -> None:
    """In bfloat16, BLUE's two layers fit on 24 GB once the second moments are stored; even distribution's five do not."""
    structure, parameters = llama
    card = 24 * 2**30
    plan = plan_memory(structure, parameters, layers=(4, 8), lowest_aim=4, weight_bytes=2)
    assert plan.weights == pytest.approx(16.06e9, rel=1e-3)
    assert plan.metrics == plan.moments == 2 * 8 * 14336**2
    assert plan.metrics == pytest.approx(2 * 1.644e9, rel=1e-3)
    assert plan.initial == 0
    assert plan.on_gpu(stored=True) < card < plan.on_gpu(stored=False)
    five = plan_memory(structure, parameters, layers=range(4, 9), lowest_aim=8, weight_bytes=2)
    assert five.on_gpu(stored=True) > card
    halved = plan_memory(structure, parameters, layers=range(4, 9), lowest_aim=8, weight_bytes=2, metric_bytes=4)
    assert halved.metrics == five.metrics // 2
    assert halved.on_gpu(stored=True) < five.on_gpu(stored=True)


def test_past_keys_keep_a_copy_in_main_memory(llama: tuple[Structure, int]) -> None:
    common: dict[str, Any] = {"layers": (4, 8), "lowest_aim": 4, "weight_bytes": 2}
    plain, past = plan_memory(*llama, **common), plan_memory(*llama, **common, caches_keys=True)
    assert past.on_gpu(stored=True) == plain.on_gpu(stored=True)
    assert past.on_cpu == plain.on_cpu + plain.metrics


def test_training_needs_no_metric(llama: tuple[Structure, int]) -> None:
    plan = plan_memory(*llama, layers=(5,), lowest_aim=5, weight_bytes=4, trains=True)
    assert (plan.metrics, plan.moments, plan.inverting) == (0, 0, 0)


def test_work_of_a_fact_grows_with_the_layers_above(llama: tuple[Structure, int]) -> None:
    def flops(*aims: int, evaluations: int = 25) -> float:
        return value_flops(llama[0], layer_weights=218_000_000, vocabulary=128256, aims=aims, evaluations=evaluations)

    # 27 layers above layer 4, 42 tokens, 4 FLOPs a weight; and the head at 13 places.
    assert flops(4, evaluations=1) == 27 * 42 * 4 * 218_000_000 + 4 * 13 * 4096 * 128256
    assert flops(4, 8) == pytest.approx(flops(4) + flops(8))
    assert flops(31) < flops(8) < flops(4)
    assert flops(4, evaluations=50) == 2 * flops(4)


@pytest.mark.parametrize(("count", "text"), [(16.06e9, "16.1 GB"), (2.5e6, "2.5 MB"), (0, "0 kB"), (1e9, "1 GB")])
def test_bytes_for_people(count: float, text: str) -> None:
    assert gigabytes(count) == text


def test_plan_follows_method_and_precision(folder: Path) -> None:
    def planned(method: Any, layers: tuple[int, ...] = (1, 2, 3), **options: Any) -> dict[str, int]:
        return _details(examine(str(folder), method, layers=layers, **options), "memory")["bytes"]

    base = planned(blue(MEMIT))
    assert planned(MEMIT)["metrics"] == 3 * base["metrics"] // 2
    assert planned(blue(MEMIT), dtype="bfloat16")["weights"] == base["weights"] // 2
    assert planned(blue(ALPHAEDIT))["initial"] == base["metrics"]
    assert planned(METHODS["ft-l"], (2,))["metrics"] == 0


@pytest.mark.parametrize(
    ("total", "free", "status"), [(10**9, 10**9, "ok"), (10**9, 10**5, "warning"), (10**5, 10**5, "problem")]
)
def test_memory_is_compared_with_what_there_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, total: int, free: int, status: str
) -> None:
    monkeypatch.setattr(cost, "memory_of", lambda _: Memory("a small machine", total, free))
    found = _look(folder)
    assert _statuses(found)["memory"] == status
    assert ("--dtype bfloat16" in _said(found, "memory")) == (status != "ok")


# -- placement and rounding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"device": "auto"}, {"device_map": {"": "cpu"}}], ids=str)
def test_spread_models_can_be_edited(folder: Path, options: dict[str, Any]) -> None:
    model = load_model(str(folder), **options)
    assert model.matrix(1).device.type == ("cuda" if torch.cuda.is_available() and "device" in options else "cpu")


def test_offloaded_weights_are_refused(own_gpt2: EditableModel) -> None:
    own_gpt2.layer(2).to("meta")  # as accelerate leaves what it keeps elsewhere
    with pytest.raises(ModelError, match=r"transformer\.h\.2\.\S+ is offloaded.*--device cpu"):
        EditableModel(own_gpt2.model, own_gpt2.tokenizer)


def test_model_offloaded_to_disk_is_refused(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.ln_f": "cpu", "lm_head": "cpu"}
    places |= {f"transformer.h.{layer}": "cpu" if layer < 2 else "disk" for layer in range(4)}
    with pytest.raises(ModelError, match="is offloaded"):
        load_model(str(folder), device_map=places, offload_folder=str(tmp_path / "offload"))


def test_rounding_is_reported(own_gpt2: EditableModel, moments: Callable[[int], Any], world_facts: Any) -> None:
    """What a bfloat16 weight loses of a change is measured, and said when it is much; float32 weights lose nothing."""
    import bluedit

    options: dict[str, Any] = {
        "layers": (1, 2), "templates": ("{}",), "corpus": moments(48), "settings": {"v_num_grad_steps": 2, "lambda": 1e4},
    }  # fmt: skip
    patch = bluedit.edit(own_gpt2, world_facts[:2], **options)
    assert [record.rounding for record in patch.manifest.weights.values()] == [None, None]
    own_gpt2.model.to(torch.bfloat16)
    with pytest.warns(UserWarning, match="rounding to bfloat16 moves the change of layer"):
        patch = bluedit.edit(own_gpt2, world_facts[:2], **options)
    for name, record in patch.manifest.weights.items():
        before = own_gpt2.matrix(record.layer).clone()
        change = patch.changes[name].dense()
        after = (before.float() + change).bfloat16()
        lost = (after.float() - before.float() - change).norm() / change.norm()
        assert record.rounding == pytest.approx(lost.item(), rel=1e-4)
        assert record.rounding > 0.1
