"""Stored second moments, keyed by everything that determines them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bluedit.errors import StatisticsError
from bluedit.files import atomic_file, cache_folder
from bluedit.models import EditableModel
from bluedit.statistics.corpus import Corpus
from bluedit.statistics.moments import SecondMoment, second_moments

__all__ = ["Statistics"]

_FORMAT = 1


@dataclass
class Statistics:
    """Second moments of one model over one corpus, computed when first asked for and kept in a folder.

    **Arguments**

    - `corpus`: the text; None when every moment that will be asked for is given in `known`.
    - `samples`: at most this many documents of it; all when None.
    - `folder`: where moments are kept; the user's cache folder when None.
    - `known`: moments that need not be looked up, for tests and for statistics from elsewhere.
    """

    corpus: Corpus | None = None
    samples: int | None = None
    folder: Path | None = None
    known: Mapping[int, SecondMoment] = field(default_factory=dict)

    def moments(
        self, model: EditableModel, layers: Sequence[int], progress: Callable[[int, int], object] | None = None
    ) -> dict[int, SecondMoment]:
        """The moments of `layers`: given, stored, or computed now, all missing ones in one pass, and stored.

        `progress` is called as `progress(done, total)` in documents, after each batch, while moments are computed.
        """
        found = {layer: self.known[layer] for layer in layers if layer in self.known}
        missing = [layer for layer in dict.fromkeys(layers) if layer not in found]
        if not missing:
            return found
        if self.corpus is None:
            raise StatisticsError(
                f"no second moments for layers {missing} and no corpus to take them from; name one: "
                "--corpus text:FILE on the command line, corpus='text:FILE' in Python"
            )
        paths = {layer: self._path(model, layer) for layer in missing}
        for layer, path in paths.items():
            if path.exists():
                found[layer] = _load(path)
        missing = [layer for layer in missing if layer not in found]
        if missing:
            total = min(self.samples or self.corpus.size, self.corpus.size)
            report = None if progress is None else lambda done: progress(done, total)
            computed = second_moments(model, self.corpus.documents(self.samples), missing, progress=report)
            for layer, moment in computed.items():
                self._store(paths[layer], moment, layer)
                found[layer] = replace(moment, basis_file=_basis_file(paths[layer]))
        return found

    def _path(self, model: EditableModel, layer: int) -> Path:
        assert self.corpus is not None
        key = {
            "format": _FORMAT,
            "model": model.fingerprint(through=layer),
            "layer": layer,
            "corpus": self.corpus.identity,
            "samples": self.samples,
            "max_length": model.context_length,
            "dtype": str(model.weight(layer).dtype),
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        return (self.folder or cache_folder() / "second_moments") / f"{name}.safetensors"

    def _store(self, path: Path, moment: SecondMoment, layer: int) -> None:
        assert self.corpus is not None
        metadata = {"tokens": str(moment.tokens), "layer": str(layer), "corpus": self.corpus.name}
        with atomic_file(path) as temporary:
            save_file({"second_moment": moment.matrix_FF.cpu()}, temporary, metadata=metadata)


def _load(path: Path) -> SecondMoment:
    try:
        with safe_open(path, "pt") as file:
            moment_FF = file.get_tensor("second_moment").to(torch.float64)
            return SecondMoment(moment_FF, int(file.metadata()["tokens"]), _basis_file(path))
    except (SafetensorError, KeyError, OSError, TypeError, ValueError) as error:
        raise StatisticsError(f"the stored statistic {path} cannot be read ({error}); remove it and run again") from error


def _basis_file(path: Path) -> Path:
    """The eigenbasis of a stored moment lies beside it."""
    return path.with_suffix(".eigenbasis.safetensors")
