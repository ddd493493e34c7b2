"""The sweep that chose gpt2-mini's critical layers, lambda and clamp: `make sweep`.

100 facts in one batch, drawn with a seed of their own (1), so that what is reported on the demo's facts (seed 0) was not
chosen on them. Every setting is edited with even distribution and with BLUE over the same critical range. Results are
written after every run, and a sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

from zoo.card import write_card

from bluedit.datasets import Case, read_dataset
from bluedit.editing import edit
from bluedit.evaluation import score_cases
from bluedit.models import EditableModel, load_model
from bluedit.models.embedded import EMBEDDED
from bluedit.storage.files import atomic_file

RESULTS = Path(__file__).parent / "results" / "sweep_gpt2_mini.json"
DATASET = "world:counterfact:0:1:person"
BASE = {"lambda": 300.0, "shrinkage": 0.1, "v_lr": 0.5, "clamp_norm_factor": 1.5}
RANGES = ((0, 5), (0, 4), (0, 3), (0, 2), (1, 4))
ONE_AT_A_TIME = (
    *({"lambda": value} for value in (30.0, 1000.0)),
    *({"clamp_norm_factor": value} for value in (0.75, 2.5)),
    *({"shrinkage": value} for value in (0.01,)),
)
CHOSEN = {"range": [0, 5], "settings": BASE | {"shrinkage": 0.01}}
"""What the results were read to say; the card shows all of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument(
        "--backwards", action="store_true", help="start at the other end: for a second process beside the first"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model("gpt2-mini", device="cpu")
    cases = read_dataset(DATASET, options.facts)
    document: dict[str, Any] = {
        "command": "make sweep",
        "facts": options.facts,
        "dataset": DATASET,
        "chosen": CHOSEN,
        "runs": [],
    }
    chosen = tuple(CHOSEN["range"])
    settings_by_range = [(span, BASE) for span in RANGES] + [(chosen, BASE | change) for change in ONE_AT_A_TIME]
    for span, settings in reversed(settings_by_range) if options.backwards else settings_by_range:
        for strategy in ("even", "boundary"):
            key = {"range": list(span), "strategy": strategy, "settings": settings}
            if not any(done.items() >= key.items() for done in finished()):
                result = key | run(model, cases, span, strategy, settings)
                document["runs"] = [*finished(), result]
                with atomic_file(RESULTS) as temporary:
                    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    document["runs"] = finished()
    write_card(EMBEDDED["gpt2-mini"], document)


def finished() -> list[dict[str, Any]]:
    """What was measured so far, by this process or another."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.exists() else []


def run(
    model: EditableModel, cases: list[Case], span: tuple[int, ...], strategy: str, settings: dict[str, float]
) -> dict[str, Any]:
    """One edit and its scores."""
    started = time.monotonic()
    layers = range(span[0], span[1] + 1)
    patch = edit(model, [case.fact for case in cases], method="memit", strategy=strategy, layers=layers, settings=settings)
    with patch.applied(model):
        scores = score_cases(model, cases)
    relative = {str(record.layer): round(record.relative_norm, 3) for record in patch.manifest.weights.values()}
    line = "  ".join(f"{name} {scores[name]}" for name in ("ES", "PS", "NS", "S"))
    seconds = round(time.monotonic() - started, 1)
    print(f"{span} {strategy:9} {settings} {line} {relative} {seconds} s", flush=True)
    return {"scores": scores.as_dict(), "relative_norm": relative, "seconds": seconds}


if __name__ == "__main__":
    main()
