"""The records of one file whose subjects are in no other: facts to choose settings on, none of which is scored later.

    python benchmarks/unseen_facts.py counterfact_flat_1000.json --without counterfact_200.json --out unseen.json

Subjects are compared in lower case, without white space around them. Records are written as they are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bluedit.datasets import read_known


def subjects(file: str) -> set[str]:
    return {case.fact.subject.strip().lower() for case in read_known(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--without", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    seen = set[str]().union(*map(subjects, options.without))
    records = json.loads(Path(options.file).read_text(encoding="utf-8"))
    kept = [record for record in records if record["subject"].strip().lower() not in seen]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(f"{len(kept)} of {len(records)} records kept")


if __name__ == "__main__":
    main()
