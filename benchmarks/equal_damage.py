"""Even distribution and BLUE at equal damage: lambda is swept (L2 for AlphaEdit), and scores are drawn against KL.

    python benchmarks/equal_damage.py --out docs/results/smollm2/equal_damage.json --figure docs/images/equal_damage.png

One lambda compares apples with pears: what it does depends on how many layers are changed, and by how much each. So every
run has two coordinates, how well edits take (PS, and PA: the whole new object is the greedy answer to a paraphrase) and what
they do to held-out text (KL(unedited || edited) per token). All records are edited in one batch. Values that runs share are
optimised once and kept beside the results; a sweep that was stopped goes on where it was. `--figure` draws what is there.
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
from bluedit.evaluation import score_cases
from bluedit.evaluation.language import HeldOutText, draw_rows
from bluedit.experiments.sharing import SharedValues
from bluedit.models import load_model
from bluedit.statistics import Statistics, read_corpus
from bluedit.storage.files import atomic_file

DATA = Path("../shared/data")
NULL_SPACE = {"nullspace_threshold": 1.0, "nullspace_scale": "relative"}
COLOURS = {"even": "#E69F00", "boundary": "#0072B2"}  # Okabe and Ito's, told apart by every kind of colour vision
MARKERS = {"even": "s", "boundary": "o"}
LABELS = {"even": "own strategy (even)", "boundary": "BLUE"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dataset", default=f"counterfact:{DATA / 'counterfact' / 'counterfact_200.json'}")
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--layers", default="4-8")
    parser.add_argument("--corpus", default=f"text:{DATA / 'text' / 'wikitext2_valid.txt'}")
    parser.add_argument("--samples", type=int, default=2047)
    parser.add_argument("--text-tokens", type=int, default=6000)
    parser.add_argument("--lambdas", default="1000,10000,100,3000,300,30000")
    parser.add_argument("--ridges", default="10,100,1,30,3,300", help="L2 of AlphaEdit")
    parser.add_argument("--methods", default="memit,alphaedit")
    parser.add_argument("--strategies", default="boundary,even")
    parser.add_argument("--set", nargs="*", default=["v_lr=1.0", "shrinkage=0"], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--draw-only", action="store_true")
    options = parser.parse_args()
    if not options.draw_only:
        measure(options)
    if options.figure:
        draw(json.loads(options.out.read_text(encoding="utf-8")), options.figure)


def measure(options: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    model = load_model(options.model)
    cases = read_dataset(options.dataset, options.facts)
    facts = [case.fact for case in cases]
    layers = parse_layers(options.layers)
    source = read_corpus(options.corpus)
    statistics = Statistics(source, options.samples)
    text = HeldOutText(model, draw_rows(model, islice(source.documents(), options.samples, None), options.text_tokens))
    shared = SharedValues(options.out.with_suffix(".values"), model.fingerprint(), layers)
    fixed = dict(one.split("=") for one in options.set)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.out.exists():
        document = json.loads(options.out.read_text(encoding="utf-8"))
    else:
        document = {
            "command": "python benchmarks/equal_damage.py",
            "model": options.model,
            "dataset": Path(options.dataset.rpartition(":")[2]).name,
            "facts": len(facts),
            "layers": list(layers),
            "settings": fixed | {"alphaedit": NULL_SPACE},
            "text": {"tokens": text.tokens, "documents": len(text.rows), "after_document": options.samples},
            "before": score_cases(model, cases).as_dict(),
            "runs": [],
        }
    weights = {"memit": ("lambda", options.lambdas), "alphaedit": ("L2", options.ridges)}
    chosen = [(method, *weights[method]) for method in options.methods.split(",")]
    # The middle of every curve first: a sweep that is stopped has something to say of all.
    for place in range(max(len(values.split(",")) for _, _, values in chosen)):
        for method, name, values in chosen:
            if place >= len(values.split(",")):
                continue
            value = float(values.split(",")[place])
            for strategy in options.strategies.split(","):
                key = [method, strategy, name, value]
                if any(run["key"] == key for run in document["runs"]):
                    continue
                started = time.monotonic()
                settings: dict[str, Any] = {**fixed, name: value, **(NULL_SPACE if method == "alphaedit" else {})}
                plan = plan_edit(
                    model, facts, method=method, strategy=strategy, layers=layers, settings=settings, corpus=statistics
                )
                patch = run_plan(model, plan, store=shared)
                with patch.applied(model, check=False):
                    run = {"key": key, "scores": score_cases(model, cases).as_dict(), "text": text.scores(model).as_dict()}
                manifest = patch.manifest
                run["remaining"] = {one.layer: one.left_open for one in manifest.optimisation}
                run["met"] = {one.layer: one.met for one in manifest.weights.values()}
                run["relative_norm"] = {one.layer: float(f"{one.relative_norm:.4g}") for one in manifest.weights.values()}
                run["seconds"] = round(time.monotonic() - started, 1)
                document["runs"].append(run)
                with atomic_file(options.out) as temporary:
                    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                shown = [score for score in ("ES", "PS", "NS", "EA", "PA") if score in run["scores"]]
                line = "  ".join(f"{score} {run['scores'][score]['value']:.1f}" for score in shown)
                print(f"{method} {strategy} {name}={value:g}  {line}  KL {run['text']['kl']['value']:.4f}", flush=True)


def draw(document: dict[str, Any], path: Path) -> None:
    """PS and PA against KL, a column per method, with 95 % intervals of both."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(run["key"][0] for run in document["runs"]))
    figure = Figure(figsize=(3.6 * len(methods), 5.2), layout="constrained", dpi=120)
    panels = figure.subplots(2, len(methods), squeeze=False, sharex="col", sharey="row")
    for column, method in enumerate(methods):
        for row, score in enumerate(("PS", "PA")):
            axes = panels[row][column]
            for strategy in ("even", "boundary"):
                runs = [run for run in document["runs"] if run["key"][:2] == [method, strategy]]
                runs.sort(key=lambda run: -run["key"][3])
                across, up = ([_error(run["text"]["kl"]) for run in runs], [_error(run["scores"][score]) for run in runs])
                axes.errorbar(
                    [one[0] for one in across],
                    [one[0] for one in up],
                    xerr=list(zip(*(one[1:] for one in across), strict=True)) or None,
                    yerr=list(zip(*(one[1:] for one in up), strict=True)) or None,
                    color=COLOURS[strategy],
                    marker=MARKERS[strategy],
                    linestyle="-" if strategy == "boundary" else "--",
                    linewidth=1.2,
                    elinewidth=0.6,
                    markersize=4,
                    label=LABELS[strategy],
                )
            axes.set_xscale("log")
            axes.grid(alpha=0.3, linewidth=0.5)
            if not row:
                axes.set_title(f"{method}: {'L2' if method == 'alphaedit' else 'lambda'} swept")
            else:
                axes.set_xlabel("KL on held-out text, nats per token")
            if not column:
                axes.set_ylabel({"PS": "PS, %", "PA": "PA, %"}[score])
    panels[0][0].legend(frameon=False, fontsize="small")
    figure.suptitle(f"{document['facts']} CounterFact records in one batch, {document['model']}", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def _error(estimate: dict[str, float]) -> tuple[float, float, float]:
    """A value, and how far its interval reaches below and above."""
    return estimate["value"], estimate["value"] - estimate["low"], estimate["high"] - estimate["value"]


if __name__ == "__main__":
    main()
