"""The numbers that a recipe's table shows, against a small example worked out by hand.

Three cases in two batches (two facts, then one). What is scored is made up; what becomes of it is not:

| case | BLUE: ES, PS, NS | own: ES, PS, NS |
|---|---|---|
| a | 1, 1, 1 | 1, 0, 1 |
| b | 1, 1/2, 0 | 0, 0, 1 |
| c | 0, 1, 1 | 0, 0, 1 |
| mean | 66.7, 83.3, 66.7 | 33.3, 0, 100 |

So BLUE is 33.3 points above in ES and 83.3 in PS, and 33.3 below in NS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_run import experiment, recipe_file  # noqa: F401 (fixtures)

from bluedit.edits import Patch
from bluedit.evaluation.scoring import compare, tally
from bluedit.experiments import measuring
from bluedit.reports.tables import comparisons, markdown, rows
from bluedit.storage.documents import read_document

BLUE = {"a": (1.0, (1.0, 1.0), (1.0,)), "b": (1.0, (1.0, 0.0), (0.0,)), "c": (0.0, (1.0, 1.0), (1.0,))}
OWN = {"a": (1.0, (0.0, 0.0), (1.0,)), "b": (0.0, (0.0, 0.0), (1.0,)), "c": (0.0, (0.0, 0.0), (1.0,))}


def scores(cases: dict[str, Any], ids: Any = None) -> Any:
    names = list(ids or cases)
    return tally([(name, {"ES": (es,), "PS": ps, "NS": ns}) for name, (es, ps, ns) in zip(names, cases.values(), strict=False)])


def test_differences_are_blue_minus_own_in_points() -> None:
    one, other = scores(BLUE), scores(OWN)
    assert [one[name].value for name in ("ES", "PS", "NS")] == pytest.approx([200 / 3, 250 / 3, 200 / 3])
    assert [other[name].value for name in ("ES", "PS", "NS")] == pytest.approx([100 / 3, 0, 100])
    differences = {name: compare(one, other, name) for name in ("ES", "PS", "NS", "S")}
    assert {name: value.value for name, value in differences.items() if value} == pytest.approx(
        # S of own is 0: one of its parts is; S of BLUE is 3 / (3/2 + 6/5 + 3/2).
        {"ES": 100 / 3, "PS": 250 / 3, "NS": -100 / 3, "S": 300 / 4.2}
    )
    assert {name: value.n for name, value in differences.items() if value} == dict.fromkeys(("ES", "PS", "NS", "S"), 3)
    reverse = compare(other, one, "PS")
    assert reverse is not None
    assert (reverse.value, reverse.high < 0) == (pytest.approx(-250 / 3), True)


def document(**differences: tuple[float, float, float]) -> dict[str, Any]:
    """What `table.json` holds of one run, with two changed weights."""
    run = {
        "label": "memit + BLUE",
        "scores": scores(BLUE).as_dict(),
        "drift": {"one": {"relative_norm": 0.25}, "two": {"relative_norm": 1.75}, "three": {"relative_norm": 1.0}},
        "seconds": {"editing": 12.4},
    }
    pair = {
        "method": "memit",
        "note": "",
        "strategy": "even",
        "difference": {name: dict(zip(("value", "low", "high"), bounds, strict=True)) for name, bounds in differences.items()},
    }
    return {"before": {"scores": scores(OWN).as_dict()}, "runs": [run], "blue_against_own": [pair]}


def test_row_shows_the_run_with_its_largest_drift() -> None:
    unedited, run = rows(document())
    # Means 1, 0, 0: p = 1/3, variance of the mean 1/9, so Wilson's interval at p (1 - p) / (1/9) = 2 cases. PS: at 0 of 3.
    assert unedited[:3] == ("unedited", "33.3 [4.5, 84.1]", "0.0 [0.0, 56.1]")
    assert unedited[-2:] == ("-", "-")
    assert run[0] == "memit + BLUE"
    assert [cell.split()[0] for cell in run[1:5]] == ["66.7", "83.3", "66.7", "71.4"]
    assert run[-2:] == ("1.75", "12")


def test_comparison_says_better_where_the_interval_lies_above_zero() -> None:
    (line,) = comparisons(document(ES=(33.3, 10.0, 50.0), PS=(-5.0, -9.0, -1.0), NS=(2.0, -1.0, 5.0), S=(0.5, 0.0, 1.0)))
    assert line == (
        "memit, BLUE against even: ES +33.3 [+10.0, +50.0] better; PS -5.0 [-9.0, -1.0] worse; "
        "NS +2.0 [-1.0, +5.0] no clear difference; S +0.5 [+0.0, +1.0] no clear difference"
    )


@pytest.mark.usefixtures("recipe_file")
def test_run_keeps_what_was_scored_and_tells_first_from_latest(
    experiment: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Five facts by two: the first batch all succeed, the middle one half, the latest fails."""
    made_up = [1.0, 1.0, 1.0, 0.0, 0.0]
    calls: list[Any] = []

    def score(_: Any, cases: Any, **__: Any) -> Any:
        calls.append(cases)
        return tally([(case.fact.id, {"ES": (value,)}) for case, value in zip(cases, made_up, strict=True)])

    monkeypatch.setattr(measuring, "score_cases", score)
    table = experiment(tmp_path / "out").run()
    assert len(calls) == 1 + len(table["runs"]), "the unedited model, and each run"
    for run in table["runs"]:
        kept = {end: found["ES"]["value"] for end, found in run["retention"].items()}
        assert kept == {"first": 100, "middle": 50, "latest": 0}
        assert run["scores"]["ES"]["value"] == 60
        patch = Patch.load(tmp_path / "out" / run["name"] / "patch.safetensors")
        for weight, record in patch.manifest.weights.items():
            drift = run["drift"][weight]
            dense = patch.changes[weight].dense().double()
            assert drift["norm"] == pytest.approx(dense.norm().item(), rel=1e-5)
            assert drift["relative_norm"] == pytest.approx(record.relative_norm)
            assert drift["largest_singular_value"] == pytest.approx(dense.svd().S[0].item(), rel=1e-5)
    for pair in table["blue_against_own"]:
        assert {name: value["value"] for name, value in pair["difference"].items()} == {"ES": 0}
    stored = read_document(tmp_path / "out" / table["runs"][0]["name"] / "result.json", kind=table["runs"][0]["name"])
    assert [row["ES"] for row in stored["outcomes"]] == [[value] for value in made_up]
    assert f"| {table['runs'][0]['label']} | 60.0 [" in markdown(table)
