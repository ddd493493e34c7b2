"""What is recorded of an edit of weights: sizes, what was met, the manifest; and the warnings that follow from it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata

import torch
from torch import Tensor

from bluedit.editors.base import Plan, Setup
from bluedit.editors.cautions import LargeChangeWarning, RoundingWarning, UnmetWarning
from bluedit.edits.changes import Change
from bluedit.edits.manifest import FactRecord, Manifest, OptimisationRecord, WeightRecord
from bluedit.errors import NumericsError
from bluedit.models import EditableModel
from bluedit.precision import all_finite, upcast

__all__ = ["checked", "manifest_of", "resized", "warn_unmet", "weight_record"]


def manifest_of(
    model: EditableModel,
    plan: Plan,
    *,
    kind: str = "weights",
    weights: Mapping[str, WeightRecord] | None = None,
    optimisation: Sequence[OptimisationRecord] = (),
    seconds: float = 0.0,
) -> Manifest:
    """The manifest of an edit that a plan led to."""
    corpus = plan.statistics.corpus
    return Manifest(
        kind=kind,
        model=str(getattr(model.model.config, "_name_or_path", "") or type(model.model).__name__),
        configuration=model.configuration_fingerprint(),
        method=plan.method.name,
        strategy=plan.method.strategy.name,
        layers=plan.layers,
        settings=plan.settings.recorded(plan.method.uses),
        templates=plan.templates,
        chat=model.text.chat,
        seed=plan.seed,
        corpus=corpus.name if corpus else None,
        corpus_identity=corpus.identity if corpus else None,
        samples=plan.statistics.samples,
        max_length=plan.statistics.max_length,
        until=plan.statistics.until,
        facts=tuple(FactRecord(**asdict(fact)) for fact in plan.facts),
        batches=(len(plan.facts),),
        weights=dict(weights or {}),
        optimisation=tuple(optimisation),
        seconds=round(seconds, 3),
        versions={name: metadata.version(name) for name in ("bluedit", "torch", "transformers")},
    )


def weight_record(
    model: EditableModel,
    plan: Setup,
    layer: int,
    change: Change,
    *,
    advice: str,
    condition: float | None = None,
    rank: int | None = None,
    met: float | None = None,
) -> WeightRecord:
    """The record of one changed weight, which still has its original numbers. Warns when the change outgrows it.

    `advice`: what makes changes smaller.
    """
    norm = change.norm()
    relative = _relative(norm, model.matrix(layer))
    if relative > 1:
        warnings.warn(
            LargeChangeWarning(layer=layer, amount=relative, origin=_origin(plan), advice=advice, condition=condition),
            stacklevel=4,
        )
    return WeightRecord(
        layer=layer,
        before=model.weight_fingerprint(layer),
        norm=norm,
        relative_norm=relative,
        condition=condition,
        null_space_rank=rank,
        rounding=_rounding(change, norm, model.matrix(layer), layer, plan),
        met=None if met is None else float(f"{met:.4g}"),
    )


def resized(record: WeightRecord, change: Change, weight_DF: Tensor, plan: Setup) -> WeightRecord:
    """The record of a weight whose change was replaced by another."""
    norm = change.norm()
    sizes = {"norm": norm, "relative_norm": _relative(norm, weight_DF)}
    return record.model_copy(update=sizes | {"rounding": _rounding(change, norm, weight_DF, record.layer, plan)})


def checked(change: Change, layer: int) -> Change:
    try:
        change.check()
    except ValueError as error:
        raise NumericsError(
            f"the update of layer {layer} is not finite ({error}); raise lambda or shrinkage, or load the model in a "
            "higher-precision dtype"
        ) from error
    return change


def _relative(norm: float, weight_DF: Tensor) -> float:
    """||D|| / ||W||; 0 for a weight of zeros, relative to which no change has a size."""
    size = upcast(weight_DF).norm().item()
    return norm / size if size else 0.0


_ROUNDING = 0.1
"""Of a change, lost to the precision of its weight: from here on worth a warning."""


def _rounding(change: Change, norm: float, weight_DF: Tensor, layer: int, plan: Setup) -> float | None:
    """||rounded(W + D) - W - D|| / ||D|| for a half-precision weight. Warns when much of the change is lost."""
    if weight_DF.dtype not in (torch.float16, torch.bfloat16) or not norm:
        return None
    rounded_DF = weight_DF.clone()
    change.add_to(rounded_DF)
    if not all_finite(rounded_DF):
        raise NumericsError(
            f"the edited weight of layer {layer} does not fit {str(weight_DF.dtype).removeprefix('torch.')}; load the model in "
            "float32 (--dtype float32)"
        )
    lost = (rounded_DF.float() - weight_DF.float() - change.dense().to(weight_DF.device)).norm().item() / norm
    if lost > _ROUNDING:
        dtype = str(weight_DF.dtype).removeprefix("torch.")
        warnings.warn(RoundingWarning(layer=layer, amount=lost, origin=_origin(plan), dtype=dtype), stacklevel=5)
    return lost


def _origin(plan: Setup) -> str:
    """What a warning is about, for those who edit with several methods."""
    return f"{plan.method.name}, {plan.method.strategy.name}"


_UNMET = 0.5
"""Of what facts ask for, left open: from here on worth a warning. On SmolLM2-135M-Instruct 10 CounterFact records had ES
100 where up to 0.46 was left open at the last layer, 90 and 70 at 0.69 (BLUE) and 0.54 (even), 50 and 40 at 0.87 and
0.76."""


def warn_unmet(plan: Setup, records: Iterable[OptimisationRecord], advice: str) -> None:
    """Warn where the written weights leave much of what was asked for open at the last target layer.

    What a layer below leaves open is asked for again there.
    """
    measured = [(record.layer, part) for record in records if (part := record.left_open) is not None]
    if not measured:
        return
    layer, part = max(measured)
    if part > _UNMET:
        warnings.warn(UnmetWarning(layer=layer, amount=part, origin=_origin(plan), advice=advice), stacklevel=4)
