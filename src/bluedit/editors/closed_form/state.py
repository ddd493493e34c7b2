"""The memory of a closed-form sequence: the inverse metric of each edited layer, with the keys of past batches in it.

Shapes: F d_ff, N facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from bluedit.editors.base import Setup, State
from bluedit.editors.closed_form.inverse_metric import InverseMetric
from bluedit.editors.closed_form.recipe import ClosedForm, SolverSettings
from bluedit.edits.patch import Patch
from bluedit.models import EditableModel
from bluedit.progress import Progress, silent, stage
from bluedit.statistics import Statistics

__all__ = ["InverseMetrics", "check_keys", "with_moments"]


@dataclass
class InverseMetrics(State):
    """The inverse metric of each edited layer, made from the prior when first asked for.

    Statistics belong to the model as it is before its first edit: prepare all layers then.

    - `by_layer`: B as it is now, where the layer's weight is.
    - `initial`: B before the first batch, stored in main memory where past keys will change it, so that batches can be undone.
    """

    constant: ClassVar[frozenset[str]] = frozenset({"initial"})

    setup: Setup
    by_layer: dict[int, InverseMetric] = field(default_factory=dict[int, InverseMetric])
    initial: dict[int, InverseMetric] = field(default_factory=dict[int, InverseMetric])

    @property
    def method(self) -> ClosedForm:
        """The method that the metrics are for."""
        return cast("ClosedForm", self.setup.method)

    def prepare(self, model: EditableModel, layers: Iterable[int], progress: Progress = silent) -> None:
        """Make what is missing for `layers`, from second moments taken in one pass where they are not stored."""
        missing = [layer for layer in dict.fromkeys(layers) if layer not in self.by_layer]
        if not missing:
            return
        with stage(progress, "second moments of keys") as advance:
            moments = self.setup.statistics.moments(model, missing, advance)
        dtype = getattr(torch, cast("SolverSettings", self.setup.settings).metric_dtype)
        for layer in missing:
            metric = self.method.prior.inverse(moments[layer], self.setup.settings).to_dtype(dtype)
            if self.method.caches_keys:
                self.initial[layer] = metric.copy("cpu")
            self.by_layer[layer] = metric.copy(model.weight(layer).device)

    def absorb(self, memory: Mapping[str, Tensor]) -> None:
        """Make keys (F, N) by layer past keys, where the method caches them."""
        if self.method.caches_keys:
            for layer, keys_FN in memory.items():
                self.by_layer[int(layer)].absorb(keys_FN)

    def after(self, memories: Iterable[Mapping[str, Tensor]]) -> InverseMetrics:
        """The metrics after these batches' keys, from the initial ones; a method without past keys has them already."""
        if not self.method.caches_keys:
            return self
        by_layer = {layer: metric.copy(self.by_layer[layer].matrix_FF.device) for layer, metric in self.initial.items()}
        metrics = InverseMetrics(self.setup, by_layer, self.initial)
        for memory in memories:
            metrics.absorb(memory)
        return metrics

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The matrices as they are now, and as they were before the first batch where those differ."""
        files = {"metrics": self.by_layer, "initial": self.initial}
        return {
            name: {str(layer): metric.matrix_FF for layer, metric in metrics.items()}
            for name, metrics in files.items()
            if metrics
        }

    def record(self) -> dict[str, Any]:
        """Condition number and rank of each layer's metric."""
        return {str(layer): {"condition": metric.condition, "rank": metric.rank} for layer, metric in self.by_layer.items()}

    @classmethod
    def restored(
        cls, setup: Setup, record: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], model: EditableModel
    ) -> InverseMetrics:
        """The metrics of a saved session.

        **Raises** `ValueError` when they are not one F x F matrix for each layer.
        """
        size = model.structure.d_ff

        def read(name: str, *, whole: bool) -> dict[int, InverseMetric]:
            found = tensors.get(name, {})
            shapes = {layer: tuple(matrix.shape) for layer, matrix in found.items()}
            if (found or whole) and shapes != dict.fromkeys(record, (size, size)):
                raise ValueError(f"{name} does not hold one {size} x {size} matrix for each edited layer")
            return {
                int(layer): InverseMetric(matrix, record[layer]["condition"], record[layer]["rank"])
                for layer, matrix in found.items()
            }

        now = {layer: metric.copy(model.weight(layer).device) for layer, metric in read("metrics", whole=True).items()}
        return cls(setup, now, read("initial", whole=False))


def with_moments(model: EditableModel, setup: Setup, progress: Progress) -> Setup:
    """The setup with the second moments of its layers in memory, and what is derived from them."""
    edited = sorted({step.layer for step in setup.method.strategy.steps(setup.layers)})
    with stage(progress, "second moments of keys") as advance:
        moments = setup.statistics.moments(model, edited, advance)
    return replace(setup, statistics=Statistics(precomputed=moments))


def check_keys(memory: Mapping[str, Tensor] | None, edit: Patch, model: EditableModel) -> None:
    """**Raises** `ValueError` when keys are not those of a batch's facts at the layers it changed. None: none are stored."""
    if memory is None:
        return
    wanted = {str(record.layer): (model.structure.d_ff, len(edit.facts)) for record in edit.manifest.weights.values()}
    if {layer: tuple(keys.shape) for layer, keys in memory.items()} != wanted:
        raise ValueError("its keys are not those of its patch")
