"""bluedit against the textbook, each line in one run on one machine: `make bench`.

| line | what is compared | |---|---| | values | value optimisation of CounterFact-like facts, 25 evaluations, no early
stop: batched with stored prefixes, or one fact at a time | | update | one closed-form update: recursive with a stored
inverse, or a dense solve | | moments | second moments of 5 of 48 layers: one truncated pass, or one whole pass per layer |
| scoring | ES, PS and NS of records: distinct queries in batches of like length, or one record at a time |

Both sides give the same numbers, which is checked before anything is printed. Times are medians where a side is short,
single runs where it is long; the textbook runs on fewer facts where one fact says enough, and rates are compared.

*Useful FLOPs of value optimisation.* A step needs, per token from the subject's last one on, a forward pass through the
weights above the edited layer (2 FLOPs a parameter) and a backward pass to their inputs (2 more; no weight gets a
gradient); attention to T earlier tokens (4 T D a layer forward, twice that backward); and the head at target and KL
positions alone (2 D V forward, 2 D V backward). Everything else, padding included, is overhead. The share of peak is useful
FLOPs per second over those of a square matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import textbook
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from bluedit.datasets import World, read_dataset
from bluedit.evaluation import score_cases
from bluedit.facts import Fact
from bluedit.files import atomic_file
from bluedit.methods import Settings
from bluedit.models import EditableModel, load_model
from bluedit.solvers import InverseMetric
from bluedit.statistics import second_moments
from bluedit.values import context_templates, optimise_values

RESULTS = Path(__file__).parent / "results" / "speed.json"
SETTINGS = Settings(v_num_grad_steps=25, early_stop_loss=0.0, v_lr=0.1)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = function()
    return time.perf_counter() - begun, result


def peak(size: int = 1536, repeats: int = 5) -> float:
    """FLOP/s of a square float32 matrix product, the best of a few."""
    one, other = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(timed(lambda: one @ other)[0] for _ in range(repeats))


def random_model(layers: int, width: int, heads: int, tokenizer: Any, vocabulary: int, context: int = 256) -> EditableModel:
    """A GPT-2 of a shape, random weights."""
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocabulary, n_positions=context)
    return EditableModel(AutoModelForCausalLM.from_config(config).float().eval(), tokenizer)


def useful_flops(model: EditableModel, facts: Sequence[Fact], layer: int, templates: Sequence[str], evaluations: int) -> float:
    """What one evaluation of all facts needs, times the evaluations; see the module's docstring."""
    width, vocabulary = model.structure.d_model, model.model.get_input_embeddings().weight.shape[0]
    above = model.structure.depth - 1 - layer
    weights = sum(parameter.numel() for name, parameter in model.layer(layer).named_parameters() if parameter.ndim == 2)
    total = 0.0
    for fact in facts:
        rows = [model.text.row(fact, template, with_target=True) for template in templates]
        kl = model.text.subject_row(f"{fact.subject} is a", 0, len(fact.subject))
        lengths = [(row.subject, len(row.ids), len(row.target)) for row in rows] + [(kl.subject, kl.subject + 1, 1)]
        for subject, length, logits in lengths:
            suffix = length - subject
            total += above * suffix * 4 * weights
            total += above * sum(12 * width * (position + 1) for position in range(subject, length))
            total += 4 * logits * width * vocabulary
    return total * evaluations


def values(model: EditableModel, facts: Sequence[Fact], layer: int, baseline: int, name: str) -> dict[str, Any]:
    templates = context_templates(model, 0)
    ours, found = timed(lambda: optimise_values(model, facts, layer, templates, SETTINGS))
    theirs = 0.0
    for column in range(baseline):
        with model.frozen():
            seconds, (target, loss) = timed(
                lambda column=column: textbook.optimise_one(model, facts[column], layer, templates, SETTINGS)
            )
        theirs += seconds
        assert abs(found.losses[column] - loss) <= 1e-2 * abs(loss), (found.losses[column], loss)
        torch.testing.assert_close(found.targets_DN[:, column], target, rtol=2e-2, atol=2e-2 * target.abs().max().item())
    rate, other = len(facts) / ours, baseline / theirs
    achieved = useful_flops(model, facts, layer, templates, SETTINGS.v_num_grad_steps) / ours
    return {
        "line": f"values, {name}",
        "ratio": rate / other,
        "facts_per_second": rate,
        "textbook_facts_per_second": other,
        "facts": len(facts),
        "textbook_facts": baseline,
        "share_of_peak": achieved / peak(),
    }


def update(size: int = 6400, facts: int = 100, width: int = 1600) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    samples_TF = torch.randn(size + 200, size, generator=generator, dtype=torch.float64)
    prior_FF = samples_TF.T @ samples_TF / len(samples_TF)
    keys_FN = torch.randn(size, facts, generator=generator, dtype=torch.float64)
    residual_DN = torch.randn(width, facts, generator=generator, dtype=torch.float64)
    making, metric = timed(lambda: InverseMetric.from_second_moment(prior_FF, 1.0, shrinkage=0.1))
    shrunk_FF = 0.9 * prior_FF
    shrunk_FF.diagonal().add_(0.1 * prior_FF.diagonal().mean())
    dense, expected_DF = timed(lambda: textbook.dense_update(shrunk_FF, keys_FN, residual_DN))
    ours = statistics.median(timed(lambda: metric.gain(keys_FN))[0] for _ in range(3))
    gain_FN = metric.gain(keys_FN)
    error = ((residual_DN @ gain_FN.T - expected_DF).norm() / expected_DF.norm()).item()
    assert error <= 1e-8, error
    return {
        "line": f"update, d_ff {size}, {facts} facts",
        "ratio": dense / ours,
        "seconds": ours,
        "textbook_seconds": dense,
        "relative_difference": error,
        "inverse_once_seconds": making,
    }


def moments(tokenizer: Any, vocabulary: int, documents: int = 60) -> dict[str, Any]:
    model, layers = random_model(48, 128, 4, tokenizer, vocabulary), (13, 14, 15, 16, 17)
    texts = World(0).corpus(documents)
    ours, found = timed(lambda: second_moments(model, texts, layers))
    theirs = 0.0
    for layer in layers:
        seconds, expected = timed(lambda layer=layer: textbook.second_moment_of_one_layer(model, texts, layer))
        theirs += seconds
        torch.testing.assert_close(found[layer].matrix_FF, expected, rtol=1e-4, atol=1e-5)
    return {"line": "moments, 5 of 48 layers", "ratio": theirs / ours, "seconds": ours, "textbook_seconds": theirs}


def scoring(model: EditableModel, records: int) -> dict[str, Any]:
    cases = read_dataset("world:counterfact:0:3", records)
    ours, scores = timed(lambda: score_cases(model, cases))
    theirs, expected = timed(lambda: [textbook.score_one(model, case) for case in cases])
    for (_, outcomes), row in zip(scores.cases, expected, strict=True):
        for name, values in row.items():
            assert [bool(value) for value in outcomes[name]] == values, name
    return {"line": f"scoring {records} records", "ratio": theirs / ours, "seconds": ours, "textbook_seconds": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=("values", "values-small", "update", "moments", "scoring"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    mini = load_model("gpt2-mini", device="cpu")
    facts = [case.fact for case in read_dataset("world:counterfact:0:3:person", 32)]
    vocabulary = mini.model.config.vocab_size
    lines: dict[str, Callable[[], dict[str, Any]]] = {
        "update": update,
        "moments": lambda: moments(mini.tokenizer, vocabulary),
        "scoring": lambda: scoring(mini, 200),
        "values": lambda: values(mini, facts, 2, 8, "gpt2-mini, layer 2"),
        "values-small": lambda: values(
            random_model(12, 768, 12, mini.tokenizer, 50257), facts, 3, 2, "GPT-2-small shape, layer 3"
        ),
    }
    done: list[dict[str, Any]] = []
    for name, line in lines.items():
        if options.only and name not in options.only:
            continue
        row = line()
        row["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        done.append(
            {
                key: round(value, 4) if isinstance(value, float) and key != "relative_difference" else value
                for key, value in row.items()
            }
        )
        print(json.dumps(done[-1]), flush=True)
    if not options.only:
        document = {
            "command": "python benchmarks/speed.py",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "lines": done,
        }
        with atomic_file(RESULTS) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
