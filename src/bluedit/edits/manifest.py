"""What a patch says of itself: the facts, the weights, how it was made. The JSON file next to its tensors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator

from bluedit import renamed
from bluedit.models.inputs.chat import Chat

__all__ = ["FORMAT_VERSION", "FactRecord", "Manifest", "OptimisationRecord", "StoredChat", "WeightRecord"]

FORMAT_VERSION = 3
"""Version 2 has hashes of all tensors, and one of the manifest; version 3 has targets, and what they were solved with."""


def _present(chat: Any) -> Any:
    return renamed.present_names(chat, renamed.CHAT) if isinstance(chat, dict) else chat


StoredChat = Annotated[Chat, BeforeValidator(_present)]
"""A chat as patches and sessions have it, also by the names of earlier versions."""


class FactRecord(BaseModel):
    """One edited fact."""

    model_config = ConfigDict(frozen=True)

    id: str
    prompt: str
    subject: str
    target: str
    relation: str | None = None


class WeightRecord(BaseModel):
    """One changed weight: its layer, the hash of what it was, and how large the change is."""

    model_config = ConfigDict(frozen=True)

    layer: int
    before: str
    norm: float
    relative_norm: float
    condition: float | None = None
    """Condition number of the prior metric, where it has one."""
    null_space_rank: int | None = None
    """How many directions of the keys' null space the change could use (AlphaEdit)."""
    rounding: float | None = None
    """||rounded(W + D) - W - D|| / ||D||: what a half-precision weight loses of the change; None in wider weights, and for sums
    of patches."""
    met: float | None = None
    """What fraction of the residuals asked of this layer its change gives at the facts' keys, sum <D k, r> / sum ||r||^2; None
    where no residual is asked for (fine-tuning), and in older patches."""


class OptimisationRecord(BaseModel):
    """What value optimisation did at one layer, fact by fact."""

    model_config = ConfigDict(frozen=True)

    layer: int
    evaluations: tuple[int, ...]
    losses: tuple[float, ...]
    remaining: tuple[float, ...] | None = None
    """||z - h'|| / ||z - h||: of what was asked for at this layer, what the written weights leave open. h: the state when the
    value z was optimised; h': the state with the whole batch written. None for fine-tuning, and in older patches."""
    asked: tuple[float, ...] | None = None
    """||z - h||. It is small for a fact that the layers below gave already."""

    @property
    def left_open(self) -> float | None:
        """The fraction left open over all facts, sum ||z - h'|| / sum ||z - h||: facts weigh by what they asked for."""
        if self.remaining is None or self.asked is None:
            return None
        total = sum(self.asked)
        return sum(size * part for size, part in zip(self.asked, self.remaining, strict=True)) / total if total else 0.0


class Manifest(BaseModel):
    """Everything about a patch but its tensors; the JSON file next to them."""

    model_config = ConfigDict(frozen=True)

    format: str = "bluedit-patch"
    format_version: int = FORMAT_VERSION
    kind: str = "weights"
    """What kind of edit it is: which class reads its tensors."""
    model: str
    """Name or folder the model was loaded from; information only."""
    configuration: str
    """Hash of the model's configuration."""
    method: str
    strategy: str
    layers: tuple[int, ...]
    """The critical layers that were asked for; `weights` are those that changed."""
    settings: dict[str, Any]
    templates: tuple[str, ...]
    chat: StoredChat | None = None
    """The chat template around every prompt; None for plain prompts."""
    seed: int
    corpus: str | None = None
    corpus_identity: str | None = None
    """The hash of the corpus."""
    samples: int | None = None
    """How many of its documents second moments were taken over; all when None."""
    max_length: int | None = None
    """The tokens that documents were truncated to."""
    until: float | None = None
    """The estimated error at which they were stopped."""
    facts: tuple[FactRecord, ...]
    batches: tuple[int, ...] = ()
    """How many facts each batch held, in a patch that stands for a sequence."""
    columns: Literal["facts", "directions"] = "facts"
    """What a column of low-rank factors belongs to; a constraint on the whole change leaves singular directions."""
    weights: dict[str, WeightRecord]
    optimisation: tuple[OptimisationRecord, ...] = ()
    failed: str | None = None
    """Why the edit did not pass its gates (`--max-damage`); None where it did, or there were none."""
    seconds: float = 0.0
    versions: dict[str, str] = {}

    @field_validator("settings")
    @classmethod
    def _by_present_names(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return renamed.present_names(settings, renamed.SETTINGS)
