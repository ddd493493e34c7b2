"""What is applied to a model object: the original bits, and the patches in order. Stored on that object."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bluedit.edits.changes import Change
from bluedit.edits.manifest import Manifest
from bluedit.errors import PatchError
from bluedit.models.layout.matrices import oriented
from bluedit.precision import all_finite

__all__ = ["Applied", "Recorded", "position"]

_APPLIED = "_bluedit_applied"
_REBUILT_TOLERANCE = 1e-3


class Recorded(Protocol):
    """What is kept of an edit: changes by the weight's name, and a manifest to tell one from another."""

    @property
    def changes(self) -> Mapping[str, Change]: ...
    @property
    def manifest(self) -> Manifest: ...
    def attach(self, network: PreTrainedModel) -> Callable[[], object] | None: ...


P = TypeVar("P", bound=Recorded)


@dataclass
class Applied(Generic[P]):
    """What has been applied to one model object, stored on that object: the original bits, and the patches in order."""

    network: PreTrainedModel
    originals: dict[str, Tensor]
    patches: list[P]
    attached: list[Callable[[], object]] = field(default_factory=list[Callable[[], object]])
    """Removes what edits installed in addition to the weights."""

    @classmethod
    def of(cls, network: PreTrainedModel) -> Applied[Any]:
        applied = getattr(network, _APPLIED, None)
        if applied is None:
            applied = cls(network, {}, [])
            setattr(network, _APPLIED, applied)
        return applied

    @classmethod
    @contextlib.contextmanager
    def hidden(cls, network: PreTrainedModel) -> Generator[None]:
        """Another, empty record in place of the model's while the block runs. What the block applies, it takes back."""
        applied = cls.of(network)
        delattr(network, _APPLIED)
        try:
            yield
        finally:
            cls.of(network).arrange([])
            setattr(network, _APPLIED, applied)

    def push(self, patch: P) -> None:
        before = self._snapshot(patch.changes)
        try:
            with torch.no_grad():
                for name in patch.changes:
                    self._add(patch, name)
            self._attach([patch])
        except BaseException:
            self._write(before)
            raise
        for name, tensor in before.items():
            self.originals.setdefault(name, tensor)
        self.patches.append(patch)

    def arrange(self, patches: Sequence[P]) -> None:
        """Make the weights what these patches, in this order, make of the originals; all or nothing."""
        names = dict.fromkeys(name for patch in (*self.patches, *patches) for name in patch.changes)
        changed = [name for name in names if _history(name, self.patches) != _history(name, patches)]
        before = self._snapshot(changed)
        originals = {name: self.originals.get(name, before.get(name)) for name in names}
        try:
            self._write({name: original for name in changed if (original := originals[name]) is not None})
            with torch.no_grad():
                for patch in patches:
                    for name in patch.changes.keys() & set(changed):
                        self._add(patch, name)
            self._attach(patches, anew=True)
        except BaseException:
            self._write(before)
            raise
        self.patches = list(patches)
        still_changed = {name for patch in patches for name in patch.changes}
        self.originals = {
            name: original for name, original in originals.items() if name in still_changed and original is not None
        }

    def _attach(self, patches: Sequence[P], *, anew: bool = False) -> None:
        """Install what edits have in addition to changes of weights, in order; with `anew`, replace what is installed."""
        added: list[Callable[[], object]] = []
        try:
            for patch in patches:
                if (detach := patch.attach(self.network)) is not None:
                    added.append(detach)
        except BaseException:
            for detach in added:
                detach()
            raise
        if anew:
            for detach in self.attached:
                detach()
            self.attached = []
        self.attached += added

    def without(self, patches: Sequence[P], names: Iterable[str]) -> dict[str, Tensor]:
        """Copies of weights as they would be without some of the patches."""
        taken = set(map(id, patches))
        weights = {name: self.originals.get(name, self.network.get_parameter(name).detach()).clone() for name in names}
        with torch.no_grad():
            for patch in (one for one in self.patches if id(one) not in taken):
                for name in patch.changes.keys() & weights.keys():
                    patch.changes[name].add_to(oriented(self.network, name, weights[name]))
        return weights

    def _snapshot(self, names: Iterable[str]) -> dict[str, Tensor]:
        return {name: self.network.get_parameter(name).detach().clone() for name in names}

    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.network.get_parameter(name).copy_(tensor)

    def _add(self, patch: P, name: str) -> None:
        weight = self.network.get_parameter(name)
        patch.changes[name].add_to(oriented(self.network, name, weight))
        if not all_finite(weight.detach()):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise PatchError(
                f"{name} would not be finite with this patch: its numbers do not fit {dtype}; load the model in float32 "
                "(--dtype float32), or look at the patch"
            )

    @classmethod
    def restore(cls, network: PreTrainedModel, patches: Sequence[P], originals: Mapping[str, Tensor]) -> None:
        """See :func:`bluedit.edits.base.restore_applied`."""
        parameters = dict(network.named_parameters())
        changed = {name for patch in patches for name in patch.changes}
        if set(originals) != changed or not changed <= parameters.keys():
            raise PatchError(
                "the record of applied patches does not name this model's weights; it belongs to another checkpoint"
            )
        for name, original in originals.items():
            if original.shape != parameters[name].shape:
                raise PatchError(f"{name} has another shape in the record than in the model; the record is damaged")
            rebuilt = original.to(parameters[name], copy=True)
            for patch in patches:
                if name in patch.changes:
                    patch.changes[name].add_to(oriented(network, name, rebuilt))
            # Products are rounded differently from machine to machine: alike is enough here, the originals are exact.
            error = (rebuilt.float() - parameters[name].float()).norm() / parameters[name].float().norm()
            if not error <= _REBUILT_TOLERANCE:  # NaN is no agreement
                raise PatchError(
                    f"{name} is not what its original and the recorded patches make: the checkpoint was changed after it was "
                    "patched, or loaded in another precision (use --dtype auto)"
                )
        kept = {name: tensor.to(parameters[name]) for name, tensor in originals.items()}
        applied = cls(network, kept, list(patches))
        applied._attach(patches)
        setattr(network, _APPLIED, applied)


def _history(name: str, patches: Sequence[Recorded]) -> list[int]:
    return [id(patch) for patch in patches if name in patch.changes]


def position(patch: Recorded, applied: Sequence[Recorded]) -> int:
    """Where a patch is among those applied: the object itself, else the last one like it."""
    same = [position for position, other in enumerate(applied) if other is patch]
    same = same or [position for position, other in enumerate(applied) if other.manifest == patch.manifest]
    if not same:
        raise PatchError("this patch is not applied to this model; apply it first, or reload the model to get rid of it")
    return same[-1]
