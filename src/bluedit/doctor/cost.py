"""What an edit of a model would take: memory by place, and time per fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bluedit.doctor.needs import edited_layers, target_layers
from bluedit.doctor.report import Check
from bluedit.editors.base import Editor
from bluedit.editors.settings import Settings
from bluedit.models.layout.structure import Structure
from bluedit.models.memory.estimate import MemoryPlan, gigabytes, plan_memory, value_flops
from bluedit.models.memory.machine import Memory, memory_of, product_speed

__all__ = ["check_memory", "estimate_time", "plan_for", "plan_line"]

_EFFICIENCY = 0.4
"""Of the matrix-product peak, in value optimisation: benchmarks/results/speed.json has 0.31 to 0.46."""


def plan_for(
    network: nn.Module, structure: Structure, method: Editor, critical: Sequence[int], settings: Settings, dtype: torch.dtype
) -> MemoryPlan:
    """The memory that an edit takes; see :func:`~bluedit.models.memory.estimate.plan_memory`."""
    needs = method.needs(settings)
    return plan_memory(
        structure,
        sum(parameter.numel() for parameter in network.parameters()),
        layers=edited_layers(method, critical),
        lowest_aim=min(target_layers(method, critical), default=0),
        weight_bytes=dtype.itemsize,
        metric_bytes=needs.metric_bytes,
        caches_keys=needs.keeps_initial,
        trains=needs.trains,
    )


def plan_line(plan: MemoryPlan, device: torch.device) -> str:
    """The plan in one line, with what there is."""
    gpu, memory = device.type == "cuda", memory_of(device)
    needed = plan.on_gpu(stored=True) if gpu else plan.on_cpu
    parts = f"weights {gigabytes(plan.weights)}, inverse metrics {gigabytes(plan.metrics)}"
    if plan.initial:
        parts += f" and as much to undo batches{' in main memory' if gpu else ''}"
    return f"memory: about {gigabytes(needed)} at most ({parts}); {memory.name} has {gigabytes(memory.total)}"


def check_memory(
    plan: MemoryPlan, method: Editor, critical: Sequence[int], settings: Settings, device: torch.device, dtype: torch.dtype
) -> Check:
    gpu = device.type == "cuda"
    memory, main = memory_of(device), memory_of(torch.device("cpu"))
    needed, first = (plan.on_gpu(stored=True), plan.on_gpu(stored=False)) if gpu else (plan.on_cpu, plan.on_cpu)
    details: dict[str, Any] = {
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": plan.as_dict(),
        "needed": needed,
        "needed_with_statistics": first,
        "needed_main_memory": plan.beside_gpu if gpu else needed,
        "total": memory.total,
        "free": memory.free,
    }
    if gpu:
        places = (_Place(memory, needed, "on the GPU"), _Place(main, plan.beside_gpu, "in main memory"))
    else:
        places = (_Place(memory, needed, "in main memory"),)
    said = "; ".join(place.said for place in places) + f" ({details['dtype']}): weights {gigabytes(plan.weights)}, "
    if plan.metrics:
        said += f"inverse metrics {gigabytes(plan.metrics)}"
        said += f" and as much again {'in main memory ' if gpu else ''}to undo batches, " if plan.initial else ", "
        said += f"{gigabytes(plan.moments + plan.inverting)} while they are made, "
    said += f"activations {gigabytes(plan.activations)}"
    helps: list[str] = []
    if dtype.itemsize > 2:
        helps.append("--dtype bfloat16")
    if plan.metrics and method.needs(settings).metric_bytes > 4:
        helps.append("--set metric_dtype=float32")
    if len(edited_layers(method, critical)) > 1:
        helps.append("fewer layers")
    helps.append("several GPUs (--device auto), or --device cpu" if gpu else "a machine with more memory")
    if any(plan.weights > place.memory.total for place in places):
        return Check("memory", "problem", f"{said}. The weights alone do not fit; what would help: {'; '.join(helps)}", details)
    if tight := [place for place in places if place.needed > place.memory.free]:
        free = ", ".join(gigabytes(place.memory.free) for place in tight)
        return Check("memory", "warning", f"{said}. Only {free} are free; what would help: {'; '.join(helps)}", details)
    if gpu and first > memory.free:
        message = f"{said}. Compute second moments in an earlier run (bluedit stats --no-measure): in the same run it would be "
        return Check("memory", "warning", message + gigabytes(first), details)
    return Check("memory", "ok", said, details)


@dataclass(frozen=True)
class _Place:
    memory: Memory
    needed: int
    where: str

    @property
    def said(self) -> str:
        total, free = gigabytes(self.memory.total), gigabytes(self.memory.free)
        return f"about {gigabytes(self.needed)} {self.where} of {total}, {free} free"


def estimate_time(
    network: nn.Module,
    structure: Structure,
    method: Editor,
    critical: Sequence[int],
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
) -> Check:
    if not critical:
        return Check("time", "ok", f"not estimated: {method.name} works on no layer's weight", {})
    layer = network.get_submodule(structure.layer_path(critical[0]))
    head: Any = network.get_output_embeddings()  # type: ignore[operator]
    speed = product_speed(device, dtype)
    needs = method.needs(settings)
    # Training runs the layers above forward and back, and the weight's own gradient with them.
    aims = tuple(critical) if needs.trains else target_layers(method, critical)
    flops = value_flops(
        structure,
        layer_weights=sum(parameter.numel() for parameter in layer.parameters() if parameter.ndim == 2),
        vocabulary=head.weight.shape[0],
        aims=aims,
        evaluations=needs.evaluations,
    )
    seconds = flops / (_EFFICIENCY * speed)
    details: dict[str, Any] = {
        "flops_per_fact": flops, "peak_flops_per_second": speed, "efficiency": _EFFICIENCY, "seconds_per_fact": seconds,
    }  # fmt: skip
    said = (
        f"roughly {_duration(seconds)} a fact: {flops:.2g} FLOPs at {_EFFICIENCY:.0%} of the {speed:.2g} FLOP/s of a matrix "
        "product here"
    )
    if needs.second_moments:
        # A Cholesky factor, and the inverse from it: F^3 multiplications and additions.
        count = len(edited_layers(method, critical))
        wide = product_speed(torch.device("cpu"), torch.float64)
        inverting = count * 2 * structure.d_ff**3 / (_EFFICIENCY * wide)
        details["seconds_inverting"] = inverting
        said += f"; once, inverting the second moments of {count} layer{'s' * (count > 1)}: {_duration(inverting)}"
    return Check("time", "ok", said, details)


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:,.{0 if seconds >= 10 * size else 1}f} {unit}"
    return f"{1000 * seconds:.0f} ms" if seconds >= 1e-3 else "less than 1 ms"
