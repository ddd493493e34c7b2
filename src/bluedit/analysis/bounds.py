"""Theorem 4.1 and lemma 4.2: the weight-shift error of residual distribution, and its bound (BLUE, eq. 10 and 11).

*Concept.* With the gain Q of a layer (D = R Q^T in every method of the family), the computed residuals R^l* and the distributed
ones R^l = s R^L, s = 1 / (L - l + 1), the change that is made is off by D* - D = (R^l* - R^l) Q^T. Two triangle inequalities:

    || D* - D ||_2  <=  ( || R^l* - R^L ||_2 + (L - l) || R^l ||_2 ) || Q ||_2

since R^L - R^l = (1/s - 1) R^l. The first term is that layers ask for different residuals, the second is the distribution's.
Another share s (PMET's) has 1/s - 1 for L - l. L - l counts critical layers.

*Measured.* By distance: each critical layer, all facts in one batch. By batch size: groups of the facts at the first critical
layer, whose residuals are the same but whose Q is not. By sequence: batch after batch, edited as the method does; error and
bound of the total change, || sum_t (D*_t - D_t) ||_2 and the sum of the bounds.

All of it in float64. Shapes: D d_model, F d_ff, N facts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from bluedit.analysis.place import Place
from bluedit.analysis.study import Study
from bluedit.editors.closed_form.keys import fact_keys
from bluedit.editors.closed_form.recipe import ClosedForm
from bluedit.editors.closed_form.state import InverseMetrics
from bluedit.progress import Progress, silent

__all__ = ["WeightShift", "batch_sizes", "measure_bounds", "weight_shift"]

_ROUNDING = 1e-9
"""By how much of it an error may exceed its bound: rounding of two norms in float64."""
_PLENTY = 16
"""Groups of one batch size that are measured at most."""


class WeightShift(NamedTuple):
    """What one batch is off by, and the bound's parts; spectral norms, but for the residual D* - D stands for.

    - `off_DN`: R^l* - R^l; the weight-shift error matrix is off Q^T.
    - `error`: || D* - D ||_2. `gain`: || Q ||_2.
    - `first`, `second`: || R^l* - R^L || || Q || and (1/s - 1) || R^l || || Q ||.
    """

    off_DN: Tensor
    error: float
    first: float
    second: float
    gain: float

    @property
    def bound(self) -> float:
        """The right-hand side of theorem 4.1."""
        return self.first + self.second


def weight_shift(computed_DN: Tensor, last_DN: Tensor, share: float, gain_FN: Tensor) -> WeightShift:
    """Error and bound of one layer.

    **Arguments**

    - `computed_DN`, `last_DN`: R^l* and R^L.
    - `share`: s, with R^l = s R^L.
    - `gain_FN`: Q of the layer.

    **Cost** O((D + F) N^2).
    """
    computed_DN, last_DN, gain_FN = (one.double() for one in (computed_DN, last_DN, gain_FN))
    given_DN = share * last_DN
    gain = _norm(gain_FN)
    return WeightShift(
        off_DN=computed_DN - given_DN,
        error=product_norm(computed_DN - given_DN, gain_FN),
        first=_norm(computed_DN - last_DN) * gain,
        second=(1 / share - 1) * _norm(given_DN) * gain,
        gain=gain,
    )


def product_norm(left_DN: Tensor, right_FN: Tensor) -> float:
    """|| A B^T ||_2 without forming the product: of their triangular factors, which are N x N at most."""
    return _norm(torch.linalg.qr(left_DN, mode="r").R @ torch.linalg.qr(right_FN, mode="r").R.T)


def _norm(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix, 2).item()


def batch_sizes(facts: int) -> list[int]:
    """1, 2, 5, 10, 20, ... and the number of facts."""
    sizes = [step * 10**power for power in range(len(str(facts))) for step in (1, 2, 5)]
    return [*(size for size in sizes if size < facts), facts]


def measure_bounds(
    study: Study, place: Place | None = None, progress: Progress = silent, *, batch_size: int | None = None
) -> dict[str, Any]:
    """Error and bound by distance, batch size and sequence length; the entries of a `BoundsResult`.

    `batch_size`: facts of a batch in the sequence; a quarter of them when left out.

    **Cost** values at every critical layer, then for every batch of the sequence an edit and values at the first and the last.
    """
    size = batch_size or max(1, len(study.cases) // 4)
    metrics = InverseMetrics(study.setup)
    metrics.prepare(study.model, study.layers, progress)  # of the unedited model
    work = {
        "by_layer": lambda: _by_layer(study, metrics, progress),
        "by_batch": lambda: _by_batch(study, metrics, progress),
        "by_sequence": lambda: _by_sequence(study, metrics, size, progress),
    }
    parts = (place or Place()).each(list(work), "sweeps", lambda key: {"bounds": work[key]()}, progress)
    found = {key: part["bounds"] for key, part in parts.items()}
    pairs = [pair for bounds in found.values() for one in bounds for pair in zip(one["errors"], one["bounds"], strict=True)]
    violated = sum(not _holds(error, bound) for error, bound in pairs)
    return {**found, "checked": len(pairs), "violated": violated}


def _by_layer(study: Study, metrics: InverseMetrics, progress: Progress) -> list[dict[str, Any]]:
    last_DN = study.residuals(study.layers[-1], progress)
    bounds: list[dict[str, Any]] = []
    for layer in study.layers:
        gain_FN = _gain(study, metrics, layer, study.plan.facts)
        shift = weight_shift(study.residuals(layer, progress), last_DN, study.share(layer), gain_FN)
        bounds.append(_record(study, layer, [shift], facts=len(study.cases)))
    return bounds


def _by_batch(study: Study, metrics: InverseMetrics, progress: Progress) -> list[dict[str, Any]]:
    first, facts = study.layers[0], study.plan.facts
    own_DN, last_DN = study.residuals(first, progress), study.residuals(study.layers[-1], progress)
    bounds: list[dict[str, Any]] = []
    for size in batch_sizes(len(facts)):
        shifts: list[WeightShift] = []
        for start in range(0, min(len(facts) - size + 1, _PLENTY * size), size):
            group = slice(start, start + size)
            gain_FN = _gain(study, metrics, first, facts[group])
            shifts.append(weight_shift(own_DN[:, group], last_DN[:, group], study.share(first), gain_FN))
        bounds.append(_record(study, first, shifts, facts=size))
    return bounds


def _by_sequence(study: Study, metrics: InverseMetrics, size: int, progress: Progress) -> list[dict[str, Any]]:
    """After every batch: the total change's error, and the sum of the batches' bounds."""
    model, setup = study.model, study.setup
    first, last, share = study.layers[0], study.layers[-1], study.share(study.layers[0])
    state = metrics.after(())  # the past keys of this sequence are its own
    done: list[tuple[WeightShift, Tensor]] = []
    bounds: list[dict[str, Any]] = []
    with contextlib.ExitStack() as applied:
        for batch in study.batches(size):
            plan = setup.plan(model, [case.fact for case in batch], start=len(done) * size, on_conflict="keep")
            values = {layer: study.optimised(layer, progress, plan) for layer in (first, last)}
            own_DN, last_DN = (values[layer].targets_DN - values[layer].initial_DN for layer in (first, last))
            gain_FN = _gain(study, state, first, plan.facts)
            done.append((weight_shift(own_DN, last_DN, share, gain_FN), gain_FN.double()))
            shifts = [shift for shift, _ in done]
            total = product_norm(torch.cat([shift.off_DN for shift in shifts], 1), torch.cat([gain for _, gain in done], 1))
            whole = WeightShift(
                off_DN=shifts[-1].off_DN,
                error=total,
                first=sum(shift.first for shift in shifts),
                second=sum(shift.second for shift in shifts),
                gain=shifts[-1].gain,
            )
            bounds.append(_record(study, first, [whole], facts=len(batch), batches=len(done)))
            edited = setup.method.edit(model, plan, state, progress, study.values)
            applied.enter_context(edited.edit.applied(model, check=False))
            state.absorb(edited.memory)
    return bounds


def _gain(study: Study, metrics: InverseMetrics, layer: int, facts: Sequence[Any]) -> Tensor:
    keys_FN = fact_keys(study.model, facts, layer, study.setup.templates)
    names = tuple(fact.id for fact in facts)
    return metrics.by_layer[layer].gain(keys_FN, noise=cast("ClosedForm", study.setup.method).noise, names=names)


def _holds(error: float, bound: float) -> bool:
    return error <= bound * (1 + _ROUNDING) + 1e-300


def _record(study: Study, layer: int, shifts: Sequence[WeightShift], *, facts: int, batches: int = 1) -> dict[str, Any]:
    def mean(name: str) -> float:
        return _digits(sum(getattr(shift, name) for shift in shifts) / len(shifts))

    return {
        "layer": layer,
        "distance": len(study.layers) - 1 - study.layers.index(layer),
        "facts": facts,
        "batches": batches,
        **{name: mean(name) for name in ("error", "bound", "first", "second", "gain")},
        "errors": [shift.error for shift in shifts],
        "bounds": [shift.bound for shift in shifts],
        "tightness": _digits(max(shift.error / shift.bound if shift.bound else 0.0 for shift in shifts)),
        "holds": all(_holds(shift.error, shift.bound) for shift in shifts),
    }


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
