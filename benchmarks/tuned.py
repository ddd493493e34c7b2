"""Settings that `bluedit tune` found on facts that a model knows, on CounterFact records that it was not shown.

The records whose subjects are in the file of known facts are left out; the others are edited in one batch with the settings the
search began with, with some chosen by hand, and with those of the tuning file.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

from bluedit import Statistics, edit, load_model, read_corpus, read_dataset, read_tuning
from bluedit.datasets import read_known
from bluedit.evaluation import compare, score_cases
from bluedit.storage.files import atomic_file

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"
RESULTS = HERE / "results" / "tuned_counterfact.json"
SCORES = ("ES", "PS", "NS", "S")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SHARED / "models" / "counterfact-gpt2-mini"))
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of CounterFact, known facts and text")
    parser.add_argument("--tuning", type=Path, default=HERE / "results" / "tuning_counterfact_gpt2_mini.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model(options.model, device="cpu", dtype="float32")
    seen = {case.fact.subject for case in read_known(str(options.data / "tracing" / "known_1000.json"))}
    records = read_dataset(f"counterfact:{options.data / 'counterfact' / 'counterfact_200.json'}")
    cases = [case for case in records if case.fact.subject not in seen]
    corpus = Statistics(read_corpus(f"text:{options.data / 'text' / 'counterfact_mini_corpus.txt'}"), 3000)
    tuning = read_tuning(options.tuning)
    chosen: dict[str, dict[str, Any]] = {
        "start": tuning.trials[0].settings,
        "by hand": {"lambda": 5, "shrinkage": 0.1, "v_lr": 0.2},
        "tuned": tuning.settings,
    }
    found = {}
    for name, settings in chosen.items():
        patch = edit(model, [case.fact for case in cases], layers=tuning.layers, settings=settings, corpus=corpus)
        with patch.applied(model):
            found[name] = score_cases(model, cases)
        print(name, json.dumps({score: found[name][score].as_dict() for score in SCORES}), flush=True)
    gains = {score: compare(found["tuned"], found["by hand"], score) for score in SCORES}
    document = {
        "command": "python benchmarks/tuned.py",
        "records": len(cases),
        "settings": chosen,
        "scores": {name: {score: scores[score].as_dict() for score in SCORES} for name, scores in found.items()},
        "tuned_less_by_hand": {score: gain.as_dict() for score, gain in gains.items() if gain},
    }
    with atomic_file(RESULTS) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
