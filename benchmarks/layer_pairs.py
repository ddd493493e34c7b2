"""BLUE at every pair of layers of gpt2-mini: what a choice of critical layers is measured against.

The facts and the settings of the sweep (`sweep_gpt2_mini.py`): 100 facts in one batch, `world:counterfact:0:1:person`, MEMIT. A
pair (a, b) closes a gap of its own at layer a, then one at layer b on the model with the first change in it; (a, a) is layer a
alone. The change at a is the same whatever b is, and is made once. A sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

from bluedit.datasets import read_dataset
from bluedit.editing import Metrics, plan_edit, run_batch
from bluedit.evaluation import score_cases
from bluedit.files import atomic_file
from bluedit.models import load_model

RESULTS = Path(__file__).parent / "results" / "layer_pairs_gpt2_mini.json"
DATASET = "world:counterfact:0:1:person"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after the pair that is under way then")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    began = time.monotonic()
    model = load_model("gpt2-mini", device="cpu")
    depth = model.structure.depth
    cases = read_dataset(DATASET, options.facts)
    plans = [plan_edit(model, [case.fact for case in cases], method="memit", strategy=f"single:{a}") for a in range(depth)]
    # Second moments are those of the model before any edit.
    metrics = Metrics(plans[0])
    metrics.prepare(model, range(depth))
    for a in range(depth):
        todo = [b for b in range(a, depth) if not any(run["pair"] == [a, b] for run in finished())]
        if not todo:
            continue
        first, _ = run_batch(model, plans[a], metrics)
        with first.applied(model):
            for b in todo:
                started = time.monotonic()
                if b == a:
                    scores = score_cases(model, cases)
                else:
                    second, _ = run_batch(model, plans[b], metrics)
                    with second.applied(model):
                        scores = score_cases(model, cases)
                line = "  ".join(f"{name} {scores[name]}" for name in ("ES", "PS", "NS", "S"))
                print(f"{a} {b}  {line}  {time.monotonic() - started:.1f} s", flush=True)
                keep({"pair": [a, b], "scores": scores.as_dict()}, options.facts, plans[0].settings.as_dict())
                if time.monotonic() - began > 60 * options.minutes:
                    return


def finished() -> list[dict[str, Any]]:
    """What was measured so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.exists() else []


def keep(run: dict[str, Any], facts: int, settings: dict[str, Any]) -> None:
    document = {
        "command": "python benchmarks/layer_pairs.py",
        "facts": facts,
        "dataset": DATASET,
        "method": "memit",
        "settings": {name: settings[name] for name in ("lambda", "shrinkage", "v_lr", "clamp_norm_factor")},
        "runs": [*finished(), run],
    }
    with atomic_file(RESULTS) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
