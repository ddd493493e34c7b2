"""What `bluedit edit` and `bluedit patch` print with `--json`."""

from __future__ import annotations

from typing import Any

from bluedit.results.records import Interval, Record

__all__ = ["EditPlanResult", "EditResult", "PatchApplyResult", "PatchRevertResult", "PatchShowResult"]


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


class FactCaution(Record):
    """Something worth knowing before an edit: `believed`, `same-key` or `fragmented`, the ids of the facts, one sentence."""

    kind: str
    facts: list[str]
    text: str


class NotTaken(Record):
    """A fact that the edited model does not say: its mean log-probability per token, and what the model says."""

    id: str
    log_prob: float
    says: str | None


class DamageResult(Record):
    """What an edit did to what it should leave alone, with 95 % intervals.

    - `specificity`: points of NS lost; `perplexity`: its change on held-out text in percent; `kl`: in nats per token.
    """

    specificity: Interval | None = None
    perplexity: Interval | None = None
    kl: Interval | None = None


class EditResult(Record):
    """`bluedit edit --json`.

    - `patch`: where it was written; null where it went into a ledger only.
    - `batches`: how many facts each held.
    - `layers`: the critical layers; `weights`: by name, those that changed.
    - `evaluations`, `losses`: by layer and id of a fact, how often the loss was evaluated, and its last value; `remaining`:
      what fraction of what was asked for the written weights leave open.
    - `seconds`: of editing.
    - `cautions`: what was worth knowing about the facts before the edit.
    - `holding`: how many facts the edited model says; `not_taken`: the others, with what it says instead.
    - `damage`: what `--max-damage` measured; `failed`: why the edit did not pass, null where it did.
    """

    patch: str | None
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
    cautions: list[FactCaution]
    holding: int
    not_taken: list[NotTaken]
    damage: DamageResult | None = None
    failed: str | None = None


class EditPlanResult(Record):
    """`bluedit edit --dry-run --json`: what the edit would do.

    - `bytes`: of memory, by what for. `seconds`: estimated; null where it cannot be.
    """

    facts: int
    batches: int
    method: str
    strategy: str
    layers: list[int]
    settings: dict[str, Any]
    corpus: str | None
    bytes: dict[str, int]
    seconds: float | None
    cautions: list[FactCaution]


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
    corpus_identity: str | None = None
    samples: int | None = None
    max_length: int | None = None
    until: float | None = None
    facts: list[EditedFact]
    batches: list[int]
    columns: str
    weights: dict[str, ShownWeight]
    optimisation: list[Optimisation]
    failed: str | None = None
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
