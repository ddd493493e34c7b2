"""How many facts of some files a model knows: the whole true object is its greedy answer.

    python benchmarks/known_facts.py --model smollm2-135m-instruct known_1000.json counterfact_200.json

These are the facts that `bluedit trace` traces, and leaves out. A CounterFact record's object is its true one; a zsRE record's
is its answer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bluedit.datasets import read_known
from bluedit.evaluation.intervals import share
from bluedit.models import load_model
from bluedit.models.likelihood import answer_queries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    model = load_model(options.model)
    found = {}
    for file in options.files:
        cases = read_known(file)
        queries = [(case.fact.text, case.true_target or case.fact.target) for case in cases]
        answers = answer_queries(model, queries)
        known = [float(all(answers[query].correct)) for query in queries]
        found[Path(file).name] = {
            "records": len(cases),
            "known": int(sum(known)),
            "percent": share([[one] for one in known]).as_dict(),
        }
    print(json.dumps({"model": options.model, "files": found}, indent=1))


if __name__ == "__main__":
    main()
