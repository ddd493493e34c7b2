"""One change of weights for a sequence of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bluedit.edits.changes import Change, total
from bluedit.edits.manifest import Manifest, OptimisationRecord, WeightRecord
from bluedit.errors import PatchError

__all__ = ["merge_changes", "merge_manifests"]

Part = tuple[Mapping[str, Change], Manifest]

_SEQUENCE = ("configuration", "method", "strategy", "layers", "settings", "templates", "chat", "corpus")
"""What all edits of one sequence have in common."""


def merge_changes(parts: Sequence[Part]) -> tuple[dict[str, Change], Manifest]:
    """The changes and the manifest of several patches, applied one after the other; all of one sequence on one model.

    Low-rank changes are put side by side, so column n is still fact n's. Hashes are those that the first patch of each
    weight found.

    **Raises** :class:`~bluedit.errors.PatchError` when they were made with different methods or settings.
    """
    manifests = [manifest for _, manifest in parts]
    changes: dict[str, Change] = {}
    weights: dict[str, WeightRecord] = {}
    for name in dict.fromkeys(name for one, _ in parts for name in one):
        # A batch without facts changes nothing; all others of a sequence change the same weights.
        changes[name] = total([one[name] for one, _ in parts if name in one])
        record = next(one.weights[name] for one in manifests if name in one.weights)
        norm = changes[name].norm()
        sizes = [one.weights[name] for one in manifests if name in one.weights and one.weights[name].relative_norm]
        relative = norm * sizes[0].relative_norm / sizes[0].norm if sizes else 0.0
        update = {"norm": norm, "relative_norm": relative, "rounding": None, "met": _mean_met(manifests, name)}
        weights[name] = record.model_copy(update=update)
    by_layer: dict[int, list[OptimisationRecord]] = {}
    for record in (record for one in manifests for record in one.optimisation):
        by_layer.setdefault(record.layer, []).append(record)
    optimisation = tuple(
        OptimisationRecord(
            layer=layer,
            evaluations=tuple(count for record in records for count in record.evaluations),
            losses=tuple(loss for record in records for loss in record.losses),
            remaining=_together([record.remaining for record in records]),
            asked=_together([record.asked for record in records]),
        )
        for layer, records in by_layer.items()
    )
    return changes, merge_manifests(manifests).model_copy(update={"weights": weights, "optimisation": optimisation})


def merge_manifests(manifests: Sequence[Manifest]) -> Manifest:
    """The manifest of several edits of one sequence, all but its weights and their optimisation.

    **Raises** :class:`~bluedit.errors.PatchError` when they were made with different methods or settings.
    """
    first = manifests[0]
    if differing := [name for name in _SEQUENCE if any(getattr(one, name) != getattr(first, name) for one in manifests)]:
        raise PatchError(f"patches with different {differing[0]} are not one sequence; apply them one after the other instead")
    whole: dict[str, Any] = {
        "facts": tuple(fact for one in manifests for fact in one.facts),
        "columns": "facts" if all(one.columns == "facts" for one in manifests) else "directions",
        "batches": tuple(count for one in manifests for count in one.batches or (len(one.facts),)),
        "failed": next((one.failed for one in manifests if one.failed), None),
        "seconds": round(sum(one.seconds for one in manifests), 3),
    }
    return first.model_copy(update=whole)


def _together(parts: Sequence[tuple[float, ...] | None]) -> tuple[float, ...] | None:
    """Measured facts side by side; None where some were not measured."""
    known = [part for part in parts if part is not None]
    return tuple(value for part in known for value in part) if len(known) == len(parts) else None


def _mean_met(manifests: Sequence[Manifest], name: str) -> float | None:
    """The mean over the facts of all batches of what a weight's changes met when they were made."""
    batches = [(len(one.facts), one.weights[name].met) for one in manifests if name in one.weights]
    known = [(count, met) for count, met in batches if met is not None]
    facts = sum(count for count, _ in known)
    return sum(count * met for count, met in known) / facts if facts and len(known) == len(batches) else None
