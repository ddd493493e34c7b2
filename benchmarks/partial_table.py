"""The table of an experiment that is not finished: what its folder holds of finished runs so far, as Markdown and JSON.

    python benchmarks/partial_table.py runs/smollm2/counterfact-batch --out docs/results/smollm2/counterfact-batch

The numbers are those that the finished table will have; `bluedit run` with the same recipe and folder goes on with the rest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bluedit.evaluation import Scores, compare
from bluedit.experiments import Recipe
from bluedit.reports.tables import markdown
from bluedit.storage.documents import read_document

EXACT = ("EA", "PA", "NA")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="written as OUT.md and OUT.json")
    options = parser.parse_args()
    claim = read_document(options.folder / "recipe.json", kind="recipe")
    recipe = Recipe.model_validate(claim["recipe"])
    before = read_document(options.folder / "before.json", kind="before")
    results: list[dict[str, Any]] = []
    missing: list[str] = []
    for name, run in zip(recipe.names, recipe.runs, strict=True):
        path = options.folder / name / "result.json"
        if path.is_file():
            results.append(read_document(path, kind=name))
        else:
            missing.append(run.label)
    pairs: list[dict[str, Any]] = []
    for blue in (one for one in results if one["strategy"] == "boundary"):
        for own in (one for one in results if one["strategy"] != "boundary" and one["method"] == blue["method"]):
            differences = {name: compare(outcomes(blue), outcomes(own), name) for name in ("ES", "PS", "NS", "S", *EXACT)}
            pairs.append(
                {
                    "method": blue["method"],
                    "note": blue["note"],
                    "strategy": own["strategy"],
                    "difference": {name: value.as_dict() for name, value in differences.items() if value},
                }
            )
    document = {
        "recipe": claim["recipe"] | {"title": recipe.title},
        "model_fingerprint": claim["model_fingerprint"],
        "before": before,
        "runs": [{key: value for key, value in one.items() if key != "outcomes"} for one in results],
        "blue_against_own": pairs,
        "missing": missing,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = markdown(document) + exact(document)
    if missing:
        text += f"\nNot run yet: {', '.join(missing)}.\n"
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")


def exact(document: dict[str, Any]) -> str:
    """What the model says, token by token: whole objects as its greedy answers."""
    lines = ["", "Greedy answers: the whole object is what the model says.", "", "| | EA | PA | NA |", "|---|---|---|---|"]
    rows = [("unedited", document["before"]["scores"]), *((run["label"], run["scores"]) for run in document["runs"])]
    for label, scores in rows:
        cells = ["{value:.1f} [{low:.1f}, {high:.1f}]".format(**scores[name]) if name in scores else "-" for name in EXACT]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def outcomes(result: dict[str, Any]) -> Scores:
    rows = result["outcomes"]
    cases = tuple((row["id"], {name: tuple(values) for name, values in row.items() if name != "id"}) for row in rows)
    return Scores({}, cases)


if __name__ == "__main__":
    main()
