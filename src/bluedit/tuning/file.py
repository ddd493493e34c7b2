"""The tuning file: every trial of a search for settings, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bluedit.editors.base import Editor
from bluedit.editors.settings import current_names
from bluedit.errors import DamagedFileError, SettingsError
from bluedit.models import EditableModel
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.files import OutputKind
from bluedit.version import __version__

__all__ = ["TUNING", "Check", "Trial", "Tuning", "read_tuning"]

_FORMAT = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(_Record):
    """One point of the search.

    - `settings`: the varied ones.
    - `scores`: ES, PS, NS and S in percent, each with its interval and n; empty when the trial failed.
    - `objective`: what the search maximises, in points; None when the trial failed.
    - `relative_norm`: the largest ||D|| / ||W|| of any layer and batch.
    - `problem`: why it failed.
    """

    settings: dict[str, float]
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    objective: float | None = None
    relative_norm: float | None = None
    seconds: float = 0.0
    problem: str | None = None


class Check(_Record):
    """Start and outcome of the search on facts that it has not seen; `difference` is the gain in S, paired over facts."""

    start: Trial
    chosen: Trial
    difference: dict[str, float] | None = None


class Tuning(_Record):
    """A tuning file.

    - `configuration`: of the model's architecture; `claim`: a hash of all that the trials depend on.
    - `method`, `strategy`, `layers`: what the settings were found for.
    - `settings`: those to edit with, all that the method uses; the start's until a search is complete.
    - `varied`: the names that were searched over; `moves`: the trials that were moved to, by their number from 0; `chosen`:
      the trial that was chosen.
    - `facts`: how many were edited in the search and in the check, and by reason how many were left out.
    """

    format: Literal[1] = _FORMAT
    bluedit: str = __version__
    configuration: str
    claim: str
    method: str
    strategy: str
    layers: tuple[int, ...]
    batch_size: int
    settings: dict[str, Any]
    varied: tuple[str, ...]
    trials: tuple[Trial, ...] = ()
    moves: tuple[int, ...] = ()
    chosen: int | None = None
    check: Check | None = None
    facts: dict[str, Any]
    complete: bool = False

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_document(path, json.loads(self.model_dump_json()))

    def settings_for(self, model: EditableModel, method: Editor) -> dict[str, Any]:
        """The settings, for an edit of this model with this method.

        **Raises** :class:`~bluedit.errors.SettingsError` where they were found for something else, or not found yet.
        """
        if not self.complete:
            raise SettingsError("the tuning file is from an interrupted search; run the same `bluedit tune` again to finish it")
        if self.configuration != model.configuration_fingerprint():
            raise SettingsError("the tuning file is for a model with another configuration; run `bluedit tune` for this one")
        if (self.method, self.strategy) != (method.name, method.strategy.name):
            raise SettingsError(
                f"the tuning file is for {self.method} with strategy {self.strategy}; edit with those, or run `bluedit tune` "
                f"for {method.name} with strategy {method.strategy.name}"
            )
        return current_names(self.settings, warn=False)


def _owned(path: Path) -> tuple[str, ...] | None:
    try:
        read_tuning(path)
    except SettingsError:
        return None
    return (path.name,)


TUNING = OutputKind("a tuning file", _owned)
"""What is replaced by a tuning file where that is asked for."""


def read_tuning(path: Path) -> Tuning:
    """A tuning file.

    **Raises** :class:`~bluedit.errors.SettingsError` for a file that is none, or damaged.
    """
    try:
        return Tuning.model_validate(read_document(path), strict=False)
    except DamagedFileError as error:
        raise SettingsError(
            f"{error}: it is not a tuning file, or is damaged; `bluedit tune --out` writes tuning files, and --set changes a "
            "setting"
        ) from error
    except ValidationError as error:
        raise SettingsError(
            f"{path} is not a tuning file, or is of another version; `bluedit tune --out` writes tuning files"
        ) from error
