"""Critical layers that were chosen, stored for every model in the user's cache: what `--layers auto` reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bluedit.errors import DamagedFileError, SettingsError
from bluedit.models import EditableModel
from bluedit.models.inputs.chat import Chat
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.files import cache_folder
from bluedit.strategies import Strategy

__all__ = ["Choice", "recall", "remember"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Critical layers, and what the choice rests on.

    - `layers`: all of the range, rising.
    - `peak`: the layer of the range whose MLPs have the largest effect: the one to edit where only one is.
    - `facts`: how many facts were averaged.
    - `agreement`: the fraction of bootstrap resamples of the facts that choose the same first and last layer.
    """

    layers: tuple[int, ...]
    peak: int
    facts: int
    agreement: float

    @property
    def boundary(self) -> tuple[int, int]:
        """BLUE's pair."""
        return self.layers[0], self.layers[-1]

    def layers_for(self, strategy: Strategy) -> tuple[int, ...]:
        """The layers to give to a strategy: the peak alone where one layer is edited."""
        return (self.peak,) if strategy.one_layer else self.layers

    def as_dict(self) -> dict[str, Any]:
        """The choice for JSON."""
        return {**asdict(self), "layers": list(self.layers), "boundary": list(self.boundary)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Choice:
        """The choice of :meth:`as_dict`."""
        return cls(
            layers=tuple(record["layers"]),
            peak=record["peak"],
            facts=record["facts"],
            agreement=record["agreement"],
        )

    def __str__(self) -> str:
        first, last = self.boundary
        return f"{first}-{last}" if first < last else str(first)


def remember(choice: Choice, fingerprint: str, chat: Chat | None = None) -> None:
    """Store a choice for the model of this fingerprint, traced plain or in a chat, unless one on more facts is stored."""
    path = _path(fingerprint, chat)
    kept = _load(path)
    if kept is None or kept.facts <= choice.facts:
        write_document(path, choice.as_dict() | {"key": path.stem})


def recall(model: EditableModel) -> Choice:
    """The choice stored for a model.

    **Raises** :class:`~bluedit.errors.SettingsError` when there is none, with the way to one.
    """
    choice = _load(_path(model.fingerprint(), model.text.chat))
    if choice is None:
        flag = " --chat" if model.text.chat else ""
        raise SettingsError(
            f"no trace of this model is stored to choose its layers from; run `bluedit trace --model NAME --facts FILE{flag}` "
            "on facts it knows, name such a file with --trace-facts, or name the layers"
        )
    return choice


def _path(fingerprint: str, chat: Chat | None) -> Path:
    shell = "-" + hashlib.sha256(json.dumps(chat.identity).encode()).hexdigest()[:16] if chat else ""
    return cache_folder() / "layers" / f"{fingerprint}{shell}.json"


def _load(path: Path) -> Choice | None:
    """The choice in a file; None where there is none that can be read: it is only a cache."""
    try:
        record = read_document(path)
        return Choice.of(record) if record.get("key", path.stem) == path.stem else None
    except (DamagedFileError, ValueError, KeyError, TypeError):
        return None
