"""Where to start value optimisation: at 0, or where a ridge regression on facts already optimised says. `--help` for sizes.

First, the mean loss of facts after so many evaluations, from either start, and after how many the warm start is where the cold
one ends; the regression is fitted on other facts. Then the scores of an edit of all facts from 0, of edits with
`warm_start_after`, and of one that simply stops earlier, with the evaluations they took.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from bluedit import MEMIT, edit
from bluedit.datasets import read_dataset
from bluedit.editors.closed_form.keys import fact_states
from bluedit.editors.closed_form.optimizer import optimise_values
from bluedit.editors.closed_form.warm_start import predict_deltas
from bluedit.editors.presets import find_preset
from bluedit.evaluation import Scores, compare, score_cases
from bluedit.facts import Fact
from bluedit.models import EditableModel, load_model
from bluedit.models.inputs.templates import context_templates
from bluedit.storage.files import atomic_file

RESULTS = Path(__file__).parent / "results" / "fewer_steps.json"
COUNTS = (1, 4, 8, 12, 16, 20, 25)


def predicted(model: EditableModel, seen: list[Fact], new: list[Fact], layer: int, templates: Any, settings: Any) -> Tensor:
    """Deltas for new facts, (D, N)."""
    taught = optimise_values(model, seen, layer, templates, settings)
    delta_DN = taught.targets_DN - taught.initial_DN
    return predict_deltas(model, seen, taught.initial_DN, delta_DN, new, fact_states(model, new, layer))


def edited(model: EditableModel, count: int) -> dict[str, Any]:
    """Scores of an edit from 0, of two in which most facts start from predictions, and of one that spends as few evaluations
    without; differences are from the first."""
    cases = read_dataset("world:counterfact:0:3", count)
    first: Scores | None = None
    rows: list[dict[str, Any]] = []
    for settings in ({}, {"warm_start_after": 64}, {"warm_start_after": 128}, {"v_num_grad_steps": 17}):
        patch = edit(model, [case.fact for case in cases], settings=settings)
        with patch.applied(model):
            scores = score_cases(model, cases)
        first = first or scores
        gains = {name: compare(scores, first, name) for name in ("ES", "PS", "NS", "S")}
        spent = sum(sum(record.evaluations) for record in patch.manifest.optimisation)
        rows.append({
            "settings": settings,
            "evaluations_per_fact_and_layer": spent / len(cases) / len(patch.manifest.optimisation),
            "scores": {name: scores[name].as_dict() for name in gains},
            "gain": {name: gain.as_dict() for name, gain in gains.items() if gain},
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return {"facts": len(cases), "edits": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seen", type=int, default=180)
    parser.add_argument("--new", type=int, default=60)
    parser.add_argument("--edited", type=int, default=400)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model("gpt2-mini", device="cpu")
    facts = [case.fact for case in read_dataset("world:counterfact:0:7", options.seen + options.new)]
    seen, new = facts[: options.seen], facts[options.seen :]
    known = find_preset(model.model.config)
    assert known is not None
    settings = MEMIT.override(known.settings_for("memit", "boundary"), {"early_stop_loss": 0.0})
    templates = context_templates(model, 0)
    rows: list[dict[str, Any]] = []
    for layer in (known.layers[0], known.layers[-1]):
        start_DN = predicted(model, seen, new, layer, templates, settings)
        losses: dict[str, dict[int, float]] = {"cold": {}, "warm": {}}
        for count in COUNTS:
            fewer = settings.override({"v_num_grad_steps": count})
            for name, start in (("cold", None), ("warm", start_DN)):
                found = optimise_values(model, new, layer, templates, fewer, start_DN=start)
                losses[name][count] = sum(found.losses) / len(new)
        reached = next((count for count in COUNTS if losses["warm"][count] <= losses["cold"][COUNTS[-1]]), None)
        rows.append({"layer": layer, "seen": len(seen), "new": len(new), "losses": losses, "warm_reaches_cold_after": reached})
        print(json.dumps(rows[-1]), flush=True)
    scored = edited(model, options.edited)
    with atomic_file(RESULTS) as temporary:
        document = {"command": "python benchmarks/fewer_steps.py", "losses": rows, "scores": scored}
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
