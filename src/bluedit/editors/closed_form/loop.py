"""The one loop that turns a closed-form method, a model and facts into a patch.

Methods and strategies never fork it: what differs between them is data that it reads.

Shapes: D d_model, F d_ff, N facts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from bluedit.editors.base import Edited, Plan, Setup, ValueStore
from bluedit.editors.closed_form.keys import fact_keys, fact_states
from bluedit.editors.closed_form.objectives import ValueSettings
from bluedit.editors.closed_form.optimizer import Values, optimise_values
from bluedit.editors.closed_form.recipe import ClosedForm
from bluedit.editors.closed_form.state import InverseMetrics
from bluedit.editors.records import checked, manifest_of, resized, warn_unmet, weight_record
from bluedit.edits.changes import Change, LowRank
from bluedit.edits.manifest import OptimisationRecord, WeightRecord
from bluedit.edits.patch import Patch
from bluedit.models import EditableModel
from bluedit.progress import Progress, silent, stage
from bluedit.strategies import Step

__all__ = ["constrain_sequence", "edit_batch", "values_at"]


@torch.inference_mode(mode=False)
def edit_batch(
    model: EditableModel,
    plan: Plan,
    metrics: InverseMetrics,
    progress: Progress = silent,
    store: ValueStore | None = None,
) -> Edited:
    """One batch of a sequence, with what the batches before left in `metrics`: its patch, and its keys by layer.

    The model's weights are written on the way, and hold their original bits afterwards. `metrics` is only read: absorb the
    keys when the patch is kept. `store` holds values of other runs; the patch's seconds count what was found there with the
    time it took. A constraint at the end of the sequence is not applied here.
    """
    started = time.monotonic()
    method, steps = cast("ClosedForm", plan.method), plan.steps
    metrics.prepare(model, (step.layer for step in steps), progress)
    work = _Work(model, plan, method, metrics, progress, store)
    changes: dict[int, Change] = {}
    with model.restoring(step.layer for step in steps) as originals:
        for step in steps:
            changes[step.layer] = checked(work.least_squares(step), step.layer)
            changes[step.layer].add_to(model.matrix(step.layer))
        if method.constraint and method.constraint.when == "batch":
            for layer, change in changes.items():
                weight_DF = model.structure.oriented(originals[layer])
                changes[layer] = checked(method.constraint.constrain(change, weight_DF, plan.settings), layer)
                model.weight(layer).detach().copy_(originals[layer])
                changes[layer].add_to(model.matrix(layer))
        work.measure()
        if method.caches_keys and (method.constraint or list(changes) != sorted(changes)):
            # Otherwise no weight below a layer changed after its keys were measured, and they are the edited model's already.
            work.keys = {layer: fact_keys(model, plan.facts, layer, plan.templates) for layer in changes}
    patch = _patch(work, changes, time.monotonic() - started + work.reused)
    return Edited(patch, {str(layer): keys for layer, keys in work.keys.items()} if method.caches_keys else {})


def values_at(
    model: EditableModel, plan: Plan, layer: int, progress: Progress = silent, store: ValueStore | None = None
) -> tuple[Values, float]:
    """Values of the plan's facts at `layer` for the model as it is edited now: those of the store, and the seconds they took
    then; or optimised, and stored, and 0."""
    if store is not None and (found := store.recall(model, plan, layer)) is not None:
        return found
    started = time.monotonic()
    settings, objective = cast("ValueSettings", plan.settings), cast("ClosedForm", plan.method).objective
    with stage(progress, f"optimising values at layer {layer}", len(plan.facts)) as advance:
        values = optimise_values(model, plan.facts, layer, plan.templates, settings, objective, progress=advance)
    if store is not None:
        store.keep(model, plan, layer, values, time.monotonic() - started)
    return values, 0.0


def constrain_sequence(patch: Patch, setup: Setup, weights: Mapping[str, Tensor]) -> Patch:
    """The patch of a whole sequence, after the constraint that acts at its end.

    `weights` are those from before the sequence by name, d_model x d_ff.
    """
    constraint = cast("ClosedForm", setup.method).constraint
    if not patch.changes or not constraint:
        return patch
    changes: dict[str, Change] = {}
    records: dict[str, WeightRecord] = {}
    for name, record in patch.manifest.weights.items():
        change = constraint.constrain(patch.changes[name], weights[name], setup.settings)
        changes[name] = checked(change, record.layer)
        records[name] = resized(record, change, weights[name], setup)
    columns = "facts" if all(changes[name] is patch.changes[name] for name in changes) else "directions"
    return Patch(changes, patch.manifest.model_copy(update={"weights": records, "columns": columns}), patch.targets)


@dataclass
class _Work:
    """What the loop computes on the way: targets by the layer they are optimised at, keys by the layer they were measured
    at."""

    model: EditableModel
    plan: Plan
    method: ClosedForm
    metrics: InverseMetrics
    progress: Progress
    store: ValueStore | None = None
    values: dict[int, Values] = field(default_factory=dict[int, Values])
    keys: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    records: dict[int, OptimisationRecord] = field(default_factory=dict[int, OptimisationRecord])
    asked: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict[int, tuple[Tensor, Tensor]])
    """By changed layer: keys (F, N), and the residuals (D, N) that its change was to give at them."""
    reused: float = 0.0
    """Seconds that values took which were found in the store."""

    def target(self, layer: int) -> Tensor:
        """Targets at `layer`, (D, N), optimised the first time they are asked for, on the model as it is edited then."""
        if layer not in self.values:
            self.values[layer], seconds = values_at(self.model, self.plan, layer, self.progress, self.store)
            self.reused += seconds
        values = self.values[layer]
        self.records[layer] = OptimisationRecord(layer=layer, evaluations=values.evaluations, losses=values.losses)
        return values.targets_DN

    def least_squares(self, step: Step) -> Change:
        """R Q^T for one step: keys and gap measured on the model as it is edited now."""
        model, plan, method = self.model, self.plan, self.method
        target_DN = self.target(step.target_layer)
        self.keys[step.layer] = keys_FN = fact_keys(model, plan.facts, step.layer, plan.templates)
        read_FN = fact_keys(model, plan.facts, step.layer, plan.templates[:1]) if method.reads_bare_prompt else None
        gap_DN = target_DN - fact_states(model, plan.facts, step.target_layer, method.objective.components[0])
        names = tuple(fact.id for fact in plan.facts)
        gain_FN = self.metrics.by_layer[step.layer].gain(keys_FN, noise=method.noise, readout_FN=read_FN, names=names)
        self.asked[step.layer] = (keys_FN if read_FN is None else read_FN, step.fraction * gap_DN)
        return LowRank.of(step.fraction * gap_DN, gain_FN)

    def met(self, layer: int, change: Change) -> float | None:
        """What fraction of the residuals asked of a layer its change gives: sum <D k, r> / sum ||r||^2."""
        keys_FN, asked_DN = self.asked[layer]
        if isinstance(change, LowRank):
            given_DN = change.residual_DN @ (change.gain_FN.T @ keys_FN.to(change.gain_FN))
        else:
            given_DN = change.dense() @ keys_FN.to(change.dense())
        size = asked_DN.square().sum().item()
        return (given_DN.to(asked_DN) * asked_DN).sum().item() / size if size else None

    def measure(self) -> None:
        """Record what the weights as they are written now leave of each layer's targets."""
        component = self.method.objective.components[0]
        for layer, record in self.records.items():
            values = self.values[layer]
            asked_N = (values.targets_DN - values.initial_DN).norm(dim=0)
            now_DN = fact_states(self.model, self.plan.facts, layer, component).to(values.targets_DN)
            left_N = (values.targets_DN - now_DN).norm(dim=0)
            remaining_N = (left_N / asked_N).nan_to_num(0.0, posinf=0.0)
            update = {"remaining": _four_digits(remaining_N), "asked": _four_digits(asked_N)}
            self.records[layer] = record.model_copy(update=update)


def _four_digits(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{one:.4g}") for one in values.tolist())


def _patch(work: _Work, changes: Mapping[int, Change], seconds: float) -> Patch:
    model, plan = work.model, work.plan
    weights: dict[str, WeightRecord] = {}
    for layer, change in changes.items():
        metric = work.metrics.by_layer[layer]
        weights[model.structure.weight_name(layer)] = weight_record(
            model,
            plan,
            layer,
            change,
            advice=_smaller(plan, null_space=metric.rank is not None),
            condition=metric.condition,
            rank=metric.rank,
            met=work.met(layer, change),
        )
    records = tuple(work.records.values())
    warn_unmet(plan, records, _more_met(plan))
    manifest = manifest_of(model, plan, weights=weights, optimisation=records, seconds=seconds)
    targets = {layer: work.values[layer].targets_DN for layer in work.records}
    return Patch({model.structure.weight_name(layer): change for layer, change in changes.items()}, manifest, targets)


def _smaller(plan: Setup, *, null_space: bool) -> str:
    """What makes a method's changes smaller, by settings that it has."""
    if null_space:
        return "lower nullspace_threshold, raise L2, or take second moments over more text"
    raised = " or ".join(name for name in ("shrinkage", "lambda") if name in plan.method.uses)
    return f"{f'raise {raised}, or ' if raised else ''}take second moments over more text"


def _more_met(plan: Setup) -> str:
    """What makes more of the residuals come true, by settings that the method has."""
    uses, settings = plan.method.uses, plan.settings.as_dict()
    if "L2" in uses:
        return f"lower L2 (it is {settings['L2']:g}), or raise nullspace_threshold"
    if "lambda" in uses:
        return f"lower lambda (it is {settings['lambda']:g})"
    return "choose other layers, or fewer facts at a time"
