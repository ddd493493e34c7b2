"""Second moments as a file to hand on: taken once, used by everyone with the same weights.

One `.safetensors` file with a float64 matrix per layer, `second_moment.LAYER`, and its :class:`Origin` as JSON in the metadata.
Nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bluedit.errors import DamagedFileError, StatisticsError
from bluedit.models import EditableModel
from bluedit.models.editable import tensor_fingerprint
from bluedit.statistics.convergence import Point
from bluedit.statistics.moments import SecondMoment
from bluedit.storage.documents import document_text, parse_document
from bluedit.storage.files import OutputKind, atomic_file

__all__ = ["EXPORT", "Origin", "SharedStatistics", "export_statistics"]

_ORIGIN = "bluedit"


class Origin(BaseModel):
    """What the moments in a file are of, and what determined them.

    - `model`: the name it was loaded by, for information; `fingerprints` tell by layer whether another is the same up to there.
    - `corpus`: as it was named; `corpus_identity` is what stored moments are keyed by.
    - `samples`: the limit that was asked for; `documents` and `tokens` are what was there.
    - `dtype`: of the weights that the passes ran with.
    - `hashes`: of the matrices, by layer.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal["bluedit-statistics"] = "bluedit-statistics"
    format_version: Literal[1] = 1
    model: str
    fingerprints: dict[int, str]
    corpus: str
    corpus_identity: str
    samples: int | None
    max_length: int
    dtype: str
    documents: int | None
    tokens: int
    curve: dict[int, tuple[Point, ...]]
    hashes: dict[int, str]
    version: str

    @property
    def digest(self) -> str:
        """A hash of all of it, the matrices included."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


@dataclass(frozen=True)
class SharedStatistics:
    """A file of exported moments: what it says of itself has been read, its matrices not yet."""

    path: Path
    origin: Origin

    @classmethod
    def open(cls, path: Path) -> SharedStatistics:
        """**Raises** :class:`~bluedit.errors.StatisticsError` for a file that is none of these, or damaged."""
        try:
            with safe_open(path, "pt") as file:
                described = (file.metadata() or {}).get(_ORIGIN)
        except (SafetensorError, OSError) as error:
            raise StatisticsError(f"{path} cannot be read ({error}); export or copy it again") from error
        if described is None:
            raise StatisticsError(f"{path} holds no exported statistics; `bluedit stats --export` writes such files")
        try:
            return cls(path, Origin.model_validate(parse_document(described, path)))
        except DamagedFileError as error:
            raise StatisticsError(f"{error}; export or copy it again") from error
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise StatisticsError(
                f"{path} is damaged, or from another version of bluedit ({where}: {error.errors()[0]['msg']}); export it again"
            ) from error

    def moments(self, model: EditableModel, layers: Sequence[int]) -> dict[int, SecondMoment]:
        """The moments of `layers`, for this model.

        **Raises** :class:`~bluedit.errors.StatisticsError` for layers that are not in the file, for a model with other weights
        at or below one of them, and for matrices that are not what was exported.
        """
        origin = self.origin
        if absent := [layer for layer in layers if layer not in origin.fingerprints]:
            held = ", ".join(map(str, sorted(origin.fingerprints)))
            raise StatisticsError(f"{self.path} holds no second moment of layer {absent[0]}, only of {held}")
        for layer in layers:
            if model.fingerprint(through=layer) != origin.fingerprints[layer]:
                raise StatisticsError(
                    f"{self.path} belongs to another model ({origin.model}): configuration or weights up to layer {layer} "
                    "differ from this one's; take the moments of this model, or load that one, unedited"
                )
        found: dict[int, SecondMoment] = {}
        try:
            with safe_open(self.path, "pt") as file:
                for layer in layers:
                    moment_FF = file.get_tensor(f"second_moment.{layer}")
                    whole = moment_FF.dtype == torch.float64 and moment_FF.shape == (model.structure.d_ff,) * 2
                    if not whole or tensor_fingerprint(moment_FF) != origin.hashes[layer]:
                        raise StatisticsError(f"{self.path} is damaged at layer {layer}; export or copy it again")
                    curve = origin.curve.get(layer, ())
                    found[layer] = SecondMoment(moment_FF, origin.tokens, documents=origin.documents, curve=curve)
        except (SafetensorError, KeyError, OSError) as error:
            raise StatisticsError(f"{self.path} cannot be read ({error}); export or copy it again") from error
        return found


def export_statistics(
    path: Path,
    model: EditableModel,
    moments: Mapping[int, SecondMoment],
    *,
    name: str,
    corpus: str,
    corpus_identity: str,
    samples: int | None,
    max_length: int,
    replace: bool = True,
) -> Origin:
    """Write moments of one pass to a file that others can use, F^2 x 8 bytes per layer."""
    one = next(iter(moments.values()))
    origin = Origin(
        model=name,
        fingerprints={layer: model.fingerprint(through=layer) for layer in moments},
        corpus=corpus,
        corpus_identity=corpus_identity,
        samples=samples,
        max_length=max_length,
        dtype=str(model.weight(next(iter(moments))).dtype),
        documents=one.documents,
        tokens=one.tokens,
        curve={layer: moment.curve for layer, moment in moments.items() if moment.curve},
        hashes={layer: tensor_fingerprint(moment.matrix_FF) for layer, moment in moments.items()},
        version=metadata.version("bluedit"),
    )
    tensors = {f"second_moment.{layer}": moment.matrix_FF.cpu().contiguous() for layer, moment in moments.items()}
    described = document_text(json.loads(origin.model_dump_json()))
    with atomic_file(path, replace=replace) as temporary:
        save_file(tensors, temporary, metadata={_ORIGIN: described})
    return origin


def _owned(path: Path) -> tuple[str, ...] | None:
    try:
        SharedStatistics.open(path)
    except StatisticsError:
        return None
    return (path.name,)


EXPORT = OutputKind("a file of statistics that bluedit exported", _owned)
"""What is replaced by an export where that is asked for."""
