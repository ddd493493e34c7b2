"""A patch: an edit as a small file that can be looked at, applied, and taken back bit for bit.

A patch is one `.safetensors` file with its manifest in the metadata, or a folder with `patch.safetensors` and `patch.json`.
Per weight it holds the parts of its :class:`~bluedit.patches.Change`; the manifest says what was edited, how, and on which
model. Nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from bluedit.errors import DamagedFileError, PatchError, first_line
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.models.chat import Chat
from bluedit.models.editable import tensor_fingerprint
from bluedit.models.matrices import oriented
from bluedit.patches.changes import Change, LowRank, Masked, read_change, total
from bluedit.precision import all_finite
from bluedit.storage.documents import document_text, parse_object
from bluedit.storage.files import OutputKind, atomic_file, atomic_folder, writable_target
from bluedit.storage.hashes import DIGEST, check_seal, hash_tensors, seal
from bluedit.storage.parsing import read_text, validation_problem
from bluedit.storage.tensors import check_hashes

__all__ = ["PATCH", "Manifest", "Patch", "WeightRecord", "applied_patches", "merge"]

FORMAT_VERSION = 2
"""Version 2 has hashes of all tensors, and one of the manifest."""
_TENSORS = "patch.safetensors"
_HASHES = "hashes"
MANIFEST_NAME = "patch.json"
"""The manifest's file in a patch folder."""
_LEDGER = "_bluedit_ledger"
_REBUILT_TOLERANCE = 1e-3
_NORM_TOLERANCE = 1e-5


def _owned(path: Path) -> tuple[str, ...] | None:
    try:
        document = _read_manifest(path)
    except PatchError:
        return None
    return (MANIFEST_NAME, _TENSORS) if document.get("format") == "bluedit-patch" else None


PATCH = OutputKind("a patch that bluedit wrote", _owned)
"""What is replaced by a patch where that is asked for."""


class FactRecord(BaseModel):
    """One edited fact."""

    model_config = ConfigDict(frozen=True)

    id: str
    prompt: str
    subject: str
    target: str
    relation: str | None = None


class WeightRecord(BaseModel):
    """One changed weight: its layer, the hash of what it was, and how large the change is."""

    model_config = ConfigDict(frozen=True)

    layer: int
    before: str
    norm: float
    relative_norm: float
    condition: float | None = None
    """Condition number of the prior metric, where it has one."""
    null_space_rank: int | None = None
    """How many directions of the keys' null space the change could use (AlphaEdit)."""
    rounding: float | None = None
    """||rounded(W + D) - W - D|| / ||D||: what a half-precision weight loses of the change; None in wider weights, and for sums
    of patches."""


class OptimisationRecord(BaseModel):
    """What value optimisation did at one layer, fact by fact."""

    model_config = ConfigDict(frozen=True)

    layer: int
    evaluations: tuple[int, ...]
    losses: tuple[float, ...]


class Manifest(BaseModel):
    """Everything about a patch but its tensors; the JSON file beside them."""

    model_config = ConfigDict(frozen=True)

    format: str = "bluedit-patch"
    format_version: int = FORMAT_VERSION
    model: str
    """Name or folder the model was loaded from; information only."""
    configuration: str
    """Hash of the model's configuration."""
    method: str
    strategy: str
    layers: tuple[int, ...]
    """The critical layers that were asked for; `weights` are those that changed."""
    settings: dict[str, Any]
    templates: tuple[str, ...]
    chat: Chat | None = None
    """The chat template around every prompt; None for plain prompts."""
    seed: int
    corpus: str | None = None
    facts: tuple[FactRecord, ...]
    batches: tuple[int, ...] = ()
    """How many facts each batch held, in a patch that stands for a sequence."""
    columns: Literal["facts", "directions"] = "facts"
    """What a column of low-rank factors belongs to; a restraint on the whole change leaves singular directions."""
    weights: dict[str, WeightRecord]
    optimisation: tuple[OptimisationRecord, ...] = ()
    seconds: float = 0.0
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Patch:
    """The result of an edit: changes by weight name, and the manifest that explains them.

    :func:`bluedit.edit` returns one and leaves the model as it was; :meth:`apply` is a separate act.
    """

    changes: Mapping[str, Change]
    manifest: Manifest

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The edited facts, in the order of the columns."""
        return tuple(Fact(**record.model_dump()) for record in self.manifest.facts)

    # -- applying --------------------------------------------------------------------------------------------

    def apply(self, model: EditableModel | PreTrainedModel, *, check: bool = True) -> None:
        """Add the changes to the model's weights, in place. The original bits are kept for :meth:`revert`.

        **Arguments**

        - `check`: refuse a model whose weights are not the ones the patch was computed on.

        **Raises** :class:`~bluedit.errors.PatchError` when the patch does not fit, before anything is changed. When
        anything fails on the way the weights are put back.
        """
        network = _network(model)
        self._check_fit(network, check=check)
        ledger = _Ledger.of(network)
        ledger.push(self)

    def revert(self, model: EditableModel | PreTrainedModel) -> None:
        """Take the patch back: the weights are, bit for bit, what the other applied patches make of the originals.

        **Raises** :class:`~bluedit.errors.PatchError` when this patch is not applied to this model object.
        """
        revert([self], model)

    @contextlib.contextmanager
    def applied(self, model: EditableModel | PreTrainedModel, *, check: bool = True) -> Generator[None]:
        """The patch applied inside a `with` block, and reverted after it, on exceptions too."""
        self.apply(model, check=check)
        try:
            yield
        finally:
            self.revert(model)

    def _check_fit(self, network: PreTrainedModel, *, check: bool) -> None:
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

    # -- files -----------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, replace: bool = False) -> Path:
        """Write the patch: one file when the name ends in `.safetensors`, else a folder. Appears whole or not at all.

        **Raises** :class:`~bluedit.errors.InputError` when something is there already and `replace` is not set.
        """
        target = writable_target(Path(path).expanduser(), replace=replace, kind=PATCH)
        tensors = self._tensors()
        text = document_text(self._document(tensors))
        if target.suffix == ".safetensors":
            with atomic_file(target, replace=replace) as temporary:
                save_file(tensors, temporary, metadata={"manifest": text})
        else:
            with atomic_folder(target, replace=PATCH if replace else None) as folder:
                save_file(tensors, folder / _TENSORS, metadata={"format": "bluedit-patch"})
                (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
        return target

    @property
    def digest(self) -> str:
        """The hash of manifest and tensors together, as it stands in the manifest of a saved patch."""
        return seal(self._document(self._tensors()))[DIGEST]

    def _tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {
            f"{name}.{part}": value.detach().cpu().contiguous()
            for name, change in self.changes.items()
            for part, value in change.tensors().items()
        }

    def _document(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The manifest as it is stored, with the hashes of the tensors."""
        manifest = json.loads(self.manifest.model_dump_json())
        return {**manifest, "format_version": FORMAT_VERSION, _HASHES: hash_tensors(tensors)}

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read a patch from a file or folder written by :meth:`save`.

        Every number is checked against the hashes in the manifest. Version 1 of the format has none: its changes are checked
        for the norms that it records, and a warning says so.

        **Raises** :class:`~bluedit.errors.PatchError` when it is missing, damaged or of a later format.
        """
        source = Path(path).expanduser()
        try:
            tensors, document = _read_files(source)
            hashed = _HASHES in document
            manifest = Manifest.model_validate(document)
        except DamagedFileError as error:
            raise PatchError(f"{error}; copy it again, or make the edit again") from error
        except ValidationError as error:
            raise PatchError(
                f"{source} is not a readable patch: its manifest is wrong at {validation_problem(error)}"
            ) from error
        changes = {name: _read_change(name, tensors, source) for name in manifest.weights}
        columns = {_columns(change) for change in changes.values()} - {None}
        if manifest.columns == "facts" and columns - {len(manifest.facts)}:
            raise PatchError(
                f"{source} is damaged: its manifest names {len(manifest.facts)} facts, its factors have other columns"
            )
        if any(len(record.evaluations) != len(manifest.facts) for record in manifest.optimisation):
            raise PatchError(f"{source} is damaged: its record of the optimisation is not one of {len(manifest.facts)} facts")
        if len(tensors) != sum(len(change.tensors()) for change in changes.values()):
            raise PatchError(f"{source} holds tensors that its manifest does not name; it was put together wrongly")
        if not hashed:
            _check_norms(changes, manifest, source)
        return cls(changes, manifest)

    # -- looking ---------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """What `bluedit patch show` prints: the manifest, with rank and size per weight."""
        record = self.manifest.model_dump(mode="json")
        for name, change in self.changes.items():
            record["weights"][name] |= {"kind": change.kind, "rank": change.rank, "bytes": change.nbytes}
        return record

    def __repr__(self) -> str:
        edited = ", ".join(str(record.layer) for record in self.manifest.weights.values())
        return f"<Patch of {len(self.manifest.facts)} facts: {self.manifest.method}, {self.manifest.strategy}, layers {edited}>"


@dataclass
class _Ledger:
    """What has been applied to one model object, kept on that object: the original bits, and the patches in order."""

    network: PreTrainedModel
    originals: dict[str, Tensor]
    patches: list[Patch]

    @classmethod
    def of(cls, network: PreTrainedModel) -> _Ledger:
        ledger = getattr(network, _LEDGER, None)
        if ledger is None:
            ledger = cls(network, {}, [])
            setattr(network, _LEDGER, ledger)
        return ledger

    def push(self, patch: Patch) -> None:
        before = self._snapshot(patch.changes)
        try:
            with torch.no_grad():
                for name in patch.changes:
                    self._add(patch, name)
        except BaseException:
            self._write(before)
            raise
        for name, tensor in before.items():
            self.originals.setdefault(name, tensor)
        self.patches.append(patch)

    def arrange(self, patches: Sequence[Patch]) -> None:
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
        except BaseException:
            self._write(before)
            raise
        self.patches = list(patches)
        still_changed = {name for patch in patches for name in patch.changes}
        self.originals = {
            name: original for name, original in originals.items() if name in still_changed and original is not None
        }

    def without(self, patches: Sequence[Patch], names: Iterable[str]) -> dict[str, Tensor]:
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

    def _add(self, patch: Patch, name: str) -> None:
        weight = self.network.get_parameter(name)
        patch.changes[name].add_to(oriented(self.network, name, weight))
        if not all_finite(weight.detach()):
            dtype = str(weight.dtype).removeprefix("torch.")
            raise PatchError(
                f"{name} would not be finite with this patch: its numbers do not fit {dtype}; load the model in float32 "
                "(--dtype float32), or look at the patch"
            )


def _history(name: str, patches: Sequence[Patch]) -> list[int]:
    return [id(patch) for patch in patches if name in patch.changes]


def _position(patch: Patch, applied: Sequence[Patch]) -> int:
    """Where a patch is among those applied: the object itself, else the last one like it."""
    same = [position for position, other in enumerate(applied) if other is patch]
    same = same or [position for position, other in enumerate(applied) if other.manifest == patch.manifest]
    if not same:
        raise PatchError("this patch is not applied to this model; apply it first, or reload the model to be rid of it")
    return same[-1]


def revert(patches: Sequence[Patch], model: EditableModel | PreTrainedModel) -> None:
    """Take several patches back at once, as :meth:`Patch.revert` does one; the ones that stay are added to the originals once.

    **Raises** :class:`~bluedit.errors.PatchError` when one of them is not applied to this model object; none is then taken
    back.
    """
    ledger = _Ledger.of(_network(model))
    remaining = list(ledger.patches)
    for patch in reversed(patches):
        del remaining[_position(patch, remaining)]
    ledger.arrange(remaining)


def arrange(patches: Sequence[Patch], model: EditableModel | PreTrainedModel) -> None:
    """Make the model hold these patches, in this order, and no others: what they make of the originals, all or nothing."""
    _Ledger.of(_network(model)).arrange(patches)


def weights_without(
    patches: Sequence[Patch], names: Iterable[str], model: EditableModel | PreTrainedModel
) -> dict[str, Tensor]:
    """Copies of the model's weights, by name, as they would be without these patches; the model is left as it is."""
    return _Ledger.of(_network(model)).without(patches, names)


def applied_patches(model: EditableModel | PreTrainedModel) -> tuple[Patch, ...]:
    """The patches that are applied to this model object, oldest first."""
    return tuple(_Ledger.of(_network(model)).patches)


def original_weights(model: EditableModel | PreTrainedModel) -> dict[str, Tensor]:
    """The weights that applied patches changed, as they were before the first of them."""
    return dict(_Ledger.of(_network(model)).originals)


def restore_ledger(model: EditableModel | PreTrainedModel, patches: Sequence[Patch], originals: Mapping[str, Tensor]) -> None:
    """Tell a model object that `patches` are applied to it already, over `originals`.

    **Raises** :class:`~bluedit.errors.PatchError` when the two together do not make the weights that the model holds.
    """
    network = _network(model)
    parameters = dict(network.named_parameters())
    changed = {name for patch in patches for name in patch.changes}
    if set(originals) != changed or not changed <= parameters.keys():
        raise PatchError("the record of applied patches does not name this model's weights; it belongs to another checkpoint")
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
    setattr(
        network,
        _LEDGER,
        _Ledger(network, {name: tensor.to(parameters[name]) for name, tensor in originals.items()}, list(patches)),
    )


def merge(patches: Sequence[Patch]) -> Patch:
    """One patch that does what these do, applied one after the other; all of one sequence on one model.

    Low-rank changes are put side by side, so column n is still fact n's. Hashes are those that the first patch of each
    weight found.

    **Raises** :class:`~bluedit.errors.PatchError` when there are none, or they were made with different methods or settings.
    """
    if not patches:
        raise PatchError("there is no patch to merge; apply a batch first")
    manifests = [patch.manifest for patch in patches]
    first = manifests[0]
    same = ("configuration", "method", "strategy", "layers", "settings", "templates", "chat", "corpus")
    if differing := [name for name in same if any(getattr(one, name) != getattr(first, name) for one in manifests)]:
        raise PatchError(f"patches with different {differing[0]} are not one sequence; apply them one after the other instead")
    changes: dict[str, Change] = {}
    weights: dict[str, WeightRecord] = {}
    for name in dict.fromkeys(name for patch in patches for name in patch.changes):
        # A batch without facts changes nothing; all others of a sequence change the same weights.
        changes[name] = total([patch.changes[name] for patch in patches if name in patch.changes])
        record = next(one.weights[name] for one in manifests if name in one.weights)
        norm = changes[name].norm()
        sizes = [one.weights[name] for one in manifests if name in one.weights and one.weights[name].relative_norm]
        relative = norm * sizes[0].relative_norm / sizes[0].norm if sizes else 0.0
        weights[name] = record.model_copy(update={"norm": norm, "relative_norm": relative, "rounding": None})
    by_layer: dict[int, list[OptimisationRecord]] = {}
    for record in (record for one in manifests for record in one.optimisation):
        by_layer.setdefault(record.layer, []).append(record)
    optimisation = tuple(
        OptimisationRecord(
            layer=layer,
            evaluations=tuple(count for record in records for count in record.evaluations),
            losses=tuple(loss for record in records for loss in record.losses),
        )
        for layer, records in by_layer.items()
    )
    update: dict[str, Any] = {
        "facts": tuple(fact for one in manifests for fact in one.facts),
        "columns": "facts" if all(one.columns == "facts" for one in manifests) else "directions",
        "batches": tuple(count for one in manifests for count in one.batches or (len(one.facts),)),
        "weights": weights,
        "optimisation": optimisation,
        "seconds": round(sum(one.seconds for one in manifests), 3),
    }
    return Patch(changes, first.model_copy(update=update))


def _network(model: EditableModel | PreTrainedModel) -> PreTrainedModel:
    return model.model if isinstance(model, EditableModel) else model


def _read_files(source: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a patch, and its manifest with the hashes that these were checked against, if it has any."""
    document = _read_manifest(source)
    kind, version = document.get("format"), document.get("format_version")
    if kind != "bluedit-patch" or not isinstance(version, int) or version > FORMAT_VERSION:
        raise PatchError(f"{source} is {kind} version {version}; this bluedit reads bluedit-patch up to {FORMAT_VERSION}")
    document = check_seal(document, source, required=_HASHES in document or version > 1)
    path = source if source.is_file() else source / _TENSORS
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFileError(path, f"cannot be read: {error}") from error
    if (hashes := document.get(_HASHES)) is not None:
        check_hashes(tensors, hashes, path)
    return tensors, document


def _read_manifest(source: Path) -> dict[str, Any]:
    """The manifest of a patch as it stands in its file.

    **Raises** :class:`~bluedit.errors.PatchError` where there is none.
    """
    if not source.exists():
        raise PatchError(f"there is no patch at {source}: no such file or folder")
    try:
        if source.is_dir():
            if not (source / _TENSORS).is_file():
                raise PatchError(f"{source} is not a patch: it is a folder without {_TENSORS}")
            return parse_object(read_text(source / MANIFEST_NAME), source / MANIFEST_NAME)
        with safe_open(source, "pt") as file:
            metadata = file.metadata() or {}
        if "manifest" not in metadata:
            raise PatchError(f"{source} is no patch: it has no manifest; bluedit edit writes files that do")
        return parse_object(metadata["manifest"], source)
    except PatchError:
        raise
    except DamagedFileError as error:
        raise PatchError(f"{error.source} is not a readable patch: it {error.problem}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise PatchError(f"{source} is not a readable patch: {first_line(error)}") from error


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
