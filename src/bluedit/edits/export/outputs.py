"""What all exports have in common: a summary of what was written, the mark by which a later one replaces it, the model card."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from bluedit.edits.checkpoint import CHECKPOINT_CARD
from bluedit.errors import DamagedFileError, ModelError
from bluedit.models.gguf import read_gguf_header
from bluedit.storage.documents import read_document
from bluedit.storage.files import OutputKind, atomic_file

__all__ = ["CARD", "DIGEST_KEY", "GGUF", "RECORD", "Exported", "Part", "card_beside", "check_card", "folder_kind", "write_card"]

RECORD = "bluedit-export.json"
"""In the folder of an export: what it was made from, and its files."""
CARD = "README.md"
DIGEST_KEY = "bluedit.patch"
"""The setting of a GGUF file that names the patch in it."""
_MARK = "<!-- written by bluedit -->"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One changed weight in an export.

    - `weight`: its name in the model; `stored`: what the export calls it.
    - `kind`: how its numbers are stored (`float32`, `Q8_0`).
    - `rank`: of an adapter's factors; None where whole weights are written.
    - `error`: ||D' - D|| / ||D||, where D' is the change that the export makes.
    - `error_at_keys`: the same within the directions that the change reads, which is what the facts see of it; None for
      adapters.
    """

    weight: str
    stored: str
    kind: str
    rank: int | None = None
    error: float = 0.0
    error_at_keys: float | None = None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: where, as what, weight by weight; what is worth knowing about it (`notes`), and what may be wrong with
    it (`warnings`)."""

    path: Path
    kind: str
    base: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def card(self) -> Path:
        """Where its model card is. A checkpoint has the model's own at the top: what is reverted finds that as it was."""
        if self.kind == "checkpoint":
            return self.path / CHECKPOINT_CARD
        return self.path / CARD if self.path.is_dir() else card_beside(self.path)


def folder_kind(name: str, kind: str) -> OutputKind:
    """The kind of output that is a folder with an export's record in it."""

    def owned(path: Path) -> Collection[str] | None:
        try:
            record = read_document(path / RECORD, sealed=True)
        except DamagedFileError:
            return None
        return {*record.get("files", ()), RECORD, CARD} if record.get("kind") == kind else None

    return OutputKind(name, owned)


def _gguf_owned(path: Path) -> Collection[str] | None:
    try:
        return (path.name,) if DIGEST_KEY in read_gguf_header(path).metadata else None
    except ModelError:
        return None


GGUF = OutputKind("a GGUF file that bluedit wrote", _gguf_owned)
"""What is replaced by a GGUF file where that is asked for."""


def _card_owned(path: Path) -> Collection[str] | None:
    return (path.name,) if path.is_file() and _MARK in path.read_text("utf-8", "replace")[:4096] else None


_CARD_KIND = OutputKind("a model card that bluedit wrote", _card_owned)


def card_beside(path: Path) -> Path:
    """Where the card of an export that is one file goes."""
    return path.with_suffix(".md")


def check_card(path: Path) -> None:
    """**Raises** :class:`~bluedit.errors.InputError` when something else is where the card of a file would go."""
    if card_beside(path).exists():
        _CARD_KIND.check(card_beside(path))


def write_card(exported: Exported, text: Callable[[str], str]) -> Path:
    """Write the card of an export into its folder, or beside its file. `text` makes it, given the mark it has to hold."""
    with atomic_file(exported.card) as temporary:
        temporary.write_text(text(_MARK), encoding="utf-8")
    return exported.card
