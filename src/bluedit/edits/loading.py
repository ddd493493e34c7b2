"""Loading edits of any kind: the class is found by the `kind` in the manifest."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from bluedit.edits.base import Edit, read_stored, registered
from bluedit.edits.patch import Patch
from bluedit.errors import PatchError, did_you_mean

__all__ = ["load_edit"]

_ENTRY_POINTS = "bluedit.edits"
"""The group in which installed packages name their kinds of edits, each by its `kind`."""


def load_edit(path: str | Path) -> Edit:
    """Read an edit of any kind; see :meth:`~bluedit.edits.base.Edit.load`.

    **Raises** :class:`~bluedit.errors.PatchError` when it is missing, damaged, of a later format, or of a kind that nothing
    here reads.
    """
    stored = read_stored(path)
    name = stored.manifest.kind
    if name == Patch.kind:
        return Patch.of(stored)
    if name not in registered():
        for entry in entry_points(group=_ENTRY_POINTS, name=name):
            entry.load()
    kinds = registered()
    if name not in kinds:
        hint = did_you_mean(name, kinds, what="kind of edit")
        raise PatchError(f"{stored.source} cannot be read: {hint} Install the package that brings it.")
    return kinds[name].of(stored)
