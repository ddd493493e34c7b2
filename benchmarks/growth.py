"""How cost grows: value optimisation with facts, tokens, layers and width; edits and sessions with batches.

Every table is one run on one machine. Facts are a synthetic world's on gpt2-mini, random GPT-2s otherwise; 10 evaluations each
without early stop, so that work does not depend on how easily a fact is learnt.
"""

from __future__ import annotations

import json
import statistics
import warnings
from pathlib import Path
from typing import Any

import speed
import torch

import bluedit
from bluedit.datasets import read_dataset
from bluedit.editors.closed_form.inverse_metric import InverseMetric
from bluedit.editors.closed_form.objectives import ValueSettings
from bluedit.editors.closed_form.optimizer import optimise_values
from bluedit.facts import Fact
from bluedit.models import EditableModel, load_model
from bluedit.models.inputs.templates import context_templates
from bluedit.sessions import Session
from bluedit.storage.files import atomic_file

RESULTS = Path(__file__).parent / "results" / "growth.json"
SETTINGS = ValueSettings(v_num_grad_steps=10, early_stop_loss=0.0)


def seconds_of(model: EditableModel, facts: list[Fact], layer: int, templates: Any) -> float:
    return statistics.median(
        speed.timed(lambda: optimise_values(model, facts, layer, templates, SETTINGS))[0] for _ in range(3)
    )


def by_facts(model: EditableModel, facts: list[Fact]) -> dict[int, float]:
    """Milliseconds per fact and evaluation, by facts in one call."""
    templates = context_templates(model, 0)
    counts = (1, 2, 4, 8, 16, 32, 64, 128)
    return {count: 1e3 * seconds_of(model, facts[:count], 2, templates) / count / 10 for count in counts}


def by_layer(model: EditableModel, facts: list[Fact]) -> dict[int, float]:
    templates = context_templates(model, 0)
    return {layer: 1e3 * seconds_of(model, facts[:32], layer, templates) / 32 / 10 for layer in range(model.structure.depth)}


def by_context(model: EditableModel, facts: list[Fact]) -> dict[int, float]:
    """By tokens in front of the subject, which are run once: five contexts of so many words."""
    found = {}
    for words in (3, 9, 27, 81):
        templates = ("{}", *(" ".join(["the old mill"] * (words // 3)) + f" {number}. {{}}" for number in range(5)))
        found[words] = 1e3 * seconds_of(model, facts[:32], 2, templates) / 32 / 10
    return found


def by_suffix(model: EditableModel, facts: list[Fact]) -> dict[int, float]:
    """By words after the subject, which are run at every evaluation."""
    found = {}
    templates = context_templates(model, 0)
    for words in (1, 4, 16, 64):
        longer = [Fact("{} " + " ".join(["was"] * words), fact.subject, fact.target, id=fact.id) for fact in facts[:32]]
        found[words] = 1e3 * seconds_of(model, longer, 2, templates) / 32 / 10
    return found


def by_width(tokenizer: Any, facts: list[Fact]) -> dict[int, float]:
    """Eight layers, edited at the third, vocabulary of 4,096; parameters grow with the square of the width."""
    found = {}
    for width in (128, 256, 512, 1024):
        model = speed.random_model(8, width, 8, tokenizer, 4096)
        found[width] = 1e3 * seconds_of(model, facts[:32], 2, context_templates(model, 0)) / 32 / 10
    return found


def by_batch(model: EditableModel, facts: list[Fact]) -> dict[int, dict[str, float]]:
    """A whole edit (BLUE, with keys), and the solver's part of it, by facts in the batch."""
    templates, settings = context_templates(model, 0), {"v_num_grad_steps": 10, "early_stop_loss": 0.0}
    bluedit.edit(model, facts[:1], settings={"v_num_grad_steps": 1}, templates=templates)  # second moments are stored now
    metric = InverseMetric(torch.eye(model.structure.d_ff, dtype=torch.float64))

    def whole(count: int) -> float:
        return speed.timed(lambda: bluedit.edit(model, facts[:count], settings=settings, templates=templates))[0]

    def solver(count: int) -> float:
        keys_FN = torch.randn(model.structure.d_ff, count, dtype=torch.float64)
        return statistics.median(speed.timed(lambda: metric.gain(keys_FN))[0] for _ in range(9))

    return {
        count: {"seconds_per_fact": whole(count) / count, "solver_milliseconds": 1e3 * solver(count)} for count in (10, 50, 200)
    }


def by_sequence(model: EditableModel, facts: list[Fact]) -> dict[int, float]:
    """Seconds of each tenth batch of ten facts, with past keys."""
    session = Session(model, method=bluedit.blue(bluedit.MEMIT_SEQ), settings={"v_num_grad_steps": 5, "early_stop_loss": 0.0})
    found = {}
    for number in range(20):
        taken = speed.timed(lambda number=number: session.apply(facts[10 * number : 10 * number + 10]))[0]
        if number % 5 == 4:
            found[number + 1] = taken
    session.undo(20)
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    model = load_model("gpt2-mini", device="cpu")
    facts = [case.fact for case in read_dataset("world:counterfact:0:3:person", 200)]
    tables: dict[str, Any] = {}
    for name, table in {
        "milliseconds per fact and evaluation by facts": lambda: by_facts(model, facts),
        "... by layer of 8": lambda: by_layer(model, facts),
        "... by words before the subject": lambda: by_context(model, facts),
        "... by words after the subject": lambda: by_suffix(model, facts),
        "... by width": lambda: by_width(model.tokenizer, facts),
        "an edit by facts in its batch": lambda: by_batch(model, facts),
        "seconds of a batch by its number in the sequence": lambda: by_sequence(model, facts),
    }.items():
        tables[name] = table()
        print(name, json.dumps(tables[name], default=lambda value: float(f"{value:.3g}")), flush=True)
    document = {"command": "python benchmarks/growth.py", "threads": torch.get_num_threads(), "tables": tables}
    with atomic_file(RESULTS) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
