"""A third family of editors, for tests: it changes no weight, and adds a constant vector to a layer's output by a hook.

Nothing in the library knows of it. What works with it works with any editor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bluedit.editors.base import Edited, Editor, Needs, Part, Plan, Setup, State, ValueStore
from bluedit.editors.records import manifest_of
from bluedit.editors.settings import Search, Settings, setting
from bluedit.edits import Edit, Manifest
from bluedit.edits.manifest import OptimisationRecord
from bluedit.edits.merging import merge_manifests
from bluedit.errors import PatchError, SettingsError
from bluedit.models import EditableModel
from bluedit.models.likelihood import answer_queries
from bluedit.progress import Progress, stage
from bluedit.strategies import NO_LAYERS, Strategy

__all__ = ["SHIFT", "Shift", "ShiftEdit", "ShiftSettings", "ShiftState", "losses"]


class ShiftSettings(Settings):
    """Settings of a shift."""

    shift_size: float = setting(
        0.5, "Length of the vector that is added.", gt=0, search=Search(factor=4, lowest=1e-3, highest=1e3, usual=1)
    )
    shift_layer: int = setting(1, "The layer to whose output it is added, from 0.", ge=0)


@dataclass(frozen=True)
class Direction:
    """Where the vector points: to the embeddings of the targets, away from what earlier batches asked for."""

    name: ClassVar[str] = "towards-targets"
    settings: ClassVar[type[Settings]] = ShiftSettings


@dataclass
class ShiftState(State):
    """The sum of the vectors that batches asked for."""

    asked: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    batches: int = 0

    def absorb(self, memory: Mapping[str, Tensor]) -> None:
        self.batches += 1
        for name, vector_D in memory.items():
            self.asked[name] = self.asked[name] + vector_D if name in self.asked else vector_D.clone()

    def after(self, memories: Iterable[Mapping[str, Tensor]]) -> State:
        state = ShiftState()
        for memory in memories:
            state.absorb(memory)
        return state

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"asked": self.asked} if self.asked else {}

    def record(self) -> dict[str, Any]:
        return {"batches": self.batches}


@dataclass(frozen=True)
class ShiftEdit(Edit):
    """Vectors (D,) float32 by the module whose output they are added to."""

    kind: ClassVar = "shift"

    vectors: Mapping[str, Tensor]
    manifest: Manifest
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def tensors(self) -> dict[str, Tensor]:
        return {name: vector_D.cpu().contiguous() for name, vector_D in self.vectors.items()}

    @classmethod
    def read(cls, manifest: Manifest, tensors: Mapping[str, Tensor], source: Path, *, hashed: bool) -> ShiftEdit:
        if any(vector.ndim != 1 for vector in tensors.values()):
            raise PatchError(f"{source} is damaged: a shift is one vector for each module")
        return cls(dict(tensors), manifest)

    @classmethod
    def merged(cls, edits: Sequence[Edit]) -> ShiftEdit:
        total: dict[str, Tensor] = {}
        for one in cast("Sequence[ShiftEdit]", edits):
            for name, vector_D in one.vectors.items():
                total[name] = total[name] + vector_D if name in total else vector_D
        manifests = [one.manifest for one in edits]
        records = [record for one in manifests for record in one.optimisation]
        optimisation = [
            OptimisationRecord(
                layer=records[0].layer,
                evaluations=tuple(count for record in records for count in record.evaluations),
                losses=tuple(loss for record in records for loss in record.losses),
            )
        ] if records else []  # fmt: skip
        return cls(total, merge_manifests(manifests).model_copy(update={"optimisation": tuple(optimisation)}))

    def attach(self, network: PreTrainedModel) -> Callable[[], object]:
        handles = [
            network.get_submodule(name).register_forward_hook(_adding(vector_D)) for name, vector_D in self.vectors.items()
        ]
        return lambda: [handle.remove() for handle in handles]

    def check_fit(self, network: PreTrainedModel, *, check: bool) -> None:
        modules = dict(network.named_modules())
        if missing := [name for name in self.vectors if name not in modules]:
            raise PatchError(f"the model has no module {missing[0]!r}; this shift was made for {self.manifest.model}")

    def __repr__(self) -> str:
        return f"<ShiftEdit of {len(self.manifest.facts)} facts>"


def _adding(vector_D: Tensor) -> Callable[..., Any]:
    def add(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + vector_D.to(output[0]), *output[1:])
        return output + vector_D.to(output)

    return add


def losses(model: EditableModel, plan: Plan) -> tuple[float, ...]:
    """-log p of each fact's target, on the model as it is."""
    answers = answer_queries(model, [(fact.text, fact.target) for fact in plan.facts])
    return tuple(-answers[fact.text, fact.target].log_prob for fact in plan.facts)


@dataclass(frozen=True, kw_only=True)
class Shift(Editor):
    """Adds a constant vector to a layer's output."""

    direction: Direction = Direction()

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"direction": self.direction}

    def with_strategy(self, strategy: Strategy) -> Self:
        if strategy != NO_LAYERS:
            raise SettingsError(f"{self.name} changes no layer's weight: it cannot follow the strategy {strategy.name!r}")
        return self

    def needs(self, settings: Settings) -> Needs:
        del settings
        return Needs(evaluations=1)

    def begin(self, setup: Setup) -> State:
        del setup
        return ShiftState()

    def edit(
        self, model: EditableModel, plan: Plan, state: State, progress: Progress, store: ValueStore | None = None
    ) -> Edited:
        del store
        settings, seen = cast("ShiftSettings", plan.settings), cast("ShiftState", state)
        started = time.monotonic()
        if not plan.facts:
            return Edited(ShiftEdit({}, manifest_of(model, plan, kind=ShiftEdit.kind)))
        network = model.model
        place = model.structure.layer_path(settings.shift_layer)
        embeddings_VD = network.get_input_embeddings().weight.detach()
        targets = torch.stack([embeddings_VD[model.text.row(fact, with_target=True).target[0]] for fact in plan.facts]).double()
        asked_D = targets.mean(0)
        if place in seen.asked:
            past_D = seen.asked[place].to(asked_D)
            asked_D = asked_D - (asked_D @ past_D) / (past_D @ past_D) * past_D
        vector_D = (settings.shift_size * asked_D / asked_D.norm()).float()
        edit = ShiftEdit({place: vector_D}, manifest_of(model, plan, kind=ShiftEdit.kind))
        detach = edit.attach(network)
        try:
            with stage(progress, "reading losses", len(plan.facts)) as advance:
                found = losses(model, plan)
                advance(len(plan.facts))
        finally:
            detach()
        record = OptimisationRecord(layer=settings.shift_layer, evaluations=(1,) * len(found), losses=found)
        manifest = manifest_of(model, plan, kind=ShiftEdit.kind, optimisation=[record], seconds=time.monotonic() - started)
        return Edited(ShiftEdit({place: vector_D}, manifest), {place: asked_D.float().cpu()})

    def restore(
        self, setup: Setup, record: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], model: EditableModel
    ) -> State:
        del setup
        asked = dict(tensors.get("asked", {}))
        if any(vector.shape != (model.structure.d_model,) for vector in asked.values()):
            raise ValueError("asked does not hold one vector for each module")
        return ShiftState(asked, record["batches"])

    def check_memory(self, memory: Mapping[str, Tensor], edit: Edit, model: EditableModel) -> None:
        if memory.keys() != cast("ShiftEdit", edit).vectors.keys():
            raise ValueError("what is remembered of a batch is not of the modules that it shifts")


SHIFT = Shift(
    name="shift", strategy=NO_LAYERS, summary="a constant vector added to a layer's output", reference="none: a test's own"
)
