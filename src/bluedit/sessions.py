"""Sessions: editing the same model batch after batch, with a way back and a way to go on after a kill.

*Concept.* A session owns what a sequence of edits accumulates: past keys, one patch per batch in an ordered ledger, and the
settings, context templates and statistics that all of its batches share. Two sessions, on two models, share nothing.

*Mechanism.* A batch is computed by the loop in :mod:`bluedit.editing` on the model as the batches before left it, and its
patch is applied. Past keys are absorbed into one running inverse per layer, so a batch costs the same however many went
before. A saved session holds the patches, the keys, the running inverses and the edited weights themselves: resuming
computes nothing anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bluedit.editing import EditOptions, Facts, Metrics, Plan, Progress, plan_edit, restrain_sequence, run_batch, silent
from bluedit.errors import BlueditError, PatchError, SessionError
from bluedit.facts import Fact
from bluedit.files import atomic_file, atomic_folder, writable_target
from bluedit.methods import Method
from bluedit.methods import method as find_method
from bluedit.models import EditableModel
from bluedit.models.editable import tensor_fingerprint
from bluedit.patches import Patch, applied_patches, merge
from bluedit.patches.patch import restore_ledger, revert
from bluedit.solvers import InverseMetric
from bluedit.statistics import Statistics, read_corpus
from bluedit.strategies import Step, explicit
from bluedit.strategies import strategy as find_strategy

__all__ = ["SESSION_MARKER", "Session", "edit_in_sequence"]

SESSION_MARKER = "session.json"
"""The file that shows a folder to be a saved session."""
FORMAT_VERSION = 1


class _SavedMetric(BaseModel):
    model_config = ConfigDict(frozen=True)

    condition: float | None
    rank: int | None


class _Saved(BaseModel):
    """`session.json`: everything but the tensors, and the names of the files that hold those."""

    model_config = ConfigDict(frozen=True)

    format: Literal["bluedit-session"] = "bluedit-session"
    format_version: int = FORMAT_VERSION
    method: str
    strategy: str
    steps: tuple[Step, ...]
    layers: tuple[int, ...]
    settings: dict[str, Any]
    templates: tuple[str, ...]
    seed: int
    corpus: str | None
    samples: int | None
    revision: int
    """How often the folder was written; part of file names, so that no file of an earlier state is overwritten."""
    batches: tuple[str, ...]
    """Per batch the stem of its files: `patch-STEM.safetensors`, and `keys-STEM.safetensors` where keys are kept."""
    metrics: dict[int, _SavedMetric]
    metrics_file: str | None
    weights_file: str
    before: dict[str, str]
    """Hashes of the weights before the first batch."""
    whole_file: str | None
    """The patch of the finished sequence, where its whole change was restrained."""


@dataclass
class _Folder:
    """What a session remembers of a folder it was saved in."""

    revision: int = 0
    stems: list[str] = field(default_factory=list[str])
    metrics_file: str | None = None
    """Where the running inverses are, as long as they are the ones in memory."""


@dataclass(frozen=True)
class _Batch:
    """What a batch left: its patch, and its keys by layer where they are kept."""

    patch: Patch
    keys: Mapping[int, Tensor]


class Session:
    """A sequence of batches of edits on one model.

        session = Session(model, method=blue(ALPHAEDIT))
        for batch in batches:
            session.apply(batch)
            session.save("run")
        patch = session.finish()

    Made as `Session(model, ...)` with what :func:`~bluedit.models.load_model` gives, or `Session(model, tokenizer, ...)`;
    the options are those of :func:`~bluedit.editing.edit`. Context templates are generated from the model as it is now.
    """

    def __init__(
        self,
        model: EditableModel | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        /,
        **options: Unpack[EditOptions],
    ) -> None:
        editable = EditableModel.wrap(model, tokenizer)
        self._start(editable, plan_edit(editable, (), **options))

    def _start(self, model: EditableModel, plan: Plan) -> None:
        self.model = model
        self.plan = plan
        self._metrics = Metrics(plan)
        self._batches: list[_Batch] = []
        self._whole: Patch | None = None
        self._folders: dict[Path, _Folder] = {}

    @classmethod
    def following(cls, model: EditableModel, plan: Plan) -> Session:
        """A session that follows a plan; the plan's facts are not looked at."""
        session = cls.__new__(cls)
        session._start(model, replace(plan, facts=()))
        return session

    # -- looking ---------------------------------------------------------------------------------------------

    @property
    def patches(self) -> tuple[Patch, ...]:
        """One patch per batch, oldest first."""
        return tuple(batch.patch for batch in self._batches)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts of all batches, in order."""
        return tuple(fact for patch in self.patches for fact in patch.facts)

    @property
    def finished(self) -> bool:
        """Whether the restraint at the end of the sequence has been applied."""
        return self._whole is not None

    def __len__(self) -> int:
        return len(self._batches)

    def __repr__(self) -> str:
        method = self.plan.method
        return f"<Session of {len(self)} batches, {len(self.facts)} facts: {method.name}, {method.strategy.name}>"

    # -- editing ---------------------------------------------------------------------------------------------

    def apply(self, facts: Facts, *, progress: Progress = silent) -> Patch:
        """Edit one batch of facts into the model, and return its patch.

        **Raises** what :func:`~bluedit.editing.edit` does, and :class:`~bluedit.errors.SessionError` when the sequence was
        finished. The session and the model are then as they were.

        **Cost** that of :func:`~bluedit.editing.edit`, less second moments and their inverses after the first batch.
        """
        if self._whole is not None:
            raise SessionError(
                f"the sequence is finished: {self.plan.method.name} acted on its whole change; reopen() it to go on"
            )
        plan = self.plan.with_facts(self.model, facts)
        patch, keys = run_batch(self.model, plan, self._metrics, progress)
        patch.apply(self.model, check=False)
        try:
            self._metrics.absorb(keys)
        except BaseException:
            # Some layers may have absorbed their keys already: the others' batches say what the inverses were.
            patch.revert(self.model)
            self._metrics = self._absorbed(self._batches)
            raise
        self._batches.append(_Batch(patch, keys if plan.method.keeps_past else {}))
        self._metrics_changed()
        return patch

    def undo(self, batches: int = 1) -> tuple[Patch, ...]:
        """Take back the last batches; the model gets the bits and the session the past keys from before them.

        A finished sequence is reopened first. **Returns** the patches taken back, oldest first.

        **Raises** :class:`~bluedit.errors.SessionError` when there are not so many.

        **Cost** with past keys: one inverse per layer, and the keys that remain.
        """
        if not 0 <= batches <= len(self):
            raise SessionError(f"{batches} batches cannot be undone: the session has {len(self)}")
        self.reopen()
        kept, undone = self._batches[: len(self) - batches], self._batches[len(self) - batches :]
        if self.plan.method.keeps_past and undone:
            self._metrics = self._absorbed(kept)
            self._metrics_changed()
        revert([batch.patch for batch in undone], self.model)
        self._batches = kept
        for folder in self._folders.values():
            del folder.stems[len(kept) :]
        return tuple(batch.patch for batch in undone)

    def _absorbed(self, batches: Sequence[_Batch]) -> Metrics:
        """The inverse metrics after these batches, from the prior and their keys."""
        metrics = Metrics(self.plan)
        if batches:
            with self._without_edits():
                metrics.prepare(self.model, self._metrics.by_layer)
            for batch in batches:
                metrics.absorb(batch.keys)
        return metrics

    def finish(self) -> Patch:
        """End the sequence: apply the restraint that acts on its whole change, if the method has one (PRUNE).

        **Returns** one patch for the whole sequence, which is what the model then has; it applies to the model from before
        the first batch.
        """
        if self._whole is not None:
            return self._whole
        whole = merge(self.patches)
        restraint = self.plan.method.restraint
        if restraint and restraint.when == "sequence":
            with self._without_edits():
                whole = restrain_sequence(self.model, whole, self.plan)
            revert(self.patches, self.model)
            whole.apply(self.model, check=False)
            self._whole = whole
        return whole

    def merged(self) -> Patch:
        """One patch that does what the session has done to the model.

        **Raises** :class:`~bluedit.errors.SessionError` when that is not what the method means: its restraint acts at the
        end of the sequence.
        """
        restraint = self.plan.method.restraint
        if restraint and restraint.when == "sequence" and self._whole is None:
            raise SessionError(
                f"{self.plan.method.name} acts at the end of the sequence, which has not come; call finish() first"
            )
        return self._whole or merge(self.patches)

    def reopen(self) -> None:
        """Take the restraint of :meth:`finish` off again, so that more batches can follow."""
        if self._whole is not None:
            self._whole.revert(self.model)
            self._reapply()
            self._whole = None

    @contextlib.contextmanager
    def _without_edits(self) -> Generator[None]:
        """Inside, the model is as it was before the session's first batch."""
        revert(self.patches, self.model)
        try:
            yield
        finally:
            self._reapply()

    def _reapply(self) -> None:
        for patch in self.patches:
            patch.apply(self.model, check=False)

    # -- files -----------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, replace: bool = False) -> Path:
        """Write the session to a folder; again and again to the same one, which then costs the new batches only.

        A kill at any moment leaves the last complete state. **Raises** :class:`~bluedit.errors.InputError` when the folder
        holds something else, or another session and `replace` is not set.
        """
        path = Path(folder)
        known = self._folders.get(path.absolute())
        if known is not None:
            self._save_into(path, known)
            return path
        # The first time the folder appears whole or not at all, so that a kill leaves nothing that is in the way.
        known = _Folder()
        with atomic_folder(writable_target(path, replace=replace, marker=SESSION_MARKER)) as temporary:
            self._save_into(temporary, known)
        self._folders[path.absolute()] = known
        return path

    def _save_into(self, path: Path, folder: _Folder) -> None:
        folder.revision += 1
        saved = self._write_files(path, folder)
        with atomic_file(path / SESSION_MARKER) as temporary:
            temporary.write_text(saved.model_dump_json(indent=2) + "\n", encoding="utf-8")
        current = {_patch_name(stem) for stem in folder.stems} | {_keys_name(stem) for stem in folder.stems}
        current |= {saved.weights_file, saved.metrics_file or "", saved.whole_file or ""}
        for kind in ("patch", "keys", "weights", "metrics", "whole"):
            for stale in path.glob(f"{kind}-*.safetensors"):
                if stale.name not in current:
                    stale.unlink()

    def _write_files(self, path: Path, folder: _Folder) -> _Saved:
        """Write the tensors that the folder lacks, under names that no earlier state used."""
        plan = self.plan
        for number in range(len(folder.stems), len(self)):
            batch, stem = self._batches[number], f"{number + 1:04}-{folder.revision}"
            batch.patch.save(path / _patch_name(stem), replace=True)
            if batch.keys:
                _write(path / _keys_name(stem), {str(layer): keys for layer, keys in batch.keys.items()})
            folder.stems.append(stem)
        before: dict[str, str] = {}
        for patch in self.patches:
            for name, record in patch.manifest.weights.items():
                before.setdefault(name, record.before)
        weights_file, whole_file = f"weights-{folder.revision}.safetensors", None
        _write(path / weights_file, {name: self.model.model.get_parameter(name).detach() for name in before})
        if self._whole is not None:
            whole_file = f"whole-{folder.revision}.safetensors"
            self._whole.save(path / whole_file, replace=True)
        metrics = self._metrics.by_layer
        if metrics and folder.metrics_file is None:
            folder.metrics_file = f"metrics-{folder.revision}.safetensors"
            _write(path / folder.metrics_file, {str(layer): metric.matrix_FF for layer, metric in metrics.items()})
        return _Saved(
            method=plan.method.name,
            strategy=plan.method.strategy.name,
            steps=plan.method.strategy.steps(plan.layers),
            layers=plan.layers,
            settings=plan.settings.as_dict(),
            templates=plan.templates,
            seed=plan.seed,
            corpus=plan.statistics.corpus.name if plan.statistics.corpus else None,
            samples=plan.statistics.samples,
            revision=folder.revision,
            batches=tuple(folder.stems),
            metrics={layer: _SavedMetric(condition=metric.condition, rank=metric.rank) for layer, metric in metrics.items()},
            metrics_file=folder.metrics_file,
            weights_file=weights_file,
            before=before,
            whole_file=whole_file,
        )

    def _metrics_changed(self) -> None:
        if self.plan.method.keeps_past:
            for folder in self._folders.values():
                folder.metrics_file = None

    @classmethod
    def resume(
        cls,
        folder: str | Path,
        model: EditableModel | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        method: Method | None = None,
        statistics: Statistics | None = None,
    ) -> Session:
        """Go on with a saved session. `model` is as it was before the first batch; it gets the edited weights, bit for bit.

        **Arguments**

        - `method`: needed where it is not one of the known ones; its strategy is the saved one.
        - `statistics`: needed to undo batches where second moments came from memory, and not from a corpus that can be
          opened again.

        **Raises** :class:`~bluedit.errors.SessionError` when the folder is no session, is damaged, or belongs to another model.
        """
        path, editable = Path(folder).expanduser(), EditableModel.wrap(model, tokenizer)
        saved = _read(path)
        for name, fingerprint in saved.before.items():
            if name not in dict(editable.model.named_parameters()):
                raise SessionError(f"{path} edits {name}, which this model does not have; load the model it was begun on")
            if tensor_fingerprint(editable.model.get_parameter(name)) != fingerprint:
                raise SessionError(
                    f"{path} was begun on other weights: {name} is not what it was before the first batch. Load the model it "
                    "was begun on, unedited and in the same precision"
                )
        session = cls.following(editable, _plan(saved, method, statistics))
        try:
            session._restore(path, saved)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            if isinstance(error, BlueditError) and not isinstance(error, PatchError):
                raise
            raise SessionError(f"the session in {path} is damaged: {error}") from error
        return session

    def _restore(self, path: Path, saved: _Saved) -> None:
        patches = [Patch.load(_inside(path, _patch_name(stem))) for stem in saved.batches]
        keys: list[dict[int, Tensor]] = [{} for _ in patches]
        if self.plan.method.keeps_past:
            for kept, stem, patch in zip(keys, saved.batches, patches, strict=True):
                if patch.changes:
                    read = load_file(_inside(path, _keys_name(stem)))
                    kept.update({int(layer): tensor for layer, tensor in read.items()})
        whole = Patch.load(_inside(path, saved.whole_file)) if saved.whole_file else None
        metrics = load_file(_inside(path, saved.metrics_file)) if saved.metrics_file else {}
        weights = load_file(_inside(path, saved.weights_file))
        if set(weights) != set(saved.before):
            raise SessionError(f"the session in {path} is damaged: its weights are not those its patches change")
        for layer, record in saved.metrics.items():
            matrix_FF = metrics[str(layer)].to(self.model.weight(layer).device)
            self._metrics.by_layer[layer] = InverseMetric(matrix_FF, record.condition, record.rank)
        self._batches = [_Batch(patch, kept) for patch, kept in zip(patches, keys, strict=True)]
        self._whole = whole
        earlier = applied_patches(self.model)
        if earlier:
            raise SessionError(
                "the model has patches applied already; revert them, or load it afresh, before resuming a session"
            )
        parameters = dict(self.model.model.named_parameters())
        originals = {name: parameters[name].detach().clone() for name in weights}
        with torch.no_grad():
            for name, tensor in weights.items():
                parameters[name].copy_(tensor)
        try:
            restore_ledger(self.model, [whole] if whole else patches, originals)
        except BaseException:
            with torch.no_grad():
                for name, tensor in originals.items():
                    parameters[name].copy_(tensor)
            raise
        self._folders[path.absolute()] = _Folder(saved.revision, list(saved.batches), saved.metrics_file)


def _patch_name(stem: str) -> str:
    return f"patch-{stem}.safetensors"


def _keys_name(stem: str) -> str:
    return f"keys-{stem}.safetensors"


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic_file(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)


def _inside(path: Path, name: str) -> Path:
    # A name from a file is a name, not a path: it may not lead out of the folder.
    if Path(name).name != name:
        raise SessionError(f"{path / SESSION_MARKER} names a file outside its folder; it was not written by bluedit")
    return path / name


def _read(path: Path) -> _Saved:
    marker = path / SESSION_MARKER
    if not marker.is_file():
        raise SessionError(f"{path} is not a saved session: it has no {SESSION_MARKER}")
    try:
        saved = _Saved.model_validate_json(marker.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise SessionError(f"{marker} cannot be read: {str(error).splitlines()[0]}") from error
    if saved.format_version > FORMAT_VERSION:
        raise SessionError(f"{marker} is of version {saved.format_version}; this bluedit reads {FORMAT_VERSION}")
    return saved


def _plan(saved: _Saved, method: Method | None, statistics: Statistics | None) -> Plan:
    """The plan that a saved session followed, for no facts yet."""
    base = method or find_method(saved.method)
    if base.name != saved.method:
        raise SessionError(f"the session was begun with method {saved.method!r}, not {base.name!r}")
    strategy = base.strategy
    if strategy.name != saved.strategy:
        strategy = explicit(saved.steps) if saved.strategy == "explicit" else find_strategy(saved.strategy)
    if statistics is None:
        statistics = Statistics(read_corpus(saved.corpus) if saved.corpus else None, saved.samples)
    return Plan(
        method=base.with_strategy(strategy),
        layers=saved.layers,
        settings=base.settings.override(saved.settings),
        statistics=statistics,
        templates=saved.templates,
        facts=(),
        seed=saved.seed,
    )


def edit_in_sequence(
    model: EditableModel,
    plan: Plan,
    facts: Sequence[Fact],
    batch_size: int,
    folder: Path | None = None,
    progress: Progress = silent,
) -> Patch:
    """Edit facts batch by batch, and take them back again: the patch of the whole sequence.

    **Arguments**

    - `folder`: where the session is kept after every batch; if one is there already, it goes on.

    **Raises** :class:`~bluedit.errors.SessionError` when the folder holds a sequence of other facts, or with another plan.
    """
    if folder is not None and (folder / SESSION_MARKER).is_file():
        session = Session.resume(folder, model, method=plan.method, statistics=plan.statistics)
        differing = [name for name in _PLANNED if getattr(session.plan, name) != getattr(plan, name)]
        differing += ["facts"] if session.facts != tuple(facts[: len(session.facts)]) else []
        if differing:
            session.undo(len(session))
            raise SessionError(
                f"{folder} holds a session with other {' and '.join(differing)}; choose another folder for this one"
            )
    else:
        session = Session.following(model, plan)
    try:
        for start in range(len(session.facts), max(len(facts), 1), batch_size):
            session.apply(facts[start : start + batch_size], progress=progress)
            if folder is not None:
                session.save(folder)
        return session.finish()
    finally:
        session.undo(len(session))


_PLANNED = ("method", "layers", "settings", "templates", "seed")
"""What two plans have in common if they make the same patches of the same facts."""
