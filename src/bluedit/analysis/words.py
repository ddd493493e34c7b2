"""The result of every analysis for people: a table, and a sentence or two."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

from bluedit.analysis.table_text import said
from bluedit.results import Interval, Record
from bluedit.results.analysis import (
    AnalysisResult,
    Bound,
    BoundsResult,
    ContributionResult,
    CosineResult,
    GapResult,
    HiddenStatesResult,
    PairsResult,
    SingleLayerResult,
    StepsResult,
    TablesResult,
)

__all__ = ["Words", "in_words"]

_SCORES = ("ES", "PS", "NS", "S")


@dataclass(frozen=True)
class Words:
    """A table's title, columns and rows, and remarks below it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    remarks: tuple[str, ...] = ()


@singledispatch
def in_words(result: Record) -> Words:
    """What a result says."""
    raise TypeError(f"no words are known for {type(result).__name__}")


@in_words.register
def _(result: StepsResult) -> Words:
    rows = [(str(one.layer), _two(one.steps), _two(one.updates), f"{one.unfinished.value:.0f} %") for one in result.by_layer]
    title = f"optimisation steps per layer, stop at loss {result.early_stop_loss:g}, at most {result.most}"
    return Words(_title(result, title), ("layer", "steps", "updates", "never below"), rows)


@in_words.register
def _(result: ContributionResult) -> Words:
    rows = [
        (str(one.layer), f"{one.share:.2f}", _one(one.distributed), _one(one.computed), _one(one.difference))
        for one in result.by_layer
    ]
    columns = ("layer", "share", "distributed", "computed", "computed - distributed")
    remark = f"unedited, the target's probability is {_one(result.unedited)} %"
    return Words(_title(result, "contribution of simulated edits, percentage points"), columns, rows, (remark,))


@in_words.register
def _(result: CosineResult) -> Words:
    rows = [(str(one.layer), _three(one.cosine) if one.cosine else "-") for one in result.by_layer]
    return Words(_title(result, "cosine of computed and distributed residuals"), ("layer", "cosine"), rows)


@in_words.register
def _(result: GapResult) -> Words:
    rows = [
        (str(one.layer), _two(one.gap), _two(one.relative), f"{one.spectral:.4g}", _two(one.computed))
        for one in result.by_layer
    ]
    columns = ("layer", "gap", "in mean ||delta_L||", "||R^l* - R^L||_2", "||delta_l*||")
    return Words(_title(result, "gap of computed residuals to the last layer's"), columns, rows)


@in_words.register
def _(result: SingleLayerResult) -> Words:
    names = [name for name in _SCORES if name in result.before]
    rows = [("unedited", "", *(_one(result.before[name]) for name in names))]
    for one in result.by_layer:
        rows.append((str(one.layer), "distributed", *(_of(one.distributed, name) for name in names)))
        rows.append(("", "computed", *(_of(one.computed, name) for name in names)))
        differences = (_signed(one.difference[name]) if name in one.difference else "-" for name in names)
        rows.append(("", "difference", *differences))
    return Words(_title(result, "one layer edited alone, percent"), ("layer", "residual", *names), rows)


@in_words.register
def _(result: BoundsResult) -> Words:
    rows = [
        *(_bound("distance", str(one.distance), one) for one in result.by_layer),
        *(_bound("batch size", str(one.facts), one) for one in result.by_batch),
        *(_bound("batches", str(one.batches), one) for one in result.by_sequence),
    ]
    verdict = (
        f"the bound holds in all {result.checked} cases"
        if not result.violated
        else f"THE BOUND IS VIOLATED in {result.violated} of {result.checked} cases: report this, it is an error"
    )
    columns = ("sweep", "at", "layer", "||D* - D||", "bound", "error / bound", "||Q||")
    return Words(_title(result, "weight-shift error and its bound"), columns, rows, (verdict,))


@in_words.register
def _(result: HiddenStatesResult) -> Words:
    rows = [(one.strategy, _three(one.shift), _one(one.moved)) for one in result.by_strategy]
    title = f"hidden states of {result.prompts} other prompts after layer {result.layer}, batches of {result.batch_size}"
    return Words(_title(result, title), ("strategy", "mean shift / spread", "moved, %"), rows)


@in_words.register
def _(result: PairsResult) -> Words:
    names = [name for name in _SCORES if name in result.before]
    with_text = bool(result.pairs) and result.pairs[0].text is not None
    rows = [("unedited", *(_one(result.before[name]) for name in names), *(["-"] if with_text else []))]
    for pair in result.pairs:
        label = str(pair.first) if pair.first == pair.last else f"{pair.first} and {pair.last}"
        text = [] if pair.text is None else [f"{pair.text.kl.value:.4f} [{pair.text.kl.low:.4f}, {pair.text.kl.high:.4f}]"]
        rows.append((label, *(_of(pair.scores, name) for name in names), *text))
    best = " and ".join(map(str, dict.fromkeys(result.best)))
    remark = f"best S: {best}; not clearly lower: {len(result.equal)} of {len(result.pairs)} pairs"
    return Words(
        _title(result, "BLUE at pairs of layers, percent"), ("layers", *names, *(["KL"] if with_text else [])), rows, (remark,)
    )


@in_words.register
def _(result: TablesResult) -> Words:
    rows: list[tuple[str, ...]] = []
    for table in (one for one in result.tables if one.number != 3):
        for row in table.rows:
            gains = (_signed(row.gain[name]) if name in row.gain else "-" for name in _SCORES)
            method = f"{row.method} ({row.note})" if row.note else row.method
            rows.append((f"{table.number}", row.model, row.dataset, method, *gains))
    remarks = tuple(f"table {table.number}: {said(table)}" for table in result.tables if table.number != 3)
    if result.unpaired:
        remarks += (f"without a counterpart, left out: {', '.join(result.unpaired)}",)
    return Words("gains of BLUE, points", ("table", "model", "data", "method", *_SCORES), rows, remarks)


def _title(result: AnalysisResult, what: str) -> str:
    return f"{result.protocol.dataset}, {len(result.protocol.cases)} facts, {result.method}: {what} [95 % interval]"


def _bound(sweep: str, place: str, one: Bound) -> tuple[str, ...]:
    ratio = f"{one.tightness:.3f}" if one.holds else f"{one.tightness:.3f} VIOLATED"
    return (sweep, place, str(one.layer), f"{one.error:.4g}", f"{one.bound:.4g}", ratio, f"{one.gain:.4g}")


def _of(scores: dict[str, Interval], name: str) -> str:
    return _one(scores[name]) if name in scores else "-"


def _one(one: Interval) -> str:
    return f"{one.value:.1f} [{one.low:.1f}, {one.high:.1f}]"


def _signed(one: Interval) -> str:
    return f"{one.value:+.1f} [{one.low:+.1f}, {one.high:+.1f}]"


def _two(one: Interval) -> str:
    return f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _three(one: Interval) -> str:
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"
