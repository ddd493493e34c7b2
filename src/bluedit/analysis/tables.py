"""The paper's tables 2 to 5 from finished experiments: every method with its own strategy beside the same with BLUE.

A cell is one score of one method on one model and data set. BLUE's gain in it is paired over cases, with a bootstrap interval.
The paper counts in how many cells BLUE has the larger value (86 of 96 in its sequences of batches).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bluedit.analysis.means import interval
from bluedit.errors import DamagedFileError, InputError
from bluedit.evaluation import Scores, compare
from bluedit.results import Interval, RunResult, RunSummary, Table
from bluedit.results.analysis import GainRow, PaperTable, TablesResult, Tally
from bluedit.storage.documents import read_document
from bluedit.strategies import BOUNDARY

__all__ = ["CELLS", "paper_tables", "tally_of"]

CELLS = ("ES", "PS", "NS")
"""The scores that are counted as cells. S is made of them, and the accuracy variants say the same once more."""
_GAINS = (*CELLS, "S")
_TITLES = {
    2: "Sequential batch editing: scores in percent",
    3: "Sequential batch editing: gains of BLUE in points",
    4: "All facts in one batch: scores in percent",
    5: "PMET: scores in percent",
}
_PMET = "pmet"


def paper_tables(folders: Sequence[Path]) -> TablesResult:
    """Tables 2 to 5 of the runs in these experiments; a table without runs is left out.

    A run belongs to table 5 where its method is PMET, else to 2 and 3 where it was edited in several batches, else to 4. Runs
    with BLUE are paired with those of the same experiment, method and note with another strategy.

    **Raises** :class:`~bluedit.errors.InputError` for a folder that holds no finished experiment, and where no run of any has a
    counterpart.
    """
    rows: list[GainRow] = []
    unpaired: list[str] = []
    for folder in folders:
        found, alone = _rows(folder)
        rows += found
        unpaired += [f"{folder.name}/{name}" for name in alone]
    if not rows:
        raise InputError("none of these experiments has a method both with BLUE and with its own strategy: nothing to compare")
    by_number = {
        2: [row for row in rows if row.method != _PMET and row.batch_size < row.edits],
        4: [row for row in rows if row.method != _PMET and row.batch_size >= row.edits],
        5: [row for row in rows if row.method == _PMET],
    }
    by_number[3] = by_number[2]
    tables = [_table(number, by_number[number]) for number in sorted(by_number) if by_number[number]]
    return TablesResult(folders=[str(folder) for folder in folders], tables=tables, unpaired=unpaired)


def tally_of(gains: Iterable[Interval]) -> Tally:
    """In how many cells BLUE is better, and in how many clearly so: the interval of the gain leaves out 0."""
    found = list(gains)
    return Tally(
        better=sum(one.value > 0 for one in found),
        cells=len(found),
        equal=sum(one.value == 0 for one in found),
        clearly=sum(one.low > 0 for one in found),
        clearly_worse=sum(one.high < 0 for one in found),
    )


def _table(number: int, rows: list[GainRow]) -> PaperTable:
    by_score = {name: [row.gain[name] for row in rows if name in row.gain] for name in _GAINS}
    return PaperTable(
        number=number,
        title=_TITLES[number],
        rows=rows,
        tally=tally_of(gain for name in CELLS for gain in by_score[name]),
        by_score={name: tally_of(gains) for name, gains in by_score.items() if gains},
        mean_gain={name: _mean_gain(gains) for name, gains in by_score.items() if gains},
    )


def _mean_gain(gains: Sequence[Interval]) -> Interval:
    """The mean over rows. Rows share cases, and err together: the interval is as if they did so fully, the widest it can be."""
    value, low, high = (round(float(np.mean([getattr(one, end) for one in gains])), 2) for end in ("value", "low", "high"))
    return Interval(value=value, low=low, high=high, n=len(gains))


def _rows(folder: Path) -> tuple[list[GainRow], list[str]]:
    """The pairs of an experiment, and the names of runs without a counterpart."""
    table = _read(folder / "table.json", "table", Table, folder)
    blues = [run for run in table.runs if run.strategy == BOUNDARY.name]
    rows: list[GainRow] = []
    paired: set[str] = set()
    for own in (run for run in table.runs if run.strategy != BOUNDARY.name):
        for blue in (run for run in blues if (run.method, run.note) == (own.method, own.note)):
            rows.append(_row(table, folder, own, blue))
            paired |= {own.name, blue.name}
    return rows, [run.name for run in table.runs if run.name not in paired]


def _row(table: Table, folder: Path, own: RunSummary, blue: RunSummary) -> GainRow:
    before, after = (_outcomes(_read(folder / run.name / "result.json", run.name, RunResult, folder)) for run in (own, blue))
    gains = {name: interval(found) for name in _GAINS if (found := compare(after, before, name)) is not None}
    tag = own.protocol
    if tag.edit is None:
        raise InputError(f"the run {own.name} in {folder} does not say how its model was edited; run the experiment again")
    return GainRow(
        model=tag.model or table.recipe["model"],
        dataset=tag.dataset,
        method=own.method,
        note=own.note,
        edits=tag.edit.edits,
        batch_size=tag.edit.batch_size,
        strategy=own.strategy,
        own={name: value for name, value in own.scores.items() if name in _GAINS},
        blue={name: value for name, value in blue.scores.items() if name in _GAINS},
        gain=gains,
    )


def _outcomes(result: RunResult) -> Scores:
    return Scores({}, tuple((row.id, row.by_score) for row in result.outcomes))


def _read(path: Path, kind: str, record: Any, folder: Path) -> Any:
    if not path.is_file():
        raise InputError(
            f"{folder} holds no finished experiment: {path.relative_to(folder)} is missing; run `bluedit run` with --out "
            f"{folder} to its end"
        )
    try:
        return record.read(read_document(path, kind=kind), path)
    except DamagedFileError as error:
        raise InputError(f"{error}; remove it, and run the experiment again") from error
