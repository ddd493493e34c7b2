"""Saved sessions: what their files hold, how they are checked when they are read, and the plan that they followed."""

from __future__ import annotations

import contextlib
import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor

from bluedit.editors.base import Editor, Setup
from bluedit.editors.settings import current_names
from bluedit.edits import Edit, applied_patches, load_edit
from bluedit.edits.manifest import StoredChat
from bluedit.errors import DamagedFileError, InputError, SessionError, SettingsError, first_line
from bluedit.methods import find_method
from bluedit.models import EditableModel
from bluedit.models.editable import tensor_fingerprint
from bluedit.sessions.legacy import legacy_parts
from bluedit.statistics import Statistics, read_corpus
from bluedit.statistics.corpus import Corpus
from bluedit.storage.documents import parse_object, read_document
from bluedit.storage.files import OutputKind, contents
from bluedit.storage.hashes import check_seal
from bluedit.storage.parsing import read_text, validation_problem
from bluedit.storage.tensors import read_tensors
from bluedit.strategies import Step, Strategy, find_strategy

__all__ = [
    "FORMAT_VERSION",
    "SESSION",
    "SESSION_MARKER",
    "WRITTEN",
    "SavedFolder",
    "SavedSession",
    "check_model",
    "describe_session",
    "inside",
    "keys_name",
    "load_patch",
    "load_state",
    "load_tensors",
    "patch_name",
    "read_session",
    "saved_setup",
]

SESSION_MARKER = "session.json"
"""The file that shows a folder to be a saved session."""
FORMAT_VERSION = 3
"""Version 2 has a hash of every file, and one of `session.json`; version 3 knows editors of every kind."""


class SavedSession(BaseModel):
    """`session.json`: everything but the tensors, and the names of the files that hold those."""

    model_config = ConfigDict(frozen=True)

    format: Literal["bluedit-session"] = "bluedit-session"
    format_version: int = FORMAT_VERSION
    id: str
    """Tells sessions apart."""
    revision: int
    """How often the folder was written; part of file names, so that no file of an earlier state is overwritten."""
    method: str
    parts: dict[str, Any] | str
    """What the method is made of (:meth:`Editor.record`): one of the same name and other parts is another one. Text before
    version 3."""
    strategy: str
    steps: tuple[Step, ...]
    layers: tuple[int, ...]
    settings: dict[str, Any]
    templates: tuple[str, ...]
    chat: StoredChat | None = None
    seed: int
    corpus: str | None
    corpus_identity: str | None
    samples: int | None
    configuration: str
    dtype: str
    unedited: str
    """Hash of all weights that the session does not change."""
    before: dict[str, str]
    """Hashes of those it changes, before the first batch."""
    batches: tuple[str, ...]
    """Per batch the stem of its files: `patch-STEM.safetensors`, and `keys-STEM.safetensors` where something is remembered."""
    state: dict[str, Any]
    """What the method's state has in JSON (:meth:`State.record`)."""
    state_files: dict[str, str]
    """The files of its tensors (:meth:`State.tensors`)."""
    weights_file: str
    whole_file: str | None
    """The patch of the finished sequence, where a constraint acted on its whole change."""
    max_length: int | None = None
    until: float | None = None
    digests: dict[str, str] = {}
    """Of every tensor file, by its name; none in version 1."""

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, document: Any) -> Any:
        """Versions 1 and 2 knew inverse metrics only."""
        if not isinstance(document, dict) or "metrics" not in document:
            return document
        found: dict[str, Any] = dict(document)
        files = {"metrics": found.pop("metrics_file", None), "initial": found.pop("initial_file", None)}
        found["state"] = found.pop("metrics")
        found["state_files"] = {name: file for name, file in files.items() if file}
        return found


@dataclass
class SavedFolder:
    """What a session remembers of a folder it was saved in."""

    revision: int = 0
    attempted: int = 0
    """The last revision that was begun to be written."""
    stems: list[str] = field(default_factory=list[str])
    state_files: dict[str, str] = field(default_factory=dict[str, str])
    """Where the tensors of the state are, as long as they are the ones in memory."""
    digests: dict[str, str] = field(default_factory=dict[str, str])
    """The tensor files of the current state, with the hash of each."""


WRITTEN = re.compile(r"(patch|keys)-\d{4,}-\d+\.safetensors|[a-z_]+-\d+\.safetensors")
"""Names of files that a session writes; all others in its folder are somebody else's."""


def patch_name(stem: str) -> str:
    return f"patch-{stem}.safetensors"


def keys_name(stem: str) -> str:
    return f"keys-{stem}.safetensors"


def _owned(path: Path) -> list[str] | None:
    try:
        document = read_document(path / SESSION_MARKER)
    except DamagedFileError:
        return None
    ours = document.get("format") == "bluedit-session"
    return [SESSION_MARKER, *(name for name in contents(path) if WRITTEN.fullmatch(name))] if ours else None


SESSION = OutputKind("a saved session", _owned)
"""What is replaced by a session where that is asked for."""


def load_patch(path: Path, name: str, saved: SavedSession) -> Edit:
    with warnings.catch_warnings():
        if saved.format_version == 1:  # which was said already
            warnings.simplefilter("ignore")
        patch = load_edit(inside(path, name))
    if saved.format_version > 1 and saved.digests.get(name) != patch.digest:
        raise DamagedFileError(path / name, "is another patch, put in its place")
    return patch


def load_tensors(path: Path, name: str, saved: SavedSession) -> dict[str, Tensor]:
    """The tensors of a session's file, checked against its hash."""
    file = read_tensors(inside(path, name))
    if saved.format_version > 1 and saved.digests.get(name) != file.digest:
        raise DamagedFileError(path / name, "is another file, put in its place")
    if not all(bool(tensor.isfinite().all()) for tensor in file.tensors.values()):
        raise DamagedFileError(path / name, "is damaged: it holds values that are not finite")
    return file.tensors


def inside(path: Path, name: str) -> Path:
    # A name from a file is a name, not a path: it may not lead out of the folder.
    if Path(name).name != name:
        raise SessionError(f"{path / SESSION_MARKER} names a file outside its folder; it was not written by bluedit")
    return path / name


def read_session(path: Path) -> SavedSession:
    marker = path / SESSION_MARKER
    if not marker.is_file():
        raise SessionError(f"{path} is not a saved session: it has no {SESSION_MARKER}")
    try:
        document = parse_object(read_text(marker), marker)
        kind, version = document.get("format"), document.get("format_version")
        if kind != "bluedit-session" or not isinstance(version, int) or version > FORMAT_VERSION:
            raise SessionError(
                f"{marker} is {kind} version {version}; this bluedit reads bluedit-session up to {FORMAT_VERSION}"
            )
        return SavedSession.model_validate(check_seal(document, marker, required=version > 1))
    except DamagedFileError as error:
        raise SessionError(f"{error}; start the session again, or restore the file") from error
    except ValidationError as error:
        raise SessionError(f"{marker} cannot be read: {validation_problem(error)}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, SessionError):
            raise
        raise SessionError(f"{marker} cannot be read: {first_line(error)}") from error


def check_model(path: Path, saved: SavedSession, model: EditableModel) -> None:
    """**Raises** :class:`~bluedit.errors.SessionError` unless the model is the one the session was begun on, unedited."""
    parameters = dict(model.model.named_parameters())
    if saved.configuration != model.configuration_fingerprint() or not saved.before.keys() <= parameters.keys():
        raise SessionError(f"{path} was begun on a model of another configuration; load the model it was begun on")
    if saved.dtype != str(model.model.dtype):
        wanted, found = (name.removeprefix("torch.") for name in (saved.dtype, str(model.model.dtype)))
        raise SessionError(f"{path} was begun on a model in {wanted}, and this one is in {found}; load it in {wanted}")
    if saved.chat != model.text.chat:
        begun = "plain prompts" if saved.chat is None else "prompts in a chat template"
        raise SessionError(
            f"{path} was begun with {begun}, and this model has others; load it in the same way (--chat, chat=True)"
        )
    for name, fingerprint in saved.before.items():
        if tensor_fingerprint(parameters[name]) != fingerprint:
            raise SessionError(
                f"{path} was begun on other weights: {name} is not what it was before the first batch. Load the model it was "
                "begun on, unedited"
            )
    if saved.unedited != model.fingerprint(without=saved.before.keys()):
        raise SessionError(f"{path} was begun on other weights, in parts that it does not edit; load the model it was begun on")
    if applied_patches(model):
        raise SessionError("the model has patches applied already; revert them, or reload it, before resuming a session")


def saved_setup(path: Path, saved: SavedSession, method: Editor | None, statistics: Statistics | None) -> Setup:
    """The setup that a saved session follows."""
    base = method or find_method(saved.method)
    if base.name != saved.method:
        raise SessionError(f"{path} was begun with method {saved.method!r}, not {base.name!r}")
    strategy = base.strategy
    if strategy.name != saved.strategy or strategy.steps(saved.layers) != saved.steps:
        strategy = _strategy(saved)
    base = base.with_strategy(strategy)
    if saved.parts != (legacy_parts(base) if isinstance(saved.parts, str) else base.record()):
        raise SessionError(f"{path} was begun with a {saved.method!r} made of other parts; pass that method")
    names = base.settings.names()
    try:
        given = current_names(saved.settings, warn=False)
        if saved.format_version < 3:  # which named the settings of all methods
            given = {name: value for name, value in given.items() if name in names}
        settings = base.settings.override(given)
    except SettingsError as error:
        raise SessionError(f"the session in {path} is damaged: {error}") from error
    if statistics is None:
        corpus = _corpus(path, saved)
        statistics = Statistics(corpus, saved.samples, max_length=saved.max_length, until=saved.until)
    elif statistics.corpus and statistics.corpus.identity == saved.corpus_identity:
        # The same text by another path: patches of one sequence name it alike.
        statistics = replace(statistics, corpus=replace(statistics.corpus, name=saved.corpus))
    return Setup(
        method=base,
        layers=saved.layers,
        settings=settings,
        statistics=statistics,
        templates=saved.templates,
        seed=saved.seed,
    )


def _strategy(saved: SavedSession) -> Strategy:
    """The known strategy that makes the saved steps, or one made of them."""
    with contextlib.suppress(SettingsError):
        known = find_strategy(saved.strategy)
        if known.steps(saved.layers) == saved.steps:
            return known
    return Strategy(saved.strategy, lambda _: saved.steps, one_layer=len(saved.steps) == 1)


def _corpus(path: Path, saved: SavedSession) -> Corpus | None:
    """The corpus that second moments came from. Where the inverses are saved it is a name only: nothing is read from it
    again."""
    if saved.corpus is None or saved.corpus_identity is None:
        return None
    if saved.state:
        return Corpus(saved.corpus, saved.corpus_identity, 0)
    corpus = read_corpus(saved.corpus)
    if corpus.identity != saved.corpus_identity:
        raise SessionError(f"{path} was begun with another content of {saved.corpus}; restore that file, or start again")
    return corpus


def load_state(path: Path, saved: SavedSession) -> dict[str, dict[str, Tensor]]:
    """The tensors of the state, file by file."""
    return {name: load_tensors(path, file, saved) for name, file in saved.state_files.items()}


def describe_session(folder: str | Path) -> dict[str, Any]:
    """What a saved session holds, for JSON: how it edits, and how many facts each batch has. No model is needed.

    **Raises** :class:`~bluedit.errors.SessionError` when the folder holds none, or a damaged one.
    """
    path = Path(folder).expanduser()
    saved = read_session(path)
    try:
        patches = [load_patch(path, patch_name(stem), saved) for stem in saved.batches]
    except InputError as error:
        raise SessionError(f"the session in {path} is damaged: {error}") from error
    return {
        "method": saved.method,
        "strategy": saved.strategy,
        "layers": list(saved.layers),
        "settings": saved.settings,
        "seed": saved.seed,
        "corpus": patches[0].manifest.corpus if patches else saved.corpus,
        "samples": saved.samples,
        "dtype": saved.dtype.removeprefix("torch."),
        "chat": saved.chat is not None,
        "batches": [len(patch.facts) for patch in patches],
        "finished": saved.whole_file is not None,
    }
