"""What `bluedit export` prints with `--json`."""

from __future__ import annotations

from bluedit.results.records import Record, Scores

__all__ = ["ExportResult"]


class ExportedWeight(Record):
    """A changed weight in an export.

    - `weight`: its name in the model; `stored`: in the export; `kind`: how its numbers are stored.
    - `rank`: of an adapter's factors.
    - `error`: ||D' - D|| / ||D||, D' the change that the export makes; `error_at_keys`: the same within the directions that the
      change reads.
    """

    weight: str
    stored: str
    kind: str
    rank: int | None
    error: float
    error_at_keys: float | None


class ExportResult(Record):
    """`bluedit export ... --json`.

    - `path`, `kind`: what was written, and where; `card`: its model card.
    - `base`: the model that it belongs to; `patch`: what it was made from.
    - `notes`: what is worth knowing; `warnings`: what may be wrong with it.
    - `scores`: by `unedited`, `patched`, `exported`, where cases were given.
    - `not_held`: ids of facts that the export does not answer with their target, where it was asked.
    - `uploaded`: the address of the hub's repository.
    """

    path: str
    kind: str
    card: str
    base: str
    patch: str
    weights: list[ExportedWeight]
    notes: list[str]
    warnings: list[str]
    scores: dict[str, Scores]
    not_held: list[str] | None = None
    uploaded: str | None = None
