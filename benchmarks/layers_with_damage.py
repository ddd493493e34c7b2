"""BLUE at single layers and at pairs of layers of a real model: how well edits take, and what they do to other text.

    python benchmarks/layers_with_damage.py --facts unseen.json --corpus text:FILE --samples 2047 --text text:FILE \
        --text-skip 2047 --count 24 --layers 0-15 --pairs 2-8,3-8 --set lambda=1000 v_lr=1 --out layers.json

Facts, and what stands for their paraphrases and neighborhoods, are drawn as `bluedit tune` does
(:mod:`bluedit.tuning.held_out`); all are edited in one batch. A pair (a, b) closes a gap of its own at layer a, then one at
b on the model with the first change in it; (a, a) is layer a alone. Values of the first layer are optimised once, and kept
beside the results with all others: a sweep that was stopped goes on where it was. Beside the scores: KL, perplexity and top-1
agreement on held-out text, what share of each layer's gap is left, ||D|| / ||W||, and evaluations.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

from bluedit.datasets import read_dataset
from bluedit.editing import plan_edit, run_plan
from bluedit.editors.layers import parse_layers
from bluedit.evaluation.language import HeldOutText, draw_rows
from bluedit.evaluation.scoring import tally
from bluedit.experiments.sharing import SharedValues
from bluedit.models import load_model
from bluedit.models.likelihood import answer_queries
from bluedit.statistics import Statistics, read_corpus
from bluedit.storage.files import atomic_file
from bluedit.tuning.held_out import hold_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--facts", required=True)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--text", required=True)
    parser.add_argument("--text-skip", type=int, default=0)
    parser.add_argument("--text-tokens", type=int, default=4000)
    parser.add_argument("--layers", default="", help="single layers: 0-15")
    parser.add_argument("--pairs", default="", help="pairs: 2-8,3-8; or all, of the single layers")
    parser.add_argument("--method", default="memit")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model(options.model)
    settings = dict(text.split("=") for text in options.set)
    statistics = Statistics(read_corpus(options.corpus), options.samples)
    material = hold_out(model, read_dataset(options.facts), count=options.count, seed=options.seed)
    held = [*material.search, *material.check]
    facts = [one.fact for one in held]
    rows = draw_rows(model, islice(read_corpus(options.text).documents(), options.text_skip, None), options.text_tokens)
    text = HeldOutText(model, rows)
    singles = list(parse_layers(options.layers)) if options.layers else []
    pairs = [(layer, layer) for layer in singles]
    if options.pairs == "all":
        pairs += [(a, b) for a in singles for b in singles if a < b]
    elif options.pairs:
        pairs += [(int(a), int(b)) for a, b in (pair.split("-") for pair in options.pairs.split(","))]
    shared = SharedValues(options.out.with_suffix(".values"), model.fingerprint(), tuple(range(model.structure.depth)))
    queries = [(one.prompt, answer) for part in held for one in part.questions for answer in (one.wanted, one.other)]

    def scored() -> dict[str, Any]:
        answers = answer_queries(model, queries)
        outcomes: list[tuple[str, dict[str, tuple[float, ...]]]] = []
        for part in held:
            found: dict[str, list[float]] = {}
            for one in part.questions:
                wanted, other = answers[one.prompt, one.wanted].log_prob, answers[one.prompt, one.other].log_prob
                found.setdefault(one.score, []).append(float(wanted > other))
            outcomes.append((part.fact.id, {name: tuple(values) for name, values in found.items()}))
        return tally(outcomes).as_dict()

    if options.out.exists():
        document = json.loads(options.out.read_text(encoding="utf-8"))
    else:
        document = {
            "model": options.model,
            "facts": [fact.id for fact in facts],
            "file": Path(options.facts).name,
            "method": options.method,
            "settings": settings,
            "text": {"name": Path(options.text).name, "skip": options.text_skip, "documents": len(rows), "tokens": text.tokens},
            "before": scored(),
            "runs": [],
        }
    for pair in pairs:
        if any(run["pair"] == list(pair) for run in document["runs"]):
            continue
        started = time.monotonic()
        plan = plan_edit(
            model, facts, method=options.method, strategy="boundary", layers=pair, settings=settings, corpus=statistics
        )
        patch = run_plan(model, plan, store=shared)
        edited = time.monotonic() - started
        with patch.applied(model, check=False):
            run = {"pair": list(pair), "scores": scored(), "text": text.scores(model).as_dict()}
        run["remaining"] = {one.layer: one.left_open for one in patch.manifest.optimisation}
        run["loss"] = {one.layer: mean(one.losses) for one in patch.manifest.optimisation}
        run["evaluations"] = {one.layer: mean(one.evaluations) for one in patch.manifest.optimisation}
        run["relative_norm"] = {one.layer: one.relative_norm for one in patch.manifest.weights.values()}
        run["seconds"] = {"editing": round(edited, 1), "all": round(time.monotonic() - started, 1)}
        document["runs"].append(run)
        with atomic_file(options.out) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        scores = "  ".join(f"{name} {run['scores'][name]['value']:.1f}" for name in ("ES", "PS", "NS", "S"))
        print(f"{pair}  {scores}  KL {run['text']['kl']['value']:.4f}  remaining {run['remaining']}", flush=True)


def mean(values: Any) -> float:
    return round(sum(values) / max(1, len(values)), 4)


if __name__ == "__main__":
    main()
