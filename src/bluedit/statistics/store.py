"""Stored second moments, keyed by everything that determines them, and passes that can be resumed."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from bluedit.errors import DamagedFileError, StatisticsError, first_line
from bluedit.models import EditableModel
from bluedit.statistics.accumulate import Cursor, Pass
from bluedit.statistics.convergence import Point
from bluedit.statistics.corpus import Corpus
from bluedit.statistics.export import Origin, SharedStatistics, export_statistics
from bluedit.statistics.moments import SecondMoment
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.files import cache_folder
from bluedit.storage.locks import taking_turns
from bluedit.storage.resumable import Checkpoint, State
from bluedit.storage.tensors import read_tensors, write_tensors

__all__ = ["Collection", "Statistics"]

_FORMAT = 2
_ROUNDING = 1e-9
"""Of the largest entry of a second moment: how far rounding may take others from what they should be."""
_CURVE = TypeAdapter(tuple[Point, ...])

Report = Callable[[int, int | None], object]


@dataclass(frozen=True)
class Collection:
    """Moments, and what it took to get them.

    - `moments`: by layer.
    - `samples`: the limit of documents that they are stored under: not the one asked for where the pass stopped by itself.
    - `computed`: the layers that were not there already.
    - `resumed`: how many documents an interrupted pass had left done.
    - `tokens`, `padded`: keys added up, and tokens the model ran on, in the whole pass; 0 where nothing was computed.
    - `tokens_now`, `seconds`: keys added up by this call, and how long it took.
    """

    moments: dict[int, SecondMoment]
    samples: int | None
    computed: tuple[int, ...] = ()
    resumed: int = 0
    tokens: int = 0
    padded: int = 0
    tokens_now: int = 0
    seconds: float = 0.0


@dataclass
class Statistics:
    """Second moments of one model over one corpus, computed when first requested and stored in a folder.

    An interrupted pass resumes at the next request for the same moments, and ends with the same bits.

    **Arguments**

    - `corpus`: the text; None when every moment that will be asked for is given in `precomputed`.
    - `samples`: at most this many documents of it; all when None.
    - `folder`: where moments are stored; the user's cache folder when None.
    - `precomputed`: moments that need not be looked up, for tests and for statistics from elsewhere.
    - `max_length`: documents are truncated to this many tokens; at the model's context length when None.
    - `measured`: also measure how well the moments converge, at twice the memory; the moments stay the same.
    - `until`: stop once the estimated relative error of an edit's change is not above this; measures too. What was found is
      stored as the moments over that many documents.
    - `save_every`: seconds between two savings of an unfinished pass; longer where saving takes long.
    """

    corpus: Corpus | None = None
    samples: int | None = None
    folder: Path | None = None
    precomputed: Mapping[int, SecondMoment] = field(default_factory=dict)
    max_length: int | None = None
    measured: bool = False
    until: float | None = None
    save_every: float = 60.0

    def moments(self, model: EditableModel, layers: Sequence[int], progress: Report | None = None) -> dict[int, SecondMoment]:
        """The moments of `layers`: given, stored, or computed now, all missing ones in one pass, and stored.

        `progress` is called as `progress(done, total)` in documents, after each block of them, while moments are computed; the
        total is None for a corpus of unknown size.
        """
        return self.collect(model, layers, progress).moments

    def collect(
        self,
        model: EditableModel,
        layers: Sequence[int],
        progress: Report | None = None,
        starting: Callable[[Sequence[int]], object] | None = None,
    ) -> Collection:
        """:meth:`moments`, and an account of how they came about.

        `starting` is called with the layers that have to be computed, before any memory is taken for them.
        """
        found = {layer: self.precomputed[layer] for layer in layers if layer in self.precomputed}
        missing = [layer for layer in dict.fromkeys(layers) if layer not in found]
        if not missing:
            return Collection(found, self.samples)
        if self.corpus is None:
            raise StatisticsError(
                f"no second moments for layers {missing} and no corpus to compute them from; name one: "
                "--corpus text:FILE on the command line, corpus='text:FILE' in Python"
            )
        files = self._files(model, missing)
        if self.corpus.shared is not None:
            shared = self.corpus.shared.moments(model, missing)
            found |= {layer: replace(moment, file=files.moment(layer, self.samples)) for layer, moment in shared.items()}
            return Collection(found, self.corpus.shared.origin.samples)
        if self.until is not None and (settled := files.settled(self.samples, self.until)).exists():
            # After how many documents these layers had converged is known: their moments are those over that many.
            return replace(self, samples=_read_settled(settled), until=None, measured=True).collect(
                model, layers, progress, starting
            )
        if self.until is None:
            for layer in missing:
                path = files.moment(layer, self.samples)
                if path.exists():
                    found[layer] = _load(path)
            stored = [layer for layer in missing if layer in found]
            if len(stored) < len(missing) and files.partial(sorted(missing), self.samples, self.measured, None).exists():
                # A kill while they were stored left the pass that all of them are from.
                found = {layer: moment for layer, moment in found.items() if layer not in stored}
            missing = [layer for layer in missing if layer not in found]
        if not missing:
            # A kill after they were stored may have left the pass that they are from.
            for measured in (True, False):
                files.partial(sorted(files.fingerprints), self.samples, measured, None).unlink(missing_ok=True)
            return Collection(found, self.samples)
        if starting is not None:
            starting(missing)
        others: list[None] = []
        partial = files.partial(sorted(missing), self.samples, self.measured or self.until is not None, self.until)
        with taking_turns(partial, lambda: others.append(None)):
            if not others:
                return self._compute(model, files, missing, found, progress)
        # Another process was computing these, and has stored them now, if it came to its end.
        return self.collect(model, layers, progress, starting)

    def adopt(self, model: EditableModel, shared: SharedStatistics) -> dict[int, SecondMoment]:
        """Store exported moments as if they had been computed here, and give them.

        **Raises** :class:`~bluedit.errors.StatisticsError` when they belong to another model.
        """
        origin = shared.origin
        moments = shared.moments(model, sorted(origin.fingerprints))
        key = {"corpus": origin.corpus_identity, "max_length": origin.max_length, "dtype": origin.dtype}
        files = _Files(self._place, key, origin.fingerprints)
        return {
            layer: _store(files.moment(layer, origin.samples), moment, layer, origin.corpus)
            for layer, moment in moments.items()
        }

    def export(self, path: Path, model: EditableModel, collection: Collection, name: str, *, replace: bool = True) -> Origin:
        """Write a collection to a file that others can use, see :class:`~bluedit.statistics.export.Origin`."""
        assert self.corpus is not None
        return export_statistics(
            path,
            model,
            collection.moments,
            name=name,
            corpus=self.corpus.name,
            corpus_identity=self.corpus.identity,
            samples=collection.samples,
            max_length=self.length(model),
            replace=replace,
        )

    def length(self, model: EditableModel) -> int:
        """After how many tokens documents are cut off: no more than the model takes."""
        return min(self.max_length or model.context_length, model.context_length)

    def _compute(
        self,
        model: EditableModel,
        files: _Files,
        layers: Sequence[int],
        found: dict[int, SecondMoment],
        progress: Report | None,
    ) -> Collection:
        assert self.corpus is not None
        total = min((size for size in (self.samples, self.corpus.size) if size is not None), default=None)
        report = None if progress is None else lambda done: progress(done, total)
        measured = self.measured or self.until is not None
        running = Pass(model, layers, max_length=self.length(model), measured=measured)
        checkpoint = Checkpoint(files.partial(running.layers, self.samples, measured, self.until), every=self.save_every)
        _restore(running, checkpoint)

        def state() -> State | None:
            if not running.whole or not running.cursor.tokens:
                return None
            return State(running.state(), {"cursor": running.cursor.model_dump_json()})

        with checkpoint.saving(state) as save:
            before, resumed = running.cursor.tokens, running.cursor.documents + running.cursor.block_documents
            if report is not None and resumed:
                report(resumed)
            started = time.monotonic()
            stopped = running.run(self.corpus.documents(self.samples), until=self.until, progress=report, after_block=save)
            seconds, cursor = time.monotonic() - started, running.cursor
            samples = cursor.documents if stopped else self.samples
            for layer, moment in running.moments().items():
                found[layer] = _store(files.moment(layer, samples), moment, layer, self.corpus.name)
            if self.until is not None:
                write_document(files.settled(self.samples, self.until), {"samples": samples})
        return Collection(
            found, samples, running.layers, resumed, cursor.tokens, cursor.padded, cursor.tokens - before, seconds
        )

    @property
    def _place(self) -> Path:
        return self.folder or cache_folder() / "second_moments"

    def _files(self, model: EditableModel, layers: Sequence[int]) -> _Files:
        assert self.corpus is not None
        key = {
            "corpus": self.corpus.identity,
            "max_length": self.length(model),
            "dtype": str(model.weight(layers[0]).dtype),
        }
        return _Files(self._place, key, {layer: model.fingerprint(through=layer) for layer in layers})


@dataclass(frozen=True)
class _Files:
    """Names of files, from everything that determines what they hold: `key` is what all layers share."""

    folder: Path
    key: Mapping[str, Any]
    fingerprints: Mapping[int, str]

    def moment(self, layer: int, samples: int | None) -> Path:
        return self._named(".safetensors", layer=layer, samples=samples, model=self.fingerprints[layer])

    def partial(self, layers: Sequence[int], samples: int | None, measured: bool, until: float | None) -> Path:
        """Where an unfinished pass is stored."""
        return self._named(".partial.safetensors", layers=layers, samples=samples, measured=measured, until=until)

    def settled(self, samples: int | None, until: float) -> Path:
        """The file that records after how many documents a pass stopped by itself."""
        return self._named(".settled.json", samples=samples, until=until, layers=sorted(self.fingerprints))

    def _named(self, suffix: str, **more: Any) -> Path:
        key = {"format": _FORMAT, "model": self.fingerprints[max(self.fingerprints)], **self.key, **more}
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return self.folder / f"{name}{suffix}"


def _store(path: Path, moment: SecondMoment, layer: int, corpus: str) -> SecondMoment:
    described = {
        "tokens": str(moment.tokens),
        "documents": json.dumps(moment.documents),
        "layer": str(layer),
        "corpus": corpus,
        "curve": _CURVE.dump_json(moment.curve).decode(),
    }
    for derived in path.parent.glob(f"{path.stem}.*.safetensors"):  # of a moment that was here before
        derived.unlink(missing_ok=True)
    write_tensors(path, {"second_moment": moment.matrix_FF}, described, key=path.name)
    return replace(moment, file=path)


def _read_settled(path: Path) -> int | None:
    try:
        samples = read_document(path).get("samples", "missing")
        if samples is not None and type(samples) is not int:
            raise DamagedFileError(path, f"is damaged: samples={samples!r}")
    except DamagedFileError as error:
        raise StatisticsError(f"the stored record {error}; remove it and run again") from error
    return samples


def _restore(running: Pass, checkpoint: Checkpoint) -> None:
    """Put the pass where an earlier call left it, if one did."""
    path = checkpoint.path
    try:
        if (stored := checkpoint.load()) is not None:
            running.restore(Cursor.model_validate_json(stored.metadata["cursor"]), stored.tensors)
    except (DamagedFileError, ValidationError, KeyError, RuntimeError) as error:
        problem = str(error) if isinstance(error, DamagedFileError) else f"{path} is damaged: {first_line(error)}"
        raise StatisticsError(f"the interrupted pass {problem}; remove that file to start again") from error


def _load(path: Path) -> SecondMoment:
    try:
        stored = read_tensors(path, key=path.name)
        described, moment_FF = stored.metadata, stored.tensors["second_moment"].to(torch.float64)
        if stored.digest is None:
            _check_unhashed(moment_FF, path)
        documents, curve = json.loads(described["documents"]), _CURVE.validate_json(described["curve"])
        return SecondMoment(moment_FF, int(described["tokens"]), path, documents, curve)
    except (DamagedFileError, KeyError, TypeError, ValueError) as error:
        problem = str(error) if isinstance(error, DamagedFileError) else f"{path} is damaged: {first_line(error)}"
        raise StatisticsError(f"the stored statistic {problem}; remove it and run again") from error


def _check_unhashed(moment_FF: Tensor, path: Path) -> None:
    """Check a second moment without a hash for what every second moment is: finite, symmetric, positive semi-definite.

    **Raises** :class:`~bluedit.errors.DamagedFileError` when it is not.
    """
    if moment_FF.ndim != 2 or moment_FF.shape[0] != moment_FF.shape[1] or not bool(moment_FF.isfinite().all()):
        raise DamagedFileError(path, "is damaged: it is not a square matrix of finite numbers")
    diagonal_F = moment_FF.diagonal()
    # Cauchy and Schwarz: C_ij^2 <= C_ii C_jj; products are rounded.
    bound_FF = (diagonal_F[:, None].clamp_min(0) * diagonal_F).clamp_min(0).sqrt()
    slack = _ROUNDING * float(diagonal_F.abs().max())
    if float((moment_FF - moment_FF.T).abs().max()) > slack or bool((moment_FF.abs() > bound_FF + slack).any()):
        raise DamagedFileError(path, "is damaged: no second moment has such entries")
    warnings.warn(  # of the folder: one for all layers
        f"{path.parent} holds second moments of an earlier version, without hashes: only their symmetry and the size of their "
        "entries were checked; remove them to have them computed again, with hashes",
        stacklevel=4,
    )
