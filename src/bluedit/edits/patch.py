"""A patch: an edit as a small file that can be looked at, applied, and taken back bit for bit.

A patch is one `.safetensors` file with its manifest in the metadata, or a folder with `patch.safetensors` and `patch.json`.
Per weight it holds the parts of its :class:`~bluedit.edits.Change`; the manifest says what was edited, how, and on which
model. Nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from bluedit.edits.changes import Change, LowRank, Masked, read_change
from bluedit.edits.ledger import Ledger, position
from bluedit.edits.manifest import FORMAT_VERSION, Manifest
from bluedit.errors import DamagedFileError, PatchError, first_line
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.models.editable import tensor_fingerprint
from bluedit.models.layout.matrices import oriented
from bluedit.storage.documents import document_text, parse_object
from bluedit.storage.files import OutputKind, atomic_file, atomic_folder, writable_target
from bluedit.storage.hashes import DIGEST, check_seal, hash_tensors, seal
from bluedit.storage.parsing import read_text, validation_problem
from bluedit.storage.tensors import check_hashes

__all__ = ["PATCH", "Patch", "applied_patches", "arrange", "original_weights", "restore_ledger", "revert", "weights_without"]


_TENSORS = "patch.safetensors"
_HASHES = "hashes"
MANIFEST_NAME = "patch.json"
"""The manifest's file in a patch folder."""
_NORM_TOLERANCE = 1e-5


def _owned(path: Path) -> tuple[str, ...] | None:
    try:
        document = _read_manifest(path)
    except PatchError:
        return None
    return (MANIFEST_NAME, _TENSORS) if document.get("format") == "bluedit-patch" else None


PATCH = OutputKind("a patch that bluedit wrote", _owned)
"""What is replaced by a patch where that is asked for."""


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
        ledger = Ledger.of(network)
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


def revert(patches: Sequence[Patch], model: EditableModel | PreTrainedModel) -> None:
    """Take several patches back at once, as :meth:`Patch.revert` does one; the ones that stay are added to the originals once.

    **Raises** :class:`~bluedit.errors.PatchError` when one of them is not applied to this model object; none is then taken
    back.
    """
    ledger = Ledger.of(_network(model))
    remaining = list(ledger.patches)
    for patch in reversed(patches):
        del remaining[position(patch, remaining)]
    ledger.arrange(remaining)


def arrange(patches: Sequence[Patch], model: EditableModel | PreTrainedModel) -> None:
    """Make the model hold these patches, in this order, and no others: what they make of the originals, all or nothing."""
    Ledger.of(_network(model)).arrange(patches)


def weights_without(
    patches: Sequence[Patch], names: Iterable[str], model: EditableModel | PreTrainedModel
) -> dict[str, Tensor]:
    """Copies of the model's weights, by name, as they would be without these patches; the model is left as it is."""
    return Ledger.of(_network(model)).without(patches, names)


def applied_patches(model: EditableModel | PreTrainedModel) -> tuple[Patch, ...]:
    """The patches that are applied to this model object, oldest first."""
    return tuple(Ledger.of(_network(model)).patches)


def original_weights(model: EditableModel | PreTrainedModel) -> dict[str, Tensor]:
    """The weights that applied patches changed, as they were before the first of them."""
    return dict(Ledger.of(_network(model)).originals)


def restore_ledger(model: EditableModel | PreTrainedModel, patches: Sequence[Patch], originals: Mapping[str, Tensor]) -> None:
    """Tell a model object that `patches` are applied to it already, over `originals`.

    **Raises** :class:`~bluedit.errors.PatchError` when the two together do not make the weights that the model holds.
    """
    Ledger.restore(_network(model), patches, originals)


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
        raise PatchError(f"there is no file or folder {source}; check the path")
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
