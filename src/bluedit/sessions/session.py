"""Sessions: editing the same model batch after batch, with undo, and resumption after a kill.

*Concept.* A session owns what a sequence of edits accumulates: past keys, one patch per batch, in order, and the
settings, context templates and statistics that all of its batches share. Two sessions, on two models, share nothing.

*Mechanism.* An editor computes a batch on the model as the batches before left it, and the edit is applied. What the editor
remembers goes into its state: closed-form methods absorb past keys into one running inverse per layer, so a batch costs the
same however many went before. A saved session holds the edits, what was remembered of each batch, the state and the edited
weights themselves: resuming recomputes nothing.
"""

from __future__ import annotations

import contextlib
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bluedit.editing import EditOptions, prepare
from bluedit.editors.base import Edited, Editor, Facts, Setup, ValueStore
from bluedit.edits import Edit, applied_patches, merge
from bluedit.edits.base import arrange, restore_applied, weights_without
from bluedit.errors import InputError, SessionError
from bluedit.facts import Fact, OnConflict
from bluedit.models import EditableModel
from bluedit.progress import Progress, silent
from bluedit.sessions.files import (
    SESSION,
    SESSION_MARKER,
    WRITTEN,
    SavedFolder,
    SavedSession,
    check_model,
    keys_name,
    load_patch,
    load_state,
    load_tensors,
    patch_name,
    read_session,
    saved_setup,
)
from bluedit.sessions.saving import Content, write_session
from bluedit.statistics import Statistics, read_corpus
from bluedit.statistics.corpus import Corpus
from bluedit.storage.files import atomic_folder, writable_target

__all__ = ["Session"]


class Session:
    """A sequence of batches of edits on one model.

        session = Session(model, method=blue(ALPHAEDIT))
        for batch in batches:
            session.apply(batch)
            session.save("run")
        patch = session.finish()

    Made as `Session(model, ...)` with what :func:`~bluedit.models.load_model` gives, or with any transformers model and its
    `tokenizer`; the options are those of :func:`~bluedit.editing.edit`. Context templates are generated from the model as it
    is now.
    """

    def __init__(
        self,
        model: EditableModel | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        **options: Unpack[EditOptions],
    ) -> None:
        editable = EditableModel.wrap(model, tokenizer)
        self._start(editable, prepare(editable, **options))

    def _start(self, model: EditableModel, setup: Setup) -> None:
        self.model = model
        self.setup = setup
        self._state = setup.method.begin(setup)
        self._batches: list[Edited] = []
        self._whole: Edit | None = None
        self._before_finish: tuple[Edit, ...] = ()
        self._folders: dict[Path, SavedFolder] = {}
        self._id = uuid.uuid4().hex
        self._hashes: dict[tuple[str, ...], str] = {}
        self.values: ValueStore | None = None
        """Values that are shared with other sessions on this model, see :mod:`bluedit.experiments.sharing`."""

    @classmethod
    def following(cls, model: EditableModel, setup: Setup) -> Session:
        """A session that follows a setup."""
        session = cls.__new__(cls)
        session._start(model, setup)
        return session

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Tells sessions apart; a resumed one has the id of the one that was saved."""
        return self._id

    @property
    def patches(self) -> tuple[Edit, ...]:
        """One edit per batch, oldest first."""
        return tuple(batch.edit for batch in self._batches)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts of all batches, in order."""
        return tuple(fact for patch in self.patches for fact in patch.facts)

    @property
    def finished(self) -> bool:
        """Whether the constraint at the end of the sequence has been applied."""
        return self._whole is not None

    def __len__(self) -> int:
        return len(self._batches)

    def __repr__(self) -> str:
        method = self.setup.method
        return f"<Session of {len(self)} batches, {len(self.facts)} facts: {method.name}, {method.strategy.name}>"

    # -- editing ---------------------------------------------------------------------------------------------

    @torch.inference_mode(mode=False)
    def apply(self, facts: Facts, *, progress: Progress = silent, on_conflict: OnConflict | None = None) -> Edit:
        """Edit one batch of facts into the model, and return its patch.

        `on_conflict`: what becomes of facts of this batch that contradict each other, see :func:`~bluedit.editing.edit`; as
        the session was made when left out. A fact that contradicts one of an earlier batch is simply the later edit.

        **Raises** what :func:`~bluedit.editing.edit` does, and :class:`~bluedit.errors.SessionError` when the sequence was
        finished. The session and the model are then as they were.

        **Cost** that of :func:`~bluedit.editing.edit`, less second moments and their inverses after the first batch.
        """
        if self._whole is not None:
            raise SessionError(
                f"the sequence is finished: {self.setup.method.name} acted on its whole change; reopen() it to continue"
            )
        setup, state = self.setup, self._state
        plan = setup.plan(self.model, facts, start=len(self.facts), on_conflict=on_conflict)
        done = setup.method.edit(self.model, plan, state, progress, self.values)
        done.edit.apply(self.model, check=False)
        try:
            state.absorb(done.memory)
        except BaseException:
            # Some of it may have been absorbed already.
            self._state = state.after(batch.memory for batch in self._batches)
            done.edit.revert(self.model)
            raise
        self._batches.append(done)
        if done.memory:
            self._state_changed()
        return done.edit

    @torch.inference_mode(mode=False)
    def undo(self, batches: int = 1) -> tuple[Edit, ...]:
        """Take back the last batches; the model gets the bits and the session the past keys from before them.

        A finished sequence is reopened as well. **Returns** the patches taken back, oldest first.

        **Raises** :class:`~bluedit.errors.SessionError` when there are fewer.

        **Cost** with past keys: absorbing the keys that remain.
        """
        if not 0 <= batches <= len(self):
            raise SessionError(f"{batches} batches cannot be undone: the session has {len(self)}")
        kept, undone = self._batches[: len(self) - batches], self._batches[len(self) - batches :]
        state = self._state.after(batch.memory for batch in kept) if undone else self._state
        taken = {id(batch.edit) for batch in undone}
        arrange([patch for patch in self._unfinished() if id(patch) not in taken], self.model)
        self._batches, self._whole, self._state = kept, None, state
        if any(batch.memory for batch in undone):
            self._state_changed()
        for folder in self._folders.values():
            del folder.stems[len(kept) :]
        return tuple(batch.edit for batch in undone)

    @torch.inference_mode(mode=False)
    def finish(self) -> Edit:
        """End the sequence: apply the constraint that acts on its whole change, if the method has one (PRUNE).

        **Returns** one patch for the whole sequence, which is what the model then has; it applies to the model from before
        the first batch.
        """
        if self._whole is not None:
            return self._whole
        whole = merge(self.patches)
        if not self.setup.method.ends_sequence:
            return whole
        before = weights_without(self.patches, whole.changes, self.model)
        oriented = self.model.structure.oriented
        whole = self.setup.method.finish(whole, self.setup, {name: oriented(weight) for name, weight in before.items()})
        applied, mine = applied_patches(self.model), set(map(id, self.patches))
        last = max(place for place, patch in enumerate(applied) if id(patch) in mine)
        arrange([patch for patch in (*applied[:last], whole, *applied[last + 1 :]) if id(patch) not in mine], self.model)
        self._whole, self._before_finish = whole, applied
        return whole

    def reopen(self) -> None:
        """Take the constraint of :meth:`finish` off again, so that more batches can follow."""
        self.undo(0)

    def _unfinished(self) -> list[Edit]:
        """What is applied to the model, with the session's batches in place of the finished sequence."""
        applied = list(applied_patches(self.model))
        if self._whole is None:
            return applied
        place = next((index for index, patch in enumerate(applied) if patch is self._whole), None)
        if place is None:
            raise SessionError(
                "the finished sequence was taken off the model by other means; apply its patch again, then continue"
            )
        mine = {id(self._whole), *map(id, self.patches)}
        if [id(patch) for patch in applied if id(patch) not in mine] == [
            id(patch) for patch in self._before_finish if id(patch) not in mine
        ]:
            return list(self._before_finish)
        return [*applied[:place], *self.patches, *applied[place + 1 :]]

    def merged(self) -> Edit:
        """One patch that does what the session has done to the model.

        **Raises** :class:`~bluedit.errors.SessionError` when that is not what the method means: its constraint acts at the
        end of the sequence.
        """
        if self.setup.method.ends_sequence and self._whole is None:
            raise SessionError(
                f"{self.setup.method.name} acts at the end of the sequence, which has not come; call finish() first"
            )
        return self._whole or merge(self.patches)

    # -- files -----------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, replace: bool = False) -> Path:
        """Write the session to a folder; again and again to the same one, which then costs the new batches only.

        A kill at any moment leaves the last complete state.

        **Raises** :class:`~bluedit.errors.InputError` when the folder holds something else, or another session and `replace`
        is not set, and :class:`~bluedit.errors.SessionError` when patches of others are applied to the model: a folder has no
        place for those.
        """
        path = Path(folder).expanduser()
        place = path.resolve()
        self._check_applied()
        known = self._folders.get(place)
        if known is not None and not self._mine(path, known):
            if (path / SESSION_MARKER).is_file() and not replace:
                raise SessionError(f"another session was saved to {path} since; save this one to another folder")
            known = None
        if known is not None:
            known = self._save_into(path, known)
        else:
            if path.is_file():
                raise SessionError(f"{path} is a file; a session is saved in a folder")
            if not replace and (path / SESSION_MARKER).exists():
                raise SessionError(f"{path} holds a session already; resume that one, or save this one to another folder")
            writable_target(path, replace=replace, kind=SESSION)
            # The first time the folder appears whole or not at all, so that a kill leaves nothing that is in the way.
            with atomic_folder(place, replace=SESSION if replace else None) as temporary:
                known = self._save_into(temporary, SavedFolder())
        self._folders[place] = known
        for stale in path.iterdir():
            if WRITTEN.fullmatch(stale.name) and stale.name not in known.digests:
                stale.unlink()
        return path

    def _mine(self, path: Path, known: SavedFolder) -> bool:
        """Whether a folder still holds what this session wrote there last; a save that failed at its very end counts."""
        if not (path / SESSION_MARKER).is_file():
            return False
        saved = read_session(path)
        return saved.id == self._id and saved.revision in (known.revision, known.attempted)

    def _check_applied(self) -> None:
        expected = [self._whole] if self._whole is not None else list(self.patches)
        if [id(patch) for patch in applied_patches(self.model)] != [id(patch) for patch in expected]:
            raise SessionError(
                "the patches applied to the model are not the session's alone, in their order; revert the others, or put the "
                "session's back, before it is saved"
            )

    def _save_into(self, path: Path, known: SavedFolder) -> SavedFolder:
        """Write what the folder lacks."""
        content = Content(self._id, self.model, self.setup, tuple(self._batches), self._whole, self._state, self._unedited)
        return write_session(path, known, content)

    def _unedited(self, edited: tuple[str, ...]) -> str:
        if edited not in self._hashes:
            self._hashes = {edited: self.model.fingerprint(without=edited)}
        return self._hashes[edited]

    def _state_changed(self) -> None:
        """What saved files say of the state is no longer true, but for what no batch changes."""
        for folder in self._folders.values():
            folder.state_files = {name: file for name, file in folder.state_files.items() if name in self._state.constant}

    @classmethod
    @torch.inference_mode(mode=False)
    def resume(
        cls,
        folder: str | Path,
        model: EditableModel | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        method: Editor | None = None,
        statistics: Statistics | None = None,
    ) -> Session:
        """Resume a saved session. `model` is as it was before the first batch; it gets the edited weights, bit for bit.

        **Arguments**

        - `method`: needed where it is not one of the known ones; its strategy is the saved one.
        - `statistics`: needed only for a session that was saved before its first batch, with second moments from memory.

        **Raises** :class:`~bluedit.errors.SessionError` when the folder is not a session, is damaged, or belongs to another
        model or method. The model is then as it was.
        """
        path, editable = Path(folder).expanduser(), EditableModel.wrap(model, tokenizer)
        saved = read_session(path)
        check_model(path, saved, editable)
        session = cls.following(editable, saved_setup(path, saved, method, statistics))
        try:
            session._restore(path, saved)
        except SessionError:
            raise
        except InputError as error:
            raise SessionError(f"the session in {path} cannot be resumed: {error}") from error
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise SessionError(f"the session in {path} is damaged: {error}") from error
        return session

    def _restore(self, path: Path, saved: SavedSession) -> None:
        """Read and check every file, then write the weights."""
        model = self.model
        if saved.format_version == 1:
            warnings.warn(
                f"{path} is of an earlier version, without hashes: its changes were checked against their norms and the "
                "weights, its keys and inverses for their shapes only",
                stacklevel=3,
            )
        patches = [load_patch(path, patch_name(stem), saved) for stem in saved.batches]
        whole = load_patch(path, saved.whole_file, saved) if saved.whole_file else None
        batches: list[Edited] = []
        for stem, edit in zip(saved.batches, patches, strict=True):
            kept = keys_name(stem)
            # Before hashes, files were not listed.
            there = kept in saved.digests if saved.format_version > 1 else (path / kept).is_file()
            memory = load_tensors(path, kept, saved) if there else {}
            self.setup.method.check_memory(memory, edit, model)
            batches.append(Edited(edit, memory))
        state = self.setup.method.restore(self.setup, saved.state, load_state(path, saved), model)
        weights = load_tensors(path, saved.weights_file, saved)
        parameters = dict(model.model.named_parameters())
        if {name: (weight.shape, weight.dtype) for name, weight in weights.items()} != {
            name: (parameters[name].shape, parameters[name].dtype) for name in saved.before
        }:
            raise ValueError("its weights are not those that its patches change")
        self._name_first_corpus(patches)
        originals = {name: parameters[name].detach().clone() for name in weights}
        try:
            with torch.no_grad():
                for name, tensor in weights.items():
                    parameters[name].copy_(tensor)
            restore_applied(model, [whole] if whole else patches, originals)
        except BaseException:
            with torch.no_grad():
                for name, tensor in originals.items():
                    parameters[name].copy_(tensor)
            raise
        self._state, self._batches = state, batches
        self._whole, self._before_finish = whole, tuple(patches) if whole else ()
        self._id = saved.id
        self._hashes = {tuple(saved.before): saved.unedited}
        # Files without hashes are written again, with hashes, when the session is saved next.
        hashed = saved.format_version > 1
        self._folders[path.resolve()] = SavedFolder(
            saved.revision,
            saved.revision,
            list(saved.batches) if hashed else [],
            dict(saved.state_files) if hashed else {},
            dict(saved.digests),
        )

    def _name_first_corpus(self, patches: Sequence[Edit]) -> None:
        """Take the corpus of the first batch for the session's, where an earlier version let a later one replace it."""
        statistics, first = self.setup.statistics, next(iter(patches), None)
        if first is None or statistics.corpus is None or first.manifest.corpus in (None, statistics.corpus.name):
            return
        name = str(first.manifest.corpus)
        identity = ""  # that text may be gone; its inverse metrics are in the session
        with contextlib.suppress(InputError):
            identity = read_corpus(name).identity
        self.setup = replace(self.setup, statistics=replace(statistics, corpus=Corpus(name, identity, 0)))
