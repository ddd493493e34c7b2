"""What commands print with `--json`, one record for each command; those of the demo are in :mod:`~bluedit.results.demos`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from bluedit.results.records import Interval, ProtocolTag, Record, Scores

__all__ = [
    "DoctorResult",
    "EditResult",
    "EvaluateResult",
    "GetResult",
    "MethodsResult",
    "ModelsResult",
    "PatchApplyResult",
    "PatchRevertResult",
    "PatchShowResult",
    "SessionShowResult",
    "SessionUndoResult",
    "StatsResult",
    "TraceResult",
    "TuneResult",
]


# -- evaluate --------------------------------------------------------------------------------------------------------


class CaseOutcomes(Record):
    """A case: by score the outcome of each prompt, in [0, 1]."""

    id: str
    outcomes: dict[str, list[float]]


class EvaluateResult(Record):
    """`bluedit evaluate --json`.

    - `model`, `patch`, `dataset`: as given.
    - `seconds`: of scoring.
    - `cases`: with `--cases`.
    """

    model: str
    patch: str | None
    dataset: str
    scores: Scores
    protocol: ProtocolTag
    seconds: float
    cases: list[CaseOutcomes] | None = None


# -- edit and patch --------------------------------------------------------------------------------------------------


class EditedFact(Record):
    """An edited fact."""

    id: str
    prompt: str
    subject: str
    target: str
    relation: str | None


class ChangedWeight(Record):
    """A changed weight.

    - `before`: the hash of what it was.
    - `norm`, `relative_norm`: ||D|| and ||D|| / ||W||.
    - `condition`: of the prior metric; `null_space_rank`: directions of the null space (AlphaEdit).
    - `rounding`: what a half-precision weight loses of the change, ||rounded(W + D) - W - D|| / ||D||.
    - `met`: what fraction of the residuals asked of the layer the change gives.
    """

    layer: int
    before: str
    norm: float
    relative_norm: float
    condition: float | None
    null_space_rank: int | None
    rounding: float | None
    met: float | None = None


class EditResult(Record):
    """`bluedit edit --json`.

    - `patch`: where it was written.
    - `batches`: how many facts each held.
    - `layers`: the critical layers; `weights`: by name, those that changed.
    - `evaluations`, `losses`: by layer and id of a fact, how often the loss was evaluated, and its last value; `remaining`:
      what fraction of what was asked for the written weights leave open.
    - `seconds`: of editing.
    """

    patch: str
    facts: list[EditedFact]
    batches: list[int]
    method: str
    strategy: str
    layers: list[int]
    settings: dict[str, Any]
    evaluations: dict[str, dict[str, int]]
    losses: dict[str, dict[str, float]]
    remaining: dict[str, dict[str, float]]
    weights: dict[str, ChangedWeight]
    seconds: float


class ShownWeight(ChangedWeight):
    """A changed weight, with how its change is stored: its kind, its rank, and its bytes."""

    kind: str
    rank: int
    bytes: int


class Optimisation(Record):
    """What value optimisation did at one layer, fact by fact.

    - `remaining`: what fraction of what was asked for the written weights leave open; `asked`: how much that was.
    """

    layer: int
    evaluations: list[int]
    losses: list[float | None]
    remaining: list[float] | None = None
    asked: list[float] | None = None


class PatchShowResult(Record):
    """`bluedit patch show --json`: the path, and what the patch says of itself.

    - `kind`: of edits that are no patch of weights.
    - `configuration`: a hash of the model's configuration.
    - `columns`: what a column of low-rank factors belongs to.
    """

    patch: str
    format: str
    format_version: int
    kind: str = "weights"
    model: str
    configuration: str
    method: str
    strategy: str
    layers: list[int]
    settings: dict[str, Any]
    templates: list[str]
    chat: dict[str, str] | None
    seed: int
    corpus: str | None
    facts: list[EditedFact]
    batches: list[int]
    columns: str
    weights: dict[str, ShownWeight]
    optimisation: list[Optimisation]
    seconds: float
    versions: dict[str, str]


class PatchApplyResult(Record):
    """`bluedit patch apply --json`: where the checkpoint was written, and the weights that changed in it."""

    checkpoint: str
    model: str
    patch: str
    weights: list[str]


class PatchRevertResult(Record):
    """`bluedit patch revert --json`: where the checkpoint was written, and how many patches are left in it."""

    checkpoint: str
    model: str
    patches_left: int


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


# -- doctor, models, methods, get ------------------------------------------------------------------------------------


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


class ModelDownload(Record):
    """A model that bluedit gets: whether it is here, and where it is from."""

    here: bool
    folder: str | None
    source: str | None
    from_: str | None = Field(alias="from")
    revision: str | None
    fingerprint: str | None


class PresetModel(Record):
    """A model whose layers and settings are known.

    - `recognised_by`: what its configuration says.
    - `layers`: the critical layers; `boundary`: BLUE's pair; `one_layer`: by method, for those that edit one.
    - `settings`: by method.
    """

    name: str
    embedded: bool
    download: ModelDownload | None
    recognised_by: dict[str, Any]
    layers: list[int]
    boundary: list[int]
    one_layer: dict[str, int]
    settings: dict[str, dict[str, Any]]
    corpus: str | None


class ModelsResult(Record):
    """`bluedit models --json`."""

    models: list[PresetModel]


class MethodEntry(Record):
    """A method with its own strategy and default settings.

    - `caches_keys`: whether a sequence caches earlier keys; `largest_batch`: how many facts it edits at once at most.
    - `installed`: whether it came from elsewhere.
    """

    name: str
    summary: str
    strategy: str
    caches_keys: bool
    largest_batch: int | None
    settings: dict[str, Any]
    reference: str
    installed: bool


class MethodsResult(Record):
    """`bluedit methods --json`."""

    methods: list[MethodEntry]


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
