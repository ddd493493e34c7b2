"""Speed on one GPU: GPT-J-6B's and Llama-3-8B's shapes with random weights in bfloat16, 100 facts with BLUE.

    python benchmarks/gpu.py [--shape llama-3-8b gpt-j-6b] [--facts 100] [--out benchmarks/results]

No checkpoint is needed: what a fact costs depends on shapes, tokens and evaluations, and all 25 evaluations are made. For each
shape it writes seconds per fact (with the whole edit's parts), useful FLOPs per second over those of a bfloat16 matrix product
measured in the same run, the peak of memory, the textbook baseline on four facts, and a profile of one evaluation.

Second moments are those of random keys: what they are does not change what they take.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speed
import textbook
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, GPTJConfig, LlamaConfig

import bluedit
from bluedit.datasets import read_dataset
from bluedit.editors.closed_form.optimizer import optimise_values
from bluedit.methods import MEMIT
from bluedit.models import EditableModel, load_model
from bluedit.models.inputs.templates import context_templates
from bluedit.statistics import SecondMoment, Statistics
from bluedit.storage.files import atomic_file

SHAPES: dict[str, tuple[Callable[[], Any], tuple[int, int]]] = {
    "llama-3-8b": (
        lambda: LlamaConfig(
            hidden_size=4096, num_hidden_layers=32, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8,
            vocab_size=128256, max_position_embeddings=8192, rope_theta=500000.0, tie_word_embeddings=False,
        ),
        (4, 8),
    ),
    "gpt-j-6b": (lambda: GPTJConfig(n_embd=4096, n_layer=28, n_head=16, rotary_dim=64, vocab_size=50400), (3, 8)),
    # To try the script where there is little memory.
    "tiny": (
        lambda: LlamaConfig(
            hidden_size=64, num_hidden_layers=10, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=5000, max_position_embeddings=256,
        ),
        (4, 8),
    ),
}  # fmt: skip


def build(configuration: Any, device: str) -> EditableModel:
    """Random weights, drawn on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(configuration, dtype=torch.bfloat16)
    return EditableModel(model.eval(), load_model("gpt2-mini", device="cpu").tokenizer)


def random_moment(size: int, device: str) -> SecondMoment:
    samples_TF = torch.randn(size // 8, size, device=device)
    return SecondMoment((samples_TF.T @ samples_TF / len(samples_TF)).double(), 100_000)


def peak(device: str, size: int = 8192) -> float:
    """FLOP/s of a square bfloat16 matrix product, the best of a few."""
    size = size if device == "cuda" else 512
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(measured(lambda: one @ other, device)[0] for _ in range(10))


def measured(function: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds until the device has finished, and the result."""
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    begun = time.perf_counter()
    result = function()
    synchronise()
    return time.perf_counter() - begun, result


def benchmark(name: str, count: int, baseline: int, device: str, out: Path) -> dict[str, Any]:
    make, layers = SHAPES[name]
    model = build(make(), device)
    facts = [case.fact for case in read_dataset("world:counterfact:0:3:person", count)]
    settings = MEMIT.override({"v_num_grad_steps": 25, "early_stop_loss": 0.0, "v_lr": 0.1, "shrinkage": 0.1})
    statistics = Statistics(precomputed={layer: random_moment(model.structure.d_ff, device) for layer in layers})
    templates = context_templates(model, 0)
    # Once on two facts, so that kernels are loaded and chosen before anything is measured.
    optimise_values(model, facts[:2], layers[0], templates, settings.override({"v_num_grad_steps": 2}))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    parts: dict[str, float] = defaultdict(float)
    last = [time.perf_counter()]

    def note(task: str, advance: int, total: int | None) -> None:
        now = time.perf_counter()
        parts[task] += now - last[0]
        last[0] = now

    seconds, _ = measured(
        lambda: bluedit.edit(
            model, facts, layers=list(layers), settings=settings, corpus=statistics, templates=templates, progress=note
        ),
        device,
    )
    parts["everything else"] = seconds - sum(parts.values())
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    by_layer = {}
    highest = peak(device)
    for layer in layers:
        taken, _ = measured(lambda layer=layer: optimise_values(model, facts, layer, templates, settings), device)
        useful = speed.useful_flops(model, facts, layer, templates, settings.v_num_grad_steps) / taken
        by_layer[layer] = {"seconds_per_fact": taken / count, "share_of_peak": useful / highest}
    theirs = 0.0
    with model.frozen(fuse=False):
        for fact in facts[:baseline]:
            for layer in layers:
                theirs += measured(
                    lambda fact=fact, layer=layer: textbook.optimise_one(model, fact, layer, templates, settings), device
                )[0]
    _profile(
        model, facts, layers[0], templates, settings.override({"v_num_grad_steps": 2}), out / f"profile_{name}.txt", device
    )
    return {
        "shape": name,
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "facts": count,
        "layers": layers,
        "seconds_per_fact": seconds / count,
        "textbook_seconds_per_fact": theirs / baseline,
        "textbook_facts": baseline,
        "ratio": (theirs / baseline) / (seconds / count),
        "parts_seconds": dict(parts),
        "value_optimisation": by_layer,
        "peak_tflops_per_second": highest / 1e12,
        "peak_memory_gib": memory,
    }


def _profile(model: EditableModel, facts: Any, layer: int, templates: Any, settings: Any, path: Path, device: str) -> None:
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=kinds) as seen:
        optimise_values(model, facts, layer, templates, settings)
    order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    table = seen.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)
    with atomic_file(path) as temporary:
        temporary.write_text(f"Two evaluations of {len(facts)} facts at layer {layer}.\n{table}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["llama-3-8b", "gpt-j-6b"])
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--textbook-facts", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --device cpu --shape tiny tries the script without one")
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.shape:
        row = benchmark(name, options.facts, options.textbook_facts, options.device, options.out)
        print(json.dumps(row), flush=True)
        with atomic_file(options.out / f"gpu_{name}.json") as temporary:
            temporary.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        if options.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
