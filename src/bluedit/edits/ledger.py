"""The ledger of a model: every edit that was made of it, in order, on disk. Nothing in it is ever overwritten.

*Concept.* Version 0 is the unedited model. Whatever is done to the model makes the next version: the edits that it has then,
in order, and the version that it came from. `undo`, `redo` and `checkout` move the head from version to version, and change
none of them. So the history of a model is a tree, and every model that ever was can be had again, bit for bit.

*Mechanism.* A folder:

| path | holds |
|---|---|
| `ledger.json` | the model, all versions, all moves of the head, and the head; with a hash |
| `patches/DIGEST.safetensors` | every edit, once, named by its digest |
| `session-N/` | a sequence of edits from version N on that is under way (:mod:`bluedit.sessions.recording`) |

An edit is written before the version that names it, and a version is there once `ledger.json` is renamed into its place, after
it was flushed. A kill at any moment leaves the state before or after. One process at a time writes; another one is refused.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers import PreTrainedModel

from bluedit.edits.base import Edit, applied_patches, arrange
from bluedit.edits.loading import load_edit
from bluedit.errors import DamagedFileError, LedgerError
from bluedit.models import EditableModel
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.files import atomic_folder, writable_target
from bluedit.storage.locks import claimed
from bluedit.storage.parsing import validation_problem

__all__ = ["LEDGER_MARKER", "Batch", "Ledger", "Move", "Version", "is_ledger"]

LEDGER_MARKER = "ledger.json"
"""The file that shows a folder to be a ledger."""
FORMAT_VERSION = 1
_PATCHES = "patches"
_SESSION = re.compile(r"session-(\d+)")

Digest = str


class Batch(BaseModel):
    """The place of an edit in a sequence: it was solved with what the batches before it left (past keys)."""

    model_config = ConfigDict(frozen=True)

    sequence: str
    number: int


class Version(BaseModel):
    """A state of the model.

    - `parent`: the version it was made from; None for version 0.
    - `operation`: what was done: `apply`, `drop`.
    - `edits`: the digests of the edits that the model has, in order.
    - `facts`: how many facts those hold.
    - `time`: in UTC, ISO 8601. `note`: of the user's, or the facts that were dropped.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    parent: int | None
    operation: str
    edits: tuple[Digest, ...]
    facts: int
    time: str
    note: str = ""


class Move(BaseModel):
    """A move of the head between versions: `undo`, `redo` or `checkout`, when, from where, and where to."""

    model_config = ConfigDict(frozen=True)

    operation: str
    start: int
    end: int
    after: int
    """The newest version there was when it was made."""
    time: str


class _Document(BaseModel):
    """`ledger.json`."""

    model_config = ConfigDict(frozen=True)

    format: Literal["bluedit-ledger"] = "bluedit-ledger"
    format_version: int = FORMAT_VERSION
    model: str
    model_fingerprint: str
    dtype: str
    chat: bool = False
    versions: tuple[Version, ...] = Field(min_length=1)
    moves: tuple[Move, ...] = ()
    head: int = 0
    batches: dict[Digest, Batch] = {}
    """Edits that are batches of sequences."""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        for number, version in enumerate(self.versions):
            if version.number != number or not (version.parent is None if number == 0 else version.parent in range(number)):
                raise ValueError(f"version {number} is not in its place")
            if not all(re.fullmatch(r"[0-9a-f]{32}", digest) for digest in version.edits):
                raise ValueError(f"version {number} names edits by something else than digests")
        places = [self.head, *(place for move in self.moves for place in (move.start, move.end))]
        if not all(place in range(len(self.versions)) for place in places):
            raise ValueError("it names versions that it does not have")
        return self


class Ledger:
    """A model's history in a folder; :meth:`create` makes one, :meth:`open` reads one.

        ledger = Ledger.create("facts.ledger", model, "gpt2")
        ledger.apply(bluedit.edit(model, facts), model)
        ledger.undo()
        ledger.restore(model)

    What moves the head acts on the folder only: :meth:`restore` brings a model object to the head.
    """

    def __init__(self, folder: Path, document: _Document) -> None:
        self.folder = folder
        self._document = document

    @classmethod
    def create(cls, folder: str | Path, model: EditableModel, name: str) -> Ledger:
        """A ledger without edits, for a model as it is now. `name` is what the model is loaded by.

        **Raises** :class:`~bluedit.errors.LedgerError` when the model has edits applied, and
        :class:`~bluedit.errors.InputError` when something is in the folder's place.
        """
        path = writable_target(Path(folder).expanduser())
        if applied_patches(model):
            raise LedgerError(
                "the model has edits applied already; revert them first, so that the ledger knows the unedited model"
            )
        first = Version(number=0, parent=None, operation="create", edits=(), facts=0, time=_now())
        document = _Document(
            model=name,
            model_fingerprint=model.fingerprint(),
            dtype=str(model.dtype).removeprefix("torch."),
            chat=model.text.chat is not None,
            versions=(first,),
        )
        with atomic_folder(path) as temporary:
            (temporary / _PATCHES).mkdir()
            write_document(temporary / LEDGER_MARKER, document.model_dump(mode="json"))
        return cls(path, document)

    @classmethod
    def open(cls, folder: str | Path) -> Ledger:
        """The ledger in a folder.

        **Raises** :class:`~bluedit.errors.LedgerError` when there is none, or it is damaged or of a later version.
        """
        path = Path(folder).expanduser()
        return cls(path, _read(path))

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def model(self) -> str:
        """What the unedited model is loaded by."""
        return self._document.model

    @property
    def dtype(self) -> str:
        """The precision that it was loaded in."""
        return self._document.dtype

    @property
    def chat(self) -> bool:
        """Whether prompts go into its chat template."""
        return self._document.chat

    @property
    def versions(self) -> tuple[Version, ...]:
        """All versions, oldest first."""
        return self._document.versions

    @property
    def moves(self) -> tuple[Move, ...]:
        """All moves of the head, oldest first."""
        return self._document.moves

    @property
    def head(self) -> Version:
        """The version that the model has."""
        return self.versions[self._document.head]

    def edits(self, version: int | None = None) -> tuple[Edit, ...]:
        """The edits of a version, in order; of the head when left out.

        **Raises** :class:`~bluedit.errors.LedgerError` when there is no such version, or a file is damaged.
        """
        return tuple(self._edit(digest) for digest in self._version(version).edits)

    def sequences(self, version: int | None = None) -> list[list[tuple[Digest, Edit]]]:
        """The edits of a version, those together that are batches of one sequence, one after the other."""
        grouped: list[list[tuple[Digest, Edit]]] = []
        last: str | None = None
        for digest in self._version(version).edits:
            batch = self._document.batches.get(digest)
            if batch is None or batch.sequence != last:
                grouped.append([])
            grouped[-1].append((digest, self._edit(digest)))
            last = batch.sequence if batch else None
        return grouped

    def holds(self, batch: Batch) -> bool:
        """Whether the head has this batch of a sequence."""
        return any(self._document.batches.get(digest) == batch for digest in self.head.edits)

    def in_one_sequence(self, digests: Sequence[Digest]) -> bool:
        """Whether these edits are batches of one sequence; true of none."""
        batches = [self._document.batches.get(digest) for digest in digests]
        return None not in batches and len({batch.sequence for batch in batches if batch is not None}) <= 1

    def session(self) -> tuple[int, Path] | None:
        """The version that a sequence under way started from, and where it is saved."""
        for path in sorted(self.folder.glob("session-*")):
            if (match := _SESSION.fullmatch(path.name)) and path.is_dir():
                return int(match[1]), path
        return None

    # -- editing ---------------------------------------------------------------------------------------------

    def apply(
        self, edit: Edit, model: EditableModel, *, note: str = "", batch: Batch | None = None, check: bool = True
    ) -> Version:
        """Apply an edit to a model that is at the head, and record it.

        **Raises** :class:`~bluedit.errors.PatchError` when it was not computed on the model as it is now, and
        :class:`~bluedit.errors.LedgerError` when the ledger was changed by somebody else. Neither changes anything.
        """
        edit.apply(model, check=check)
        try:
            return self.record("apply", [*self.head.edits], [edit], note=note, batches=[batch] if batch else None)
        except BaseException:
            edit.revert(model)
            raise

    def record(
        self,
        operation: str,
        before: Sequence[Digest],
        edits: Sequence[Edit],
        *,
        note: str = "",
        batches: Sequence[Batch | None] | None = None,
    ) -> Version:
        """Make the next version: some of the head's edits, then new ones. Models are for the caller to change.

        - `batches`: for each new edit its place in a sequence, where it is one of one.
        """
        with self._changing():
            for edit in edits:
                self._store(edit)
            kept = [self._edit(digest) for digest in before]
            digests = [edit.digest for edit in edits]
            version = Version(
                number=len(self.versions),
                parent=self.head.number,
                operation=operation,
                edits=(*before, *digests),
                facts=sum(len(edit.facts) for edit in (*kept, *edits)),
                time=_now(),
                note=note,
            )
            places = {digest: batch for digest, batch in zip(digests, batches or (), strict=False) if batch is not None}
            self._write(versions=(*self.versions, version), head=version.number, batches={**self._document.batches, **places})
        return version

    def undo(self, steps: int = 1) -> Version:
        """Move the head to the version it was made from, `steps` times.

        **Raises** :class:`~bluedit.errors.LedgerError` when there are not so many.
        """
        with self._changing():
            target = self.head
            for done in range(steps):
                if target.parent is None:
                    raise LedgerError(f"{steps} versions cannot be undone: version {self.head.number} has {done} before it")
                target = self.versions[target.parent]
            return self._move("undo", target.number)

    def redo(self, steps: int = 1) -> Version:
        """Move the head to the version that was undone last, `steps` times.

        **Raises** :class:`~bluedit.errors.LedgerError` when nothing more was undone.
        """
        with self._changing():
            following, target = self._last_children(), self.head.number
            for done in range(steps):
                if target not in following:
                    raise LedgerError(
                        f"{steps} versions cannot be redone: {done or 'none'} came after version {self.head.number}"
                    )
                target = following[target]
            return self._move("redo", target)

    def checkout(self, version: int) -> Version:
        """Move the head to a version.

        **Raises** :class:`~bluedit.errors.LedgerError` when there is no such version.
        """
        with self._changing():
            return self._move("checkout", self._version(version).number)

    def restore(self, model: EditableModel | PreTrainedModel, version: int | None = None) -> None:
        """Make a model hold the edits of a version, and no others; of the head when left out. All or nothing.

        **Raises** :class:`~bluedit.errors.LedgerError` for another model.
        """
        edits = self.edits(version)
        self.check_model(model)
        arrange(edits, model)

    def check_model(self, model: EditableModel | PreTrainedModel) -> None:
        """**Raises** :class:`~bluedit.errors.LedgerError` unless a model without edits applied is the ledger's."""
        network = model.model if isinstance(model, EditableModel) else model
        if isinstance(model, EditableModel) and not applied_patches(model):
            dtype = str(model.dtype).removeprefix("torch.")
            if dtype != self.dtype:
                raise LedgerError(
                    f"{self.folder} is of a model in {self.dtype}, and this one is in {dtype}; load it in {self.dtype}"
                )
            if model.fingerprint() != self._document.model_fingerprint:
                raise LedgerError(
                    f"{self.folder} is of another model: {self.model}, with other weights than "
                    f"{getattr(network.config, '_name_or_path', '') or 'this one'} has now"
                )

    # -- files -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self) -> Generator[None]:
        """The only process that changes the folder, while the block runs; the folder is as it was when it was read.

        **Raises** :class:`~bluedit.errors.LedgerError` when another process has changed it since, and
        :class:`~bluedit.errors.InputError` while one does.
        """
        with claimed(self.folder / LEDGER_MARKER):
            if _read(self.folder) != self._document:
                raise LedgerError(f"{self.folder} was changed by another process since it was read; open it again")
            yield

    def _move(self, operation: str, end: int) -> Version:
        move = Move(operation=operation, start=self.head.number, end=end, after=len(self.versions) - 1, time=_now())
        self._write(moves=(*self.moves, move), head=end)
        return self.head

    def _last_children(self) -> dict[int, int]:
        """By version the one made from it that the head was at, or above, last."""
        following: dict[int, int] = {}

        def visited(number: int) -> None:
            while (parent := self.versions[number].parent) is not None:
                following[parent] = number
                number = parent

        moves = iter(self.moves)
        pending = next(moves, None)
        for version in self.versions:
            visited(version.number)
            while pending is not None and pending.after == version.number:
                visited(pending.end)
                pending = next(moves, None)
        return following

    def _version(self, number: int | None) -> Version:
        if number is None:
            return self.head
        if number not in range(len(self.versions)):
            raise LedgerError(f"{self.folder} has no version {number}; it has 0 to {len(self.versions) - 1}")
        return self.versions[number]

    def _file(self, digest: Digest) -> Path:
        return self.folder / _PATCHES / f"{digest}.safetensors"

    def _edit(self, digest: Digest) -> Edit:
        edit = load_edit(self._file(digest))
        if edit.digest != digest:
            raise LedgerError(f"{self._file(digest)} is another edit, put in its place; restore the file from a copy")
        return edit

    def _store(self, edit: Edit) -> None:
        path = self._file(edit.digest)
        if not path.exists():
            edit.save(path)

    def _write(self, **entries: Any) -> None:
        document = self._document.model_copy(update=entries)
        write_document(self.folder / LEDGER_MARKER, document.model_dump(mode="json"))
        self._document = document


def is_ledger(path: str | Path) -> bool:
    """Whether a folder is a ledger."""
    try:
        return (Path(path).expanduser() / LEDGER_MARKER).is_file()
    except (OSError, ValueError):
        return False


def _read(folder: Path) -> _Document:
    marker = folder / LEDGER_MARKER
    if not marker.is_file():
        raise LedgerError(f"{folder} is not a ledger: it has no {LEDGER_MARKER}; make one with `bluedit log create`")
    try:
        document = read_document(marker, sealed=True)
        kind, version = document.get("format"), document.get("format_version")
        if kind != "bluedit-ledger" or not isinstance(version, int) or version > FORMAT_VERSION:
            raise LedgerError(f"{marker} is {kind} version {version}; this bluedit reads bluedit-ledger up to {FORMAT_VERSION}")
        return _Document.model_validate(document)
    except DamagedFileError as error:
        raise LedgerError(f"{error}; restore it from a copy") from error
    except ValidationError as error:
        raise LedgerError(f"{marker} cannot be read: {validation_problem(error)}") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
