"""What commands print with `--json`, one record for each command.

Those of edits are in :mod:`~bluedit.results.edits`, that of `evaluate` in :mod:`~bluedit.results.evaluation`, those of the demo
in :mod:`~bluedit.results.demos`, those of `models` and `methods` in :mod:`~bluedit.results.known`.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from bluedit.results.records import Interval, Record

__all__ = [
    "DoctorResult",
    "GetResult",
    "SessionShowResult",
    "SessionUndoResult",
    "StatsResult",
    "TraceResult",
    "TuneResult",
]


# -- session ---------------------------------------------------------------------------------------------------------


class _Session(Record):
    session: str


class _UndoneSession(_Session):
    undone: int


class _SessionState(Record):
    method: str
    strategy: str
    layers: list[int]
    settings: dict[str, Any]
    seed: int
    corpus: str | None
    samples: int | None
    dtype: str
    chat: bool
    batches: list[int]
    finished: bool


# Keys come in the order of the bases, the last one first.
class SessionShowResult(_SessionState, _Session):
    """`bluedit session show --json`: the folder, how it edits, and how many facts each batch has."""


class SessionUndoResult(_SessionState, _UndoneSession):
    """`bluedit session undo --json`: the folder, how many batches were taken back, and what is left."""


# -- stats -----------------------------------------------------------------------------------------------------------


class CurvePoint(Record):
    """How well a second moment has converged: estimated relative errors of it, and of the change that one fact makes."""

    documents: int
    tokens: int
    moment: float
    change: float | None


class LayerMoment(Record):
    """The second moment of a layer: the file it is stored in, and its convergence."""

    file: str | None
    curve: list[CurvePoint]


class StatsResult(Record):
    """`bluedit stats --json`.

    - `imported`: the file that moments were taken from, in place of the next six.
    - `computed`: the layers that were not there yet; `resumed_from`: the document that an earlier pass had reached.
    - `tokens_per_second`, `padding_share`: null where nothing was computed.
    - `exported`: the file they were also written to.
    """

    model: str
    corpus: str
    samples: int | None
    max_length: int | None
    imported: str | None = None
    until: float | None = None
    computed: list[int] | None = None
    resumed_from: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    padding_share: float | None = None
    exported: str | None = None
    documents: int | None
    tokens: int
    layers: dict[str, LayerMoment]


# -- trace -----------------------------------------------------------------------------------------------------------


class LayerChoice(Record):
    """Critical layers that a trace shows.

    - `peak`: the layer to edit where only one is; `boundary`: BLUE's pair.
    - `facts`: how many were averaged; `agreement`: the fraction of resamples that choose the same range.
    """

    layers: list[int]
    peak: int
    facts: int
    agreement: float
    boundary: list[int]


class TraceResult(Record):
    """`bluedit trace --json`. Effects are in percentage points.

    - `deviation`: the standard deviation of the subjects' embeddings, which the noise counts.
    - `known`, `unknown`: how many facts were traced, and left out; `refused`: ids of others, and why.
    - `at_last_subject_token`: by component, for every layer; `average`: by component and group of tokens.
    """

    model: str
    facts: str
    out: str | None
    model_fingerprint: str
    depth: int
    settings: dict[str, Any]
    deviation: float
    known: int
    unknown: int
    refused: dict[str, str]
    total_effect: Interval | None
    at_last_subject_token: dict[str, list[Interval]]
    average: dict[str, dict[str, list[float] | None]]
    choice: LayerChoice | None
    figures: list[str]
    seconds: float


# -- tune ------------------------------------------------------------------------------------------------------------


class TuneTrial(Record):
    """One trial of a search.

    - `objective`: what the search maximises; null when the trial failed, and `problem` says why.
    - `relative_norm`: the largest ||D|| / ||W||.
    """

    settings: dict[str, float]
    scores: dict[str, dict[str, float]]
    objective: float | None
    relative_norm: float | None
    seconds: float
    problem: str | None


class TuneCheck(Record):
    """Start and outcome on held-out facts; `difference`: the gain in S."""

    start: TuneTrial
    chosen: TuneTrial
    difference: dict[str, float] | None


class TuneResult(Record):
    """`bluedit tune --json`: what was asked for, and the tuning file.

    - `configuration`: a hash of the model's configuration; `claim`: of all that trials depend on.
    - `settings`: those to edit with; `varied`: the names that were searched over.
    - `moves`: the trials that were moved to, from 0; `chosen`: the one that was chosen.
    - `facts`: how many were edited in the search and in the check, and by reason how many were left out.
    """

    model: str
    facts_file: str
    out: str | None
    format: int
    bluedit: str
    configuration: str
    claim: str
    method: str
    strategy: str
    layers: list[int]
    batch_size: int
    settings: dict[str, Any]
    varied: list[str]
    trials: list[TuneTrial]
    moves: list[int]
    chosen: int | None
    check: TuneCheck | None
    facts: dict[str, Any]
    complete: bool


# -- doctor, get -----------------------------------------------------------------------------------------------------


class DoctorCheck(Record):
    """One thing looked at: its status is ok, warning or problem. `details`: the same facts for machines."""

    name: str
    status: str
    message: str
    details: dict[str, Any]


class DoctorResult(Record):
    """`bluedit doctor --json`."""

    model: str
    editable: bool
    checks: list[DoctorCheck]


class GetResult(Record):
    """`bluedit get --json`: the folder, and where the model in it is from.

    - `source`: `hub`, with a `revision`; or `registry`, with `sha256`, `member` and `quantisation` of its file.
    - `tried`: why earlier sources did not give it.
    """

    model: str
    folder: str
    format: str | None = None
    format_version: int | None = None
    name: str | None = None
    source: str | None = None
    from_: str | None = Field(default=None, alias="from")
    revision: str | None = None
    sha256: str | None = None
    member: str | None = None
    licence: str | None = None
    quantisation: dict[str, int] | None = None
    tried: list[str] | None = None
    fingerprint: str | None = None
    versions: dict[str, str] | None = None
