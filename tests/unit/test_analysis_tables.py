"""The paper's tables from experiments made by hand, with gains counted by hand; and the folders of analyses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluedit.analysis.place import ANALYSIS, Place, at
from bluedit.analysis.table_text import latex, markdown, said, write_tables
from bluedit.analysis.tables import paper_tables, tally_of
from bluedit.errors import InputError
from bluedit.evaluation import intervals
from bluedit.evaluation.scoring import tally
from bluedit.results import Before, Interval, RunResult, Table
from bluedit.results.analysis import TablesResult
from bluedit.storage.documents import write_document

OWN = {"a": (1.0, 1.0, 0.0), "b": (0.0, 1.0, 0.0), "c": (1.0, 0.0, 0.0), "d": (0.0, 0.0, 1.0)}  # ES 50, PS 50, NS 25
BLUE = {"a": (1.0, 1.0, 0.0), "b": (1.0, 1.0, 0.0), "c": (1.0, 0.0, 0.0), "d": (0.0, 0.0, 0.0)}  # ES 75, PS 50, NS 0


def tag(edits: int, batch_size: int, strategy: str, method: str) -> dict[str, Any]:
    return {
        "dataset": "counterfact:cf.json",
        "cases": ["a", "b", "c", "d"],
        "scoring": ["probability"],
        "model": "m_1",
        "model_fingerprint": "00",
        "dtype": "float32",
        "seed": 0,
        "versions": {"bluedit": "0"},
        "edit": {
            "method": method, "strategy": strategy, "layers": [0, 1], "settings": {}, "corpus": None, "edits": edits,
            "batch_size": batch_size, "order": "as listed", "evaluated": "after the last batch",
        },
    }  # fmt: skip


def run_of(method: str, strategy: str, found: Mapping[str, tuple[float, ...]], size: int, note: str = "") -> RunResult:
    outcomes = {case: {"ES": [e], "PS": [p], "NS": [n]} for case, (e, p, n) in found.items()}
    scores = tally([(case, {name: tuple(values) for name, values in one.items()}) for case, one in outcomes.items()])
    return RunResult.of(
        {
            "name": f"{method}-{strategy}{f'-{note}' if note else ''}",
            "label": method,
            "note": note,
            "method": method,
            "strategy": strategy,
            "layers": [0, 1],
            "settings": {},
            "scores": scores.as_dict(),
            "retention": {},
            "drift": {},
            "null_space_rank": {},
            "mean_evaluations": {},
            "seconds": {"editing": 1.0, "scoring": 1.0, "batches": [1.0]},
            "protocol": tag(4, size, strategy, method),
            "outcomes": [{"id": case, **one} for case, one in outcomes.items()],
        }
    )


def experiment(folder: Path, runs: list[RunResult]) -> Path:
    """A finished experiment's folder, as `bluedit run` leaves it."""
    for run in runs:
        (folder / run.name).mkdir(parents=True)
        write_document(folder / run.name / "result.json", run.as_dict(), kind=run.name)
    before = Before.of({"scores": {}, "protocol": runs[0].protocol})
    table = Table(
        recipe={"name": "r", "model": "m_1"}, model_fingerprint="00", before=before,
        runs=[run.summary() for run in runs], blue_against_own=[],
    )  # fmt: skip
    write_document(folder / "table.json", table.as_dict(), kind="table")
    return folder


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """How wide an interval is matters to no test here."""
    monkeypatch.setattr(intervals, "_RESAMPLES", 200)


@pytest.fixture
def tables(tmp_path: Path) -> TablesResult:
    sequence = experiment(
        tmp_path / "sequence",
        [
            run_of("memit", "even", OWN, 2), run_of("memit", "boundary", BLUE, 2),
            run_of("pmet", "square-root", OWN, 2), run_of("pmet", "boundary", OWN, 2), run_of("rect", "even", OWN, 2),
        ],
    )  # fmt: skip
    batch = experiment(tmp_path / "batch", [run_of("memit", "even", BLUE, 4), run_of("memit", "boundary", OWN, 4)])
    return paper_tables([sequence, batch])


def test_gains_are_those_counted_by_hand(tables: TablesResult) -> None:
    found = {table.number: table for table in tables.tables}
    assert sorted(found) == [2, 3, 4, 5]
    (row,) = found[2].rows
    assert found[3].rows == found[2].rows
    assert (row.model, row.method, row.edits, row.batch_size) == ("m_1", "memit", 4, 2)
    assert {name: row.own[name].value for name in ("ES", "PS", "NS")} == {"ES": 50, "PS": 50, "NS": 25}
    assert {name: row.gain[name].value for name in ("ES", "PS", "NS")} == {"ES": 25, "PS": 0, "NS": -25}
    assert row.gain["S"].value == pytest.approx(-100 * 3 / (1 / 0.5 + 1 / 0.5 + 1 / 0.25), abs=0.01)  # from 37.5 to 0
    assert row.gain["ES"].low <= 25 <= row.gain["ES"].high
    assert row.gain["ES"].n == 4
    counted = found[2].tally
    assert (counted.better, counted.equal, counted.cells, counted.clearly) == (1, 1, 3, 0)
    assert {name: one.better for name, one in found[2].by_score.items()} == {"ES": 1, "PS": 0, "NS": 0, "S": 0}
    assert found[4].rows[0].gain["ES"].value == -25
    assert (found[4].tally.better, found[5].tally.better, found[5].tally.equal) == (1, 0, 3)
    assert tables.unpaired == ["sequence/rect-even"]


def test_the_mean_gain_is_over_rows(tmp_path: Path) -> None:
    pairs = [("memit", OWN, BLUE), ("rect", BLUE, OWN), ("prune", OWN, BLUE)]
    runs = [run for name, own, blue in pairs for run in (run_of(name, "even", own, 2), run_of(name, "boundary", blue, 2))]
    table = paper_tables([experiment(tmp_path / "e", runs)]).tables[0]
    assert table.mean_gain["ES"].value == pytest.approx(25 / 3, abs=0.01)
    assert table.mean_gain["ES"].n == 3
    assert table.mean_gain["ES"].low == pytest.approx(np.mean([row.gain["ES"].low for row in table.rows]), abs=0.01)
    assert "BLUE better in 3 of 9 cells, 3 equal" in said(table)


def test_cells_are_counted_by_sign_and_by_interval() -> None:
    gains = [(5, 1, 9), (5, -1, 9), (0, -1, 1), (-5, -9, -1), (-5, -9, 1)]
    found = tally_of(Interval(value=value, low=low, high=high, n=1) for value, low, high in gains)
    assert (found.better, found.equal, found.cells, found.clearly, found.clearly_worse) == (2, 1, 5, 1, 1)


def test_tables_are_written_as_markdown_and_latex(tables: TablesResult, tmp_path: Path) -> None:
    text = markdown(tables.tables[0])
    assert "| m_1 | counterfact:cf.json | 4 by 2 | memit | 50.0 [" in text
    assert "| + BLUE | 75.0 [" in text
    assert "(+25.0)" in text
    assert "BLUE better in 1 of 3 cells, 1 equal" in text
    assert "+25.0 [" in markdown(tables.tables[1])
    paper = latex(tables.tables[0])
    assert r"m\_1 & counterfact:cf.json & memit & 50.0 {\scriptsize[" in paper
    assert r"]} ($+25.0$) & 50.0 {\scriptsize[" in paper
    assert paper.count(r"\begin{tabular}") == paper.count(r"\end{tabular}") == 1
    body = [line for line in paper.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in body} == {6}
    names = {path.name for path in write_tables(tables, tmp_path)}
    assert names == {f"table-{number}.{suffix}" for number in (2, 3, 4, 5) for suffix in ("md", "tex")}


def test_what_is_no_finished_experiment_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"table\.json is missing; run `bluedit run`"):
        paper_tables([tmp_path])
    alone = experiment(tmp_path / "alone", [run_of("memit", "even", OWN, 2)])
    with pytest.raises(InputError, match="nothing to compare"):
        paper_tables([alone])
    (alone / "table.json").write_text("{}")
    with pytest.raises(InputError, match="run the experiment again"):
        paper_tables([alone])


# -- folders ---------------------------------------------------------------------------------------------------------


def test_parts_that_are_done_are_not_done_again(tmp_path: Path) -> None:
    done: list[str] = []

    def compute(key: str) -> dict[str, Any]:
        if key == "c" and "c" not in done:
            done.append("c")
            raise KeyboardInterrupt
        done.append(key)
        return {"value": key * 2}

    claim = {"analysis": "x", "of": 1}
    with pytest.raises(KeyboardInterrupt), at(tmp_path / "out", claim) as place:
        place.each(["a", "b", "c"], "parts", compute)
    with at(tmp_path / "out", claim) as place:
        found = place.each(["a", "b", "c"], "parts", compute)
        assert place.finished(TablesResult) is None
    assert done == ["a", "b", "c", "c"]
    assert found == {key: {"value": key * 2} for key in "abc"}
    assert Place().each(["a"], "parts", compute) == {"a": {"value": "aa"}}


def test_a_folder_holds_one_analysis(tmp_path: Path) -> None:
    result = TablesResult(folders=["a"], tables=[], unpaired=[])
    with at(tmp_path / "out", {"analysis": "x"}) as place:
        place.finish(result)
    with at(tmp_path / "out", {"analysis": "x"}) as place:
        assert place.finished(TablesResult) == result
    with pytest.raises(InputError, match="holds another analysis"), at(tmp_path / "out", {"analysis": "y"}):
        pass
    with at(tmp_path / "out", {"analysis": "y"}, replace=True) as place:
        assert place.finished(TablesResult) is None
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="did not write"):
        ANALYSIS.check(tmp_path / "out")
    (tmp_path / "out" / "done.jsonl").write_text("nonsense\n")
    with pytest.raises(InputError, match="remove it, and analyse again"), at(tmp_path / "out", {"analysis": "y"}) as place:
        place.each(["a"], "parts", lambda _: {})
