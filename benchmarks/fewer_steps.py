"""Where to start value optimisation: at 0, or where a ridge regression on facts already optimised says. `--help` for sizes.

The regression predicts delta / ||h0|| from h0 / ||h0||, the unembedding of the target's first token (normalised) and 1. It is
fitted on some facts, optimised from 0; others, never seen, are started from its prediction. What is compared is the mean loss
after so many evaluations, the number of evaluations after which the warm start is where the cold one ends, and the scores of
an edit of yet other facts with half of the evaluations, started warm.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bluedit import Settings, edit, editing
from bluedit.datasets import read_dataset
from bluedit.evaluation import compare, score_cases
from bluedit.facts import Fact
from bluedit.files import atomic_file
from bluedit.known import lookup
from bluedit.models import EditableModel, load_model
from bluedit.values import context_templates, optimise_values

RESULTS = Path(__file__).parent / "results" / "fewer_steps.json"
COUNTS = (1, 4, 8, 12, 16, 20, 25)


def features(model: EditableModel, facts: list[Fact], initial_DN: Tensor) -> Tensor:
    head: Tensor = model.model.get_output_embeddings().weight.detach()  # type: ignore[union-attr, assignment]
    targets_ND = torch.stack([head[model.text.target(fact.target, fact.text)[0]] for fact in facts])
    parts = (initial_DN.T, targets_ND)
    return torch.cat([*(part / part.norm(dim=1, keepdim=True) for part in parts), torch.ones(len(facts), 1)], 1)


def predicted(
    model: EditableModel, seen: list[Fact], new: list[Fact], layer: int, templates: Any, settings: Settings
) -> Tensor:
    """Deltas for new facts, (D, N)."""
    taught = optimise_values(model, seen, layer, templates, settings)
    asked = optimise_values(model, new, layer, templates, settings.override({"v_num_grad_steps": 1}))
    relative_ND = ((taught.targets_DN - taught.initial_DN) / taught.initial_DN.norm(dim=0)).T
    seen_NX, new_NX = (features(model, facts, values.initial_DN) for facts, values in ((seen, taught), (new, asked)))
    system_XX = seen_NX.T @ seen_NX + torch.eye(seen_NX.shape[1])
    return (new_NX @ torch.linalg.solve(system_XX, seen_NX.T @ relative_ND)).T * asked.initial_DN.norm(dim=0)


def edited(model: EditableModel, seen: list[Fact], count: int) -> dict[str, Any]:
    """Scores of an edit with 25 evaluations from 0 and of one with 12 from predictions; none of its subjects was seen."""
    subjects = {fact.subject for fact in seen}
    cases = [case for case in read_dataset("world:counterfact:0:3", 2 * count) if case.fact.subject not in subjects][:count]
    facts, plain = [case.fact for case in cases], editing.optimise_values

    def warm(model: EditableModel, facts: Any, layer: int, templates: Any, settings: Settings, *rest: Any, **named: Any) -> Any:
        start_DN = predicted(model, seen, list(facts), layer, templates, settings)
        fewer = settings.override({"v_num_grad_steps": 12})
        return plain(model, facts, layer, templates, fewer, *rest, start_DN=start_DN, **named)

    scores = []
    for function in (plain, warm):
        editing.optimise_values = function
        try:
            with edit(model, facts).applied(model):
                scores.append(score_cases(model, cases))
        finally:
            editing.optimise_values = plain
    differences = {name: compare(scores[1], scores[0], name) for name in ("ES", "PS", "NS")}
    return {
        "facts": len(facts),
        "seen": len(seen),
        "cold": scores[0].as_dict(),
        "warm_minus_cold": {name: found.as_dict() for name, found in differences.items() if found},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seen", type=int, default=180)
    parser.add_argument("--new", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model("gpt2-mini", device="cpu")
    facts = [case.fact for case in read_dataset("world:counterfact:0:7", options.seen + options.new)]
    seen, new = facts[: options.seen], facts[options.seen :]
    known = lookup(model.model.config)
    assert known is not None
    settings = Settings().override(known.settings_for("memit", "boundary")).override({"early_stop_loss": 0.0})
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
    scored = edited(model, seen, 2 * len(new))
    print(json.dumps(scored), flush=True)
    with atomic_file(RESULTS) as temporary:
        document = {"command": "python benchmarks/fewer_steps.py", "losses": rows, "scores": scored}
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
