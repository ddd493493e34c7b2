"""A patch: an edit of weights, as a small file that can be inspected, applied, and reverted bit for bit.

Per weight it holds the parts of its :class:`~bluedit.edits.changes.Change`; :mod:`bluedit.edits.base` has the files.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bluedit.edits.base import Edit
from bluedit.edits.changes import Change, LowRank, Masked, read_change
from bluedit.edits.manifest import Manifest
from bluedit.edits.merging import merge_changes
from bluedit.errors import PatchError
from bluedit.models.editable import tensor_fingerprint
from bluedit.models.layout.matrices import oriented

__all__ = ["Patch"]

_NORM_TOLERANCE = 1e-5
_TARGETS = "targets."


@dataclass(frozen=True)
class Patch(Edit):
    """Changes by weight name, and the manifest that explains them.

    - `targets`: by target layer the values z that the facts were solved for, (D, N) in the order of the facts. With them,
      some of the facts can be solved again without the others (:mod:`bluedit.sessions.resolving`). Empty where no values were
      optimised (fine-tuning), and in patches before version 3.
    """

    kind: ClassVar = "weights"

    changes: Mapping[str, Change]
    manifest: Manifest
    targets: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])

    def check_fit(self, network: PreTrainedModel, *, check: bool) -> None:
        """**Raises** :class:`~bluedit.errors.PatchError` for a model without these weights, or with other numbers in them."""
        if not self.changes:
            return
        parameters = dict(network.named_parameters())
        for name, change in self.changes.items():
            if name not in parameters:
                raise PatchError(f"the model has no weight {name!r}; this patch was made for {self.manifest.model}")
            shape = tuple(oriented(network, name, parameters[name]).shape)
            if shape != change.shape:
                size = " x ".join(map(str, shape))
                raise PatchError(f"{name} is {size} in this model; the patch was made for {self.manifest.model}")
            if check and tensor_fingerprint(parameters[name]) != self.manifest.weights[name].before:
                raise PatchError(
                    f"{name} does not hold the values this patch was computed on ({self.manifest.model}): it is another "
                    "checkpoint, another precision, or patched already. Apply the patch to that model, or pass check=False "
                    "(--no-check) if you know better"
                )

    def tensors(self) -> dict[str, Tensor]:
        """The parts of every change, as `WEIGHT.PART`, and targets as `targets.LAYER`."""
        parts = {f"{name}.{part}": value for name, change in self.changes.items() for part, value in change.tensors().items()}
        parts |= {f"{_TARGETS}{layer}": value for layer, value in self.targets.items()}
        return {name: value.detach().cpu().contiguous() for name, value in parts.items()}

    @classmethod
    def read(cls, manifest: Manifest, tensors: Mapping[str, Tensor], source: Path, *, hashed: bool) -> Self:
        """The patch with these tensors."""
        changes = {name: _read_change(name, tensors, source) for name in manifest.weights}
        targets = _read_targets(manifest, tensors, source)
        columns = {_columns(change) for change in changes.values()} - {None}
        if manifest.columns == "facts" and columns - {len(manifest.facts)}:
            raise PatchError(
                f"{source} is damaged: its manifest names {len(manifest.facts)} facts, its factors have other columns"
            )
        if any(len(record.evaluations) != len(manifest.facts) for record in manifest.optimisation):
            raise PatchError(f"{source} is damaged: its record of the optimisation is not one of {len(manifest.facts)} facts")
        if len(tensors) != len(targets) + sum(len(change.tensors()) for change in changes.values()):
            raise PatchError(f"{source} holds tensors that its manifest does not name; it was assembled wrongly")
        if not hashed:
            _check_norms(changes, manifest, source)
        return cls(changes, manifest, targets)

    @classmethod
    def merged(cls, edits: Sequence[Edit]) -> Patch:
        """Low-rank changes side by side, so column n is still fact n's. Hashes are those that the first patch of each weight
        found."""
        patches = cast("Sequence[Patch]", edits)
        changes, manifest = merge_changes([(one.changes, one.manifest) for one in patches])
        with_facts = [one.targets for one in patches if one.facts]
        layers = set[int].intersection(*(set(one) for one in with_facts)) if with_facts else set()
        targets = {layer: torch.cat([one[layer] for one in with_facts], 1) for layer in sorted(layers)}
        return cls(changes, manifest, targets)

    def summary(self) -> dict[str, Any]:
        """The manifest, with rank and size per weight."""
        record = super().summary()
        for name, change in self.changes.items():
            record["weights"][name] |= {"kind": change.kind, "rank": change.rank, "bytes": change.nbytes}
        del record["kind"]
        return record

    def __repr__(self) -> str:
        edited = ", ".join(str(record.layer) for record in self.manifest.weights.values())
        return f"<Patch of {len(self.manifest.facts)} facts: {self.manifest.method}, {self.manifest.strategy}, layers {edited}>"


def _check_norms(changes: Mapping[str, Change], manifest: Manifest, source: Path) -> None:
    """Check a patch without hashes for what it does record: how large its changes are.

    **Raises** :class:`~bluedit.errors.PatchError` when one is of another size.
    """
    for name, change in changes.items():
        norm, recorded = change.norm(), manifest.weights[name].norm
        if not abs(norm - recorded) <= _NORM_TOLERANCE * max(abs(recorded), 1e-30):
            raise PatchError(
                f"{source} is damaged: the change of {name} has norm {norm:.6g}, and the manifest records {recorded:.6g}; "
                "copy it again, or make the edit again"
            )
    warnings.warn(
        f"{source} is of an earlier version, without hashes: only the norms of its changes were checked; save it again to have "
        "all of it checked from then on",
        stacklevel=3,
    )


def _read_targets(manifest: Manifest, tensors: Mapping[str, Tensor], source: Path) -> dict[int, Tensor]:
    """The stored targets by layer. **Raises** :class:`~bluedit.errors.PatchError` where they are not of these facts."""
    layers = [record.layer for record in manifest.optimisation]
    targets = {layer: tensors[f"{_TARGETS}{layer}"] for layer in layers if f"{_TARGETS}{layer}" in tensors}
    for layer, target_DN in targets.items():
        if target_DN.ndim != 2 or target_DN.shape[1] != len(manifest.facts) or not bool(torch.isfinite(target_DN).all()):
            raise PatchError(f"{source} is damaged: its targets of layer {layer} are not those of {len(manifest.facts)} facts")
    return targets


def _columns(change: Change) -> int | None:
    """How many facts a change's columns are for; None where it has no columns."""
    factors = change.factors if isinstance(change, Masked) else change
    return factors.rank if isinstance(factors, LowRank) else None


def _read_change(name: str, tensors: Mapping[str, Tensor], source: Path) -> Change:
    prefix = f"{name}."
    # Parts have no dot in their names, weights may be one another's prefix.
    parts = {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.rpartition(".")[0] == name}
    try:
        return read_change(parts)
    except ValueError as error:
        raise PatchError(f"{source} is damaged: the change of {name} cannot be read: {error}") from error
