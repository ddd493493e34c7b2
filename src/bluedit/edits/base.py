"""What an edit is: something done to a model that can be applied, reverted bit for bit, saved, loaded and described.

An edit is one `.safetensors` file with its manifest in the metadata, or a folder with `patch.safetensors` and `patch.json`. The
manifest says what was edited, how, and on which model. Nothing in it is ever executed.

:class:`~bluedit.edits.patch.Patch` changes weights. Other kinds subclass :class:`Edit`: they may install something
in addition to the weights (:meth:`Edit.attach`), and are found by the `kind` in their manifest when they are loaded.
"""

from __future__ import annotations

import contextlib
import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from bluedit.edits.applied import Applied, position
from bluedit.edits.changes import Change
from bluedit.edits.manifest import FORMAT_VERSION, Manifest
from bluedit.errors import DamagedFileError, PatchError, first_line
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.storage.documents import document_text, parse_object
from bluedit.storage.files import OutputKind, atomic_file, atomic_folder, writable_target
from bluedit.storage.hashes import DIGEST, check_seal, hash_tensors, seal
from bluedit.storage.parsing import read_text, validation_problem
from bluedit.storage.tensors import check_hashes

__all__ = [
    "PATCH",
    "Edit",
    "Stored",
    "applied_patches",
    "arrange",
    "merge",
    "original_weights",
    "read_stored",
    "registered",
    "restore_applied",
    "revert",
    "settled",
    "weights_without",
]

_TENSORS = "patch.safetensors"
_HASHES = "hashes"
MANIFEST_NAME = "patch.json"
"""The manifest's file in a patch folder."""


def _owned(path: Path) -> tuple[str, ...] | None:
    try:
        document = _read_manifest(path)
    except PatchError:
        return None
    return (MANIFEST_NAME, _TENSORS) if document.get("format") == "bluedit-patch" else None


PATCH = OutputKind("a patch that bluedit wrote", _owned)
"""What is replaced by a patch where that is asked for."""


_KINDS: dict[str, type[Edit]] = {}
"""The classes of edits by what manifests call them."""


class Edit(ABC):
    """Something done to a model: :func:`bluedit.edit` returns one and leaves the model as it was.

    - `kind`: what manifests call this class.
    - `manifest`: what was edited, how, and on which model.
    - `changes`: the changes of weights by the weight's name; empty for edits that touch none.
    """

    kind: ClassVar[str]
    manifest: Manifest
    changes: Mapping[str, Change]
    _stored_digest: str | None = None

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "kind" in cls.__dict__:
            _KINDS[cls.kind] = cls

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of the weights that it touches."""
        return tuple(self.changes)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The edited facts, in order."""
        return tuple(Fact(**record.model_dump()) for record in self.manifest.facts)

    # -- what a kind of edit defines -------------------------------------------------------------------------

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name, on the CPU."""

    @classmethod
    @abstractmethod
    def read(cls, manifest: Manifest, tensors: Mapping[str, Tensor], source: Path, *, hashed: bool) -> Self:
        """The edit that :meth:`tensors` and its manifest stand for; `source` is for messages, `hashed` whether every number was
        checked against a hash.

        **Raises** :class:`~bluedit.errors.PatchError` when they do not fit each other.
        """

    @classmethod
    def merged(cls, edits: Sequence[Edit]) -> Edit:
        """One edit that does what these do, applied one after the other.

        **Raises** :class:`~bluedit.errors.PatchError` where that cannot be.
        """
        raise PatchError(f"edits of kind {cls.kind!r} cannot be merged; apply them one after the other")

    def attach(self, network: PreTrainedModel) -> Callable[[], object] | None:
        """Install what is not a change of a weight, a hook for instance; returns what takes it off again. None for nothing."""
        del network
        return None

    def check_fit(self, network: PreTrainedModel, *, check: bool) -> None:
        """**Raises** :class:`~bluedit.errors.PatchError` when it was not made for this model. `check`: look at the model's
        numbers too."""
        del network, check

    def redescribed(self, **entries: Any) -> Self:
        """The same edit with some entries of its manifest replaced."""
        one = copy.copy(self)
        object.__setattr__(one, "manifest", self.manifest.model_copy(update=entries))
        object.__setattr__(one, "_stored_digest", None)
        return one

    def summary(self) -> dict[str, Any]:
        """What `bluedit patch show` prints."""
        return self.manifest.model_dump(mode="json")

    # -- applying --------------------------------------------------------------------------------------------

    def apply(self, model: EditableModel | PreTrainedModel, *, check: bool = True) -> None:
        """Add the changes to the model's weights, in place, and install the rest. The original bits are stored for
        :meth:`revert`.

        **Arguments**

        - `check`: refuse a model whose weights are not the ones the edit was computed on.

        **Raises** :class:`~bluedit.errors.PatchError` when the edit does not fit, before anything is changed. When
        anything fails on the way the weights are restored.
        """
        network = _network(model)
        self.check_fit(network, check=check)
        Applied.of(network).push(self)

    def revert(self, model: EditableModel | PreTrainedModel) -> None:
        """Take the edit back: the weights are, bit for bit, what the other applied edits make of the originals.

        **Raises** :class:`~bluedit.errors.PatchError` when this edit is not applied to this model object.
        """
        revert([self], model)

    @contextlib.contextmanager
    def applied(self, model: EditableModel | PreTrainedModel, *, check: bool = True) -> Generator[None]:
        """The edit applied inside a `with` block, and reverted after it, on exceptions too."""
        self.apply(model, check=check)
        try:
            yield
        finally:
            self.revert(model)

    # -- files -----------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, replace: bool = False) -> Path:
        """Write the patch: one file when the name ends in `.safetensors`, else a folder. Appears whole or not at all.

        **Raises** :class:`~bluedit.errors.InputError` when something is there already and `replace` is not set.
        """
        target = writable_target(Path(path).expanduser(), replace=replace, kind=PATCH)
        tensors = self.tensors()
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
        """The hash of manifest and tensors together, as it stands in the manifest of the saved edit."""
        return self._stored_digest or seal(self._document(self.tensors()))[DIGEST]

    def _document(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The manifest as it is stored, with the hashes of the tensors."""
        manifest = json.loads(self.manifest.model_dump_json())
        if self.kind == "weights":
            del manifest["kind"]  # what a manifest without one is
        return {**manifest, "format_version": FORMAT_VERSION, _HASHES: hash_tensors(tensors)}

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an edit of this kind from a file or folder written by :meth:`save`.

        Every number is checked against the hashes in the manifest. Version 1 of the format has none: its changes are checked
        for the norms that it records, and a warning says so.

        **Raises** :class:`~bluedit.errors.PatchError` when it is missing, damaged, of another kind or of a later format.
        """
        stored = read_stored(path)
        if stored.manifest.kind != cls.kind:
            raise PatchError(f"{path} is an edit of kind {stored.manifest.kind!r}, not {cls.kind!r}")
        return cls.of(stored)

    @classmethod
    def of(cls, stored: Stored) -> Self:
        """The edit that a file holds; its kind was looked at."""
        edit = cls.read(stored.manifest, stored.tensors, stored.source, hashed=stored.digest is not None)
        object.__setattr__(edit, "_stored_digest", stored.digest)
        return edit


@dataclass(frozen=True)
class Stored:
    """What a file or folder of an edit holds, checked against its hashes; version 1 has none, and no digest."""

    source: Path
    manifest: Manifest
    tensors: Mapping[str, Tensor]
    digest: str | None


def read_stored(path: str | Path) -> Stored:
    """Read the file or folder of an edit.

    **Raises** :class:`~bluedit.errors.PatchError` when it is missing, damaged or of a later format.
    """
    source = Path(path).expanduser()
    try:
        tensors, document, digest = _read_files(source)
        return Stored(source, Manifest.model_validate(document), tensors, digest if _HASHES in document else None)
    except DamagedFileError as error:
        raise PatchError(f"{error}; copy it again, or make the edit again") from error
    except ValidationError as error:
        raise PatchError(f"{source} is not a readable patch: its manifest is wrong at {validation_problem(error)}") from error


def registered() -> Mapping[str, type[Edit]]:
    """The classes of edits that are loaded, by what manifests call them."""
    return _KINDS


def merge(edits: Sequence[Edit]) -> Edit:
    """One edit that does what these do, applied one after the other; all of one sequence on one model.

    **Raises** :class:`~bluedit.errors.PatchError` when there are none, or they were made with different methods or settings.
    """
    if not edits:
        raise PatchError("there is no patch to merge; apply a batch first")
    if any(type(one) is not type(edits[0]) for one in edits):
        raise PatchError("edits of different kinds cannot be merged; apply them one after the other")
    return type(edits[0]).merged(edits)


def revert(patches: Sequence[Edit], model: EditableModel | PreTrainedModel) -> None:
    """Take several patches back at once, as :meth:`Edit.revert` does one; the ones that stay are added to the originals once.

    **Raises** :class:`~bluedit.errors.PatchError` when one of them is not applied to this model object; none is then taken
    back.
    """
    applied = Applied.of(_network(model))
    remaining = list(applied.patches)
    for patch in reversed(patches):
        del remaining[position(patch, remaining)]
    applied.arrange(remaining)


def arrange(patches: Sequence[Edit], model: EditableModel | PreTrainedModel) -> None:
    """Make the model hold these patches, in this order, and no others: what they make of the originals, all or nothing."""
    Applied.of(_network(model)).arrange(patches)


@contextlib.contextmanager
def settled(model: EditableModel | PreTrainedModel, edits: Sequence[Edit]) -> Generator[None]:
    """The model with these edits as its own while the block runs: nothing there knows of them, and nothing takes them back.

    Afterwards the model holds the edits that it held before, bit for bit.
    """
    network = _network(model)
    before = applied_patches(network)
    arrange(edits, network)
    try:
        with Applied.hidden(network):
            yield
    finally:
        arrange(before, network)


def weights_without(patches: Sequence[Edit], names: Iterable[str], model: EditableModel | PreTrainedModel) -> dict[str, Tensor]:
    """Copies of the model's weights, by name, as they would be without these patches; the model is left as it is."""
    return Applied.of(_network(model)).without(patches, names)


def applied_patches(model: EditableModel | PreTrainedModel) -> tuple[Edit, ...]:
    """The patches that are applied to this model object, oldest first."""
    return tuple(Applied.of(_network(model)).patches)


def original_weights(model: EditableModel | PreTrainedModel) -> dict[str, Tensor]:
    """The weights that applied patches changed, as they were before the first of them."""
    return dict(Applied.of(_network(model)).originals)


def restore_applied(model: EditableModel | PreTrainedModel, patches: Sequence[Edit], originals: Mapping[str, Tensor]) -> None:
    """Tell a model object that `patches` are applied to it already, over `originals`.

    **Raises** :class:`~bluedit.errors.PatchError` when the two together do not make the weights that the model holds.
    """
    Applied.restore(_network(model), patches, originals)


def _network(model: EditableModel | PreTrainedModel) -> PreTrainedModel:
    return model.model if isinstance(model, EditableModel) else model


def _read_files(source: Path) -> tuple[dict[str, Tensor], dict[str, Any], str | None]:
    """The tensors of a patch, and its manifest with the hashes that these were checked against, if it has any."""
    document = _read_manifest(source)
    kind, version = document.get("format"), document.get("format_version")
    if kind != "bluedit-patch" or not isinstance(version, int) or version > FORMAT_VERSION:
        raise PatchError(f"{source} is {kind} version {version}; this bluedit reads bluedit-patch up to {FORMAT_VERSION}")
    digest = document.get(DIGEST)
    document = check_seal(document, source, required=_HASHES in document or version > 1)
    path = source if source.is_file() else source / _TENSORS
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFileError(path, f"cannot be read: {error}") from error
    if (hashes := document.get(_HASHES)) is not None:
        check_hashes(tensors, hashes, path)
    return tensors, document, digest


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
            raise PatchError(f"{source} is not a patch: it has no manifest; bluedit edit writes files that do")
        return parse_object(metadata["manifest"], source)
    except PatchError:
        raise
    except DamagedFileError as error:
        raise PatchError(f"{error.source} is not a readable patch: it {error.problem}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise PatchError(f"{source} is not a readable patch: {first_line(error)}") from error
