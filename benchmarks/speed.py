"""bluedit against the textbook, each line in one run on one machine: `make bench`.

- *values*: value optimisation, 32 facts, 25 evaluations, no early stop: batched with stored prefixes, or one fact at a time.
- *update*: one closed-form update: recursive with a stored inverse, or a dense solve.
- *moments*: second moments of 5 of 48 layers: one truncated pass, or one whole pass per layer.
- *scoring*: ES, PS and NS of 200 records: distinct queries in batches of like length with common beginnings run once, or one
  record at a time.
- *memory*: BLUE on the shape of GPT2-XL: nothing to compare with, but the peak of memory.

Both sides give the same numbers, which is checked before anything is printed. The textbook runs on fewer facts where a few say
enough, and rates are compared. Every line runs in a process of its own, so that its peak of memory is its own; that of a line
holds the textbook's as well. CounterFact's facts and GPT-2's tokenizer are taken from `--data FOLDER` (`counterfact/
counterfact_200.json` and `gpt2_tokenizer/tokenizer.json`) where it exists, else a synthetic world's; the line says which.

*Useful FLOPs of value optimisation.* A step needs, per token from the subject's last one on, a forward pass through the
weights above the edited layer (2 FLOPs a parameter) and a backward pass to their inputs (2 more; no weight gets a
gradient), of the last layer's MLP only at target and KL positions; attention to T earlier tokens (4 T D a layer forward, twice
that backward); and the head at target and KL positions alone (2 D V forward, 2 D V backward). A KL prompt that the bare prompt
begins with adds its logits only. Everything
else is overhead: padding, activations and norms, the passes that store prefixes, templates, Adam. The share of peak is useful
FLOPs per second over those of a square float32 matrix product, measured before and after in the same process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import textbook
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

import bluedit
from bluedit.datasets import World, read_dataset
from bluedit.editors.closed_form.inverse_metric import InverseMetric
from bluedit.editors.closed_form.objectives import ValueSettings
from bluedit.editors.closed_form.optimizer import optimise_values
from bluedit.evaluation import score_cases
from bluedit.facts import Fact
from bluedit.models import EditableModel, load_model
from bluedit.models.inputs.templates import context_templates
from bluedit.statistics import SecondMoment, Statistics, second_moments
from bluedit.storage.files import atomic_file

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "speed.json"
DATA = HERE.parent.parent / "shared" / "data"
SETTINGS = ValueSettings(v_num_grad_steps=25, early_stop_loss=0.0, v_lr=0.1)


class Material:
    """Facts, records and a large vocabulary: real ones where there are any."""

    def __init__(self, folder: Path) -> None:
        self.counterfact = folder / "counterfact" / "counterfact_200.json"
        self.vocabulary = folder / "gpt2_tokenizer" / "tokenizer.json"

    def records(self, count: int, world: str = "world:counterfact:0:3") -> tuple[str, list[Any]]:
        if self.counterfact.exists():
            return "CounterFact", read_dataset(f"counterfact:{self.counterfact}", count)
        return "world", read_dataset(world, count)

    def tokenizer(self) -> Any:
        if self.vocabulary.exists():
            return PreTrainedTokenizerFast(tokenizer_file=str(self.vocabulary), eos_token="<|endoftext|>")  # noqa: S106
        return load_model("gpt2-mini", device="cpu").tokenizer


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = function()
    return time.perf_counter() - begun, result


def peak(size: int = 1536, repeats: int = 10) -> float:
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
    matrices = {name: p.numel() for name, p in model.layer(layer).named_parameters() if p.ndim == 2}
    weights, mlp = sum(matrices.values()), sum(size for name, size in matrices.items() if name.startswith("mlp"))
    total = 0.0
    for fact in facts:
        rows = [model.text.row(fact, template, with_target=True) for template in templates]
        kl = model.text.subject_row(f"{fact.subject} is a", 0, len(fact.subject))
        lengths = [(row.subject, len(row.ids)) for row in rows]
        if rows[0].ids[: rows[0].subject + 1] != kl.ids[: kl.subject + 1]:
            lengths.append((kl.subject, kl.subject + 1))
        for subject, length in lengths:
            suffix = length - subject
            total += above * suffix * 4 * weights
            total += above * sum(12 * width * (position + 1) for position in range(subject, length))
            total -= bool(above) * suffix * 4 * mlp
        read = sum(len(row.target) for row in rows) + 1
        total += 4 * read * (bool(above) * mlp + width * vocabulary)
    return total * evaluations


def values(model: EditableModel, facts: Sequence[Fact], layer: int, baseline: int, name: str) -> dict[str, Any]:
    """Ours on all facts, the textbook on `baseline` of them, spread evenly; the machine's speed before, between and after."""
    templates = context_templates(model, 0)
    peaks = [peak()]
    ours, found = timed(lambda: optimise_values(model, facts, layer, templates, SETTINGS))
    peaks.append(peak())
    theirs = 0.0
    chosen = range(0, len(facts), len(facts) // baseline)
    for column in chosen:
        with model.frozen(fuse=False):
            seconds, (target, loss) = timed(
                lambda column=column: textbook.optimise_one(model, facts[column], layer, templates, SETTINGS)
            )
        theirs += seconds
        assert abs(found.losses[column] - loss) <= 1e-2 * abs(loss), (found.losses[column], loss)
        torch.testing.assert_close(found.targets_DN[:, column], target, rtol=2e-2, atol=2e-2 * target.abs().max().item())
    peaks.append(peak())
    rate, other = len(facts) / ours, len(chosen) / theirs
    achieved = useful_flops(model, facts, layer, templates, SETTINGS.v_num_grad_steps) / ours
    return {
        "line": f"values, {name}, layer {layer}",
        "ratio": rate / other,
        "facts_per_second": rate,
        "textbook_facts_per_second": other,
        "facts": len(facts),
        "textbook_facts": len(chosen),
        "useful_gflops_per_second": achieved / 1e9,
        "peak_gflops_per_second": [round(value / 1e9, 1) for value in peaks],
        "share_of_peak": achieved / max(peaks[:2]),
    }


def update(size: int = 6400, facts: int = 100, width: int = 1600) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    samples_TF = torch.randn(size + 200, size, generator=generator, dtype=torch.float64)
    prior_FF = samples_TF.T @ samples_TF / len(samples_TF)
    keys_FN = torch.randn(size, facts, generator=generator, dtype=torch.float64)
    residual_DN = torch.randn(width, facts, generator=generator, dtype=torch.float64)
    making, metric = timed(lambda: InverseMetric(*SecondMoment(prior_FF, len(samples_TF)).inverse(0.1)))
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


def scoring(model: EditableModel, cases: Sequence[Any], name: str) -> dict[str, Any]:
    """Ours and the textbook's in turn, three times; medians."""
    seconds: list[tuple[float, float]] = []
    for _ in range(3):
        ours, scores = timed(lambda: score_cases(model, cases))
        with model.frozen(fuse=False):
            theirs, expected = timed(lambda: [textbook.score_one(model, case) for case in cases])
        seconds.append((ours, theirs))
    alike = [
        bool(value) == other
        for (_, outcomes), row in zip(scores.cases, expected, strict=True)  # pyright: ignore[reportPossiblyUnboundVariable]
        for name, values in row.items()
        for value, other in zip(outcomes[name], values, strict=True)
    ]
    # Two log-probabilities may be so near one another that rounding decides which is the larger.
    assert sum(alike) >= len(alike) - 2, (sum(alike), len(alike))
    ours, theirs = (statistics.median(side) for side in zip(*seconds, strict=True))
    return {
        "line": f"scoring, {len(cases)} records, {name}",
        "ratio": theirs / ours,
        "records_per_second": len(cases) / ours,
        "textbook_records_per_second": len(cases) / theirs,
        "outcomes": len(alike),
        "outcomes_that_differ": len(alike) - sum(alike),
    }


def memory(material: Material, facts: int = 20, evaluations: int = 3) -> dict[str, Any]:
    """The peak of an edit of GPT2-XL's shape with BLUE at layers 13 and 17; it is reached in the first evaluations."""
    model = random_model(48, 1600, 25, material.tokenizer(), 50257)
    source, cases = material.records(facts)
    after_loading = _resident()
    # C of random keys: what it is does not change what it takes.
    size = model.structure.d_ff
    moments = {}
    for layer in (13, 17):
        samples_TF = torch.randn(size // 8, size)
        moments[layer] = SecondMoment((samples_TF.T @ samples_TF / len(samples_TF)).double(), 100_000)
    seconds, patch = timed(
        lambda: bluedit.edit(
            model,
            [case.fact for case in cases],
            layers=[13, 17],
            settings={"v_num_grad_steps": evaluations, "early_stop_loss": 0.0, "shrinkage": 0.1},
            corpus=Statistics(precomputed=moments),
        )
    )
    assert len(patch.changes) == 2
    return {
        "line": f"memory, GPT2-XL shape, {facts} facts ({source}), BLUE at 13 and 17, {evaluations} evaluations",
        "model_gib": after_loading,
        "seconds": seconds,
    }


def _resident() -> float:
    """GiB that this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def lines(material: Material) -> dict[str, Callable[[], dict[str, Any]]]:
    def mini() -> EditableModel:
        return load_model("gpt2-mini", device="cpu")

    def world_facts(count: int) -> list[Fact]:
        return [case.fact for case in read_dataset("world:counterfact:0:3:person", count)]

    def small_shape() -> dict[str, Any]:
        source, cases = material.records(32, "world:counterfact:0:3:person")
        model = random_model(12, 768, 12, material.tokenizer(), 50257)
        return values(model, [case.fact for case in cases], 4, 4, f"GPT-2-small shape, {source}")

    def scored() -> dict[str, Any]:
        source, cases = material.records(200)
        folder = DATA.parent / "models" / "counterfact-gpt2-mini"
        if source == "CounterFact" and folder.exists():
            return scoring(load_model(str(folder), device="cpu", dtype="float32"), cases, "CounterFact, its mini model")
        return scoring(mini(), read_dataset("world:counterfact:0:3", 200), "world, gpt2-mini")

    def scored_small() -> dict[str, Any]:
        source, cases = material.records(200)
        return scoring(random_model(12, 768, 12, material.tokenizer(), 50257), cases[:100], f"{source}, GPT-2-small shape")

    return {
        "update": update,
        "moments": lambda: moments(mini().tokenizer, 4096),
        "scoring": scored,
        "scoring-world": lambda: scoring(mini(), read_dataset("world:counterfact:0:3", 200), "world, gpt2-mini"),
        "scoring-small": scored_small,
        "values": lambda: values(mini(), world_facts(32), 2, 16, "gpt2-mini, world"),
        "values-first": lambda: values(mini(), world_facts(32), 0, 16, "gpt2-mini, world"),
        "values-last": lambda: values(mini(), world_facts(32), 5, 16, "gpt2-mini, world"),
        "values-small": small_shape,
        "memory": lambda: memory(material),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of CounterFact and a GPT-2 tokenizer")
    names = list(lines(Material(DATA)))
    parser.add_argument("--only", nargs="*", choices=names, help="these lines, and leave the results file as it is")
    parser.add_argument("--here", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.here:
        row = lines(Material(options.data))[options.here]()
        row["peak_memory_gib"] = _resident()
        print(json.dumps({key: _short(value) for key, value in row.items()}))
        return
    done: list[dict[str, Any]] = []
    for name in options.only or names:
        command = [sys.executable, __file__, "--data", str(options.data), "--here", name]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
        done.append(json.loads(output.splitlines()[-1]))
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


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
