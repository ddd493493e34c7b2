"""What an edit takes, before it is begun: memory by place, and the work of one fact.

*Where things are.* Next to the weights lies one inverse metric B for each edited layer (F x F; float64, or float32 with
metric_dtype), the original of each edited weight, one change in float32, and the activations that value optimisation stores.
A method that caches past keys has the initial B in main memory, so that batches can be undone. While the metrics are
made, the second moments of all edited layers are there, and three matrices more for the inversion: in main memory where the
moments are stored, on the model's device where they are taken in the same run.

Shapes: D d_model, F d_ff, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bluedit.models.layout.structure import Structure
from bluedit.models.memory.budget import CPU_GRADIENT_TOKENS, gradient_numbers

__all__ = ["MemoryPlan", "gigabytes", "plan_memory", "value_flops"]

_PROMPTS, _SUFFIX, _TARGET = 6, 6, 2
"""A typical fact: the bare prompt and five contexts, tokens from the subject's last one on, tokens of the target."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes by what they are for.

    - `weights`: the model.
    - `metrics`: B of all edited layers.
    - `initial`: their first state, in main memory; 0 where no past keys are cached.
    - `moments`, `inverting`: second moments of all edited layers, and what inverting one takes.
    - `changing`: the originals of the edited weights, and one change being added.
    - `activations`: of value optimisation.
    """

    weights: int
    metrics: int
    initial: int
    moments: int
    inverting: int
    changing: int
    activations: int

    @property
    def editing(self) -> int:
        """The peak of the loop, where the weights are."""
        return self.weights + self.metrics + self.changing + self.activations

    @property
    def preparing(self) -> int:
        """The peak while moments are inverted where the weights are."""
        return self.weights + self.metrics + self.moments + self.inverting

    @property
    def on_cpu(self) -> int:
        """The peak where everything is in main memory."""
        return self.initial + max(self.editing, self.preparing)

    def on_gpu(self, *, stored: bool) -> int:
        """The peak on a GPU; `stored`: the second moments have been taken in a run before."""
        return self.editing if stored else max(self.editing, self.preparing)

    @property
    def beside_gpu(self) -> int:
        """The peak of main memory where the weights are on a GPU: they go through it, and stored moments are inverted there."""
        return max(self.weights, self.initial + self.moments + self.inverting)

    def as_dict(self) -> dict[str, int]:
        """The parts by name, in bytes."""
        names = ("weights", "metrics", "initial", "moments", "inverting", "changing", "activations")
        return {name: getattr(self, name) for name in names}


def plan_memory(
    structure: Structure,
    parameters: int,
    *,
    layers: Sequence[int],
    lowest_aim: int,
    weight_bytes: int,
    metric_bytes: int = 8,
    caches_keys: bool = False,
    trains: bool = False,
) -> MemoryPlan:
    """The memory that editing `layers` of a model takes.

    **Arguments**

    - `parameters`: numbers in the model, each of `weight_bytes`.
    - `lowest_aim`: the lowest layer whose values are optimised: activations of all layers above are stored.
    - `metric_bytes`: of one number of B; 4 with metric_dtype=float32.
    - `caches_keys`: whether the method caches past keys.
    - `trains`: whether it trains one weight instead, by Adam, and needs no metric.
    """
    count, square, matrix = len(set(layers)), structure.d_ff**2, structure.d_model * structure.d_ff
    metrics = 0 if trains else count * metric_bytes * square
    return MemoryPlan(
        weights=parameters * weight_bytes,
        metrics=metrics,
        initial=metrics if caches_keys else 0,
        moments=0 if trains else count * 8 * square,
        inverting=0 if trains else 3 * 8 * square,
        # Two sums in float32 in addition to the change itself; for training, its gradient and Adam's two means.
        changing=count * weight_bytes * matrix + (5 if trains else 3) * 4 * matrix,
        # Fewer tokens in a pass still run, and slower; a GPU takes more where it has room.
        activations=CPU_GRADIENT_TOKENS * gradient_numbers(structure, lowest_aim) * weight_bytes,
    )


def value_flops(structure: Structure, *, layer_weights: int, vocabulary: int, aims: Sequence[int], evaluations: int) -> float:
    """The FLOPs of optimising the values of one typical fact at the layers `aims`, without early stop.

    Each evaluation runs the tokens from the subject's last one on through the layers above, forward and back to their inputs,
    4 FLOPs a weight, for every prompt and the one of the divergence; and the head where the loss looks.
    """
    above = sum(structure.depth - 1 - aim for aim in aims)
    layers = above * (_PROMPTS + 1) * _SUFFIX * 4 * layer_weights
    head = len(aims) * 4 * (_PROMPTS * _TARGET + 1) * structure.d_model * vocabulary
    return float(evaluations * (layers + head))


def gigabytes(count: float) -> str:
    """Bytes in gigabytes (10^9), or smaller units, for people."""
    size, unit = next(((size, unit) for size, unit in ((1e9, "GB"), (1e6, "MB")) if count >= size), (1e3, "kB"))
    return f"{count / size:.3g} {unit}"
