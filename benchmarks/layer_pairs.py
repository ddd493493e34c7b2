"""BLUE at every pair of layers of a small model: what a choice of critical layers is measured against.

On gpt2-mini the facts and the settings of the sweep (`sweep_gpt2_mini.py`): 100 facts in one batch,
`world:counterfact:0:1:person`, MEMIT. A pair (a, b) closes a gap of its own at layer a, then one at layer b on the model with
the first change in it; (a, a) is layer a alone. The change at a is the same whatever b is, and is made once. A sweep that was
stopped goes on where it was. Another model takes its facts, corpus and settings from the options.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

from bluedit.datasets import read_dataset
from bluedit.editing import plan_edit
from bluedit.editors.closed_form.loop import edit_batch
from bluedit.editors.closed_form.state import InverseMetrics
from bluedit.evaluation import score_cases
from bluedit.models import load_model
from bluedit.storage.files import atomic_file

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gpt2-mini")
    parser.add_argument("--dataset", default="world:counterfact:0:1:person")
    parser.add_argument("--corpus")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after the pair that is under way then")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    began = time.monotonic()
    model = load_model(options.model, device="cpu")
    name = Path(options.model).name
    results = RESULTS / f"layer_pairs_{name.replace('-', '_')}.json"
    settings = dict(text.split("=") for text in options.set)
    depth = model.structure.depth
    cases = read_dataset(options.dataset, options.facts)
    facts = [case.fact for case in cases]
    given = {"method": "memit", "settings": settings, "corpus": options.corpus}
    plans = [plan_edit(model, facts, strategy=f"single:{layer}", **given) for layer in range(depth)]
    document = {
        "command": "python benchmarks/layer_pairs.py",
        "model": name,
        "facts": len(cases),
        "dataset": Path(options.dataset).name,
        "method": "memit",
        "settings": {key: plans[0].settings.as_dict()[key] for key in ("lambda", "shrinkage", "v_lr", "clamp_norm_factor")},
    }
    # Second moments are those of the model before any edit.
    metrics = InverseMetrics(plans[0])
    metrics.prepare(model, range(depth))
    for a in range(depth):
        todo = [b for b in range(a, depth) if not any(run["pair"] == [a, b] for run in finished(results))]
        if not todo:
            continue
        first = edit_batch(model, plans[a], metrics).edit
        with first.applied(model):
            for b in todo:
                started = time.monotonic()
                if b == a:
                    scores = score_cases(model, cases)
                else:
                    second = edit_batch(model, plans[b], metrics).edit
                    with second.applied(model):
                        scores = score_cases(model, cases)
                line = "  ".join(f"{name} {scores[name]}" for name in ("ES", "PS", "NS", "S"))
                print(f"{a} {b}  {line}  {time.monotonic() - started:.1f} s", flush=True)
                document["runs"] = [*finished(results), {"pair": [a, b], "scores": scores.as_dict()}]
                with atomic_file(results) as temporary:
                    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                if time.monotonic() - began > 60 * options.minutes:
                    return


def finished(results: Path) -> list[dict[str, Any]]:
    """What was measured so far."""
    return json.loads(results.read_text(encoding="utf-8"))["runs"] if results.exists() else []


if __name__ == "__main__":
    main()
