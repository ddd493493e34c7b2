"""Saved sessions: what their files hold, how they are checked when they are read, and the plan that they followed."""

from __future__ import annotations

import contextlib
import re
import warnings
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from bluedit.editing import Plan
from bluedit.editors.closed_form.inverse_metric import InverseMetric
from bluedit.edits import Patch, applied_patches
from bluedit.errors import DamagedFileError, InputError, SessionError, SettingsError, first_line
from bluedit.methods import Method, Objective, find_method
from bluedit.models import EditableModel
from bluedit.models.editable import tensor_fingerprint
from bluedit.models.inputs.chat import Chat
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
    "SavedMetric",
    "SavedSession",
    "check_model",
    "describe_session",
    "inside",
    "keys_name",
    "load_metrics",
    "load_patch",
    "load_tensors",
    "method_parts",
    "patch_name",
    "read_session",
    "saved_plan",
]

SESSION_MARKER = "session.json"
"""The file that shows a folder to be a saved session."""
FORMAT_VERSION = 2
"""Version 2 has a hash of every file, and one of `session.json`."""


class SavedMetric(BaseModel):
    model_config = ConfigDict(frozen=True)

    condition: float | None
    rank: int | None


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
    parts: str
    """What the method is made of: one of the same name and other parts is another one."""
    strategy: str
    steps: tuple[Step, ...]
    layers: tuple[int, ...]
    settings: dict[str, Any]
    templates: tuple[str, ...]
    chat: Chat | None = None
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
    """Per batch the stem of its files: `patch-STEM.safetensors`, and `keys-STEM.safetensors` where keys are kept."""
    metrics: dict[int, SavedMetric]
    metrics_file: str | None
    initial_file: str | None
    """The inverse metrics before the first batch, where past keys have changed them since."""
    weights_file: str
    whole_file: str | None
    """The patch of the finished sequence, where its whole change was restrained."""
    max_length: int | None = None
    until: float | None = None
    digests: dict[str, str] = {}
    """Of every tensor file, by its name; none in version 1."""


@dataclass
class SavedFolder:
    """What a session remembers of a folder it was saved in."""

    revision: int = 0
    attempted: int = 0
    """The last revision that was begun to be written."""
    stems: list[str] = field(default_factory=list[str])
    metrics_file: str | None = None
    """Where the running inverses are, as long as they are the ones in memory."""
    initial_file: str | None = None
    digests: dict[str, str] = field(default_factory=dict[str, str])
    """The tensor files of the current state, with the hash of each."""


WRITTEN = re.compile(r"(patch|keys)-\d{4,}-\d+\.safetensors|(weights|metrics|initial|whole)-\d+\.safetensors")
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


def load_patch(path: Path, name: str, saved: SavedSession) -> Patch:
    with warnings.catch_warnings():
        if saved.format_version == 1:  # which was said already
            warnings.simplefilter("ignore")
        patch = Patch.load(inside(path, name))
    if saved.format_version > 1 and saved.digests.get(name) != patch.digest:
        raise DamagedFileError(path / name, "is another patch, put in its place")
    return patch


def load_tensors(path: Path, name: str, saved: SavedSession) -> dict[str, Tensor]:
    """The tensors of a session's file, checked against its hash."""
    file = read_tensors(inside(path, name))
    if saved.format_version > 1 and saved.digests.get(name) != file.digest:
        raise DamagedFileError(path / name, "is another file, put in its place")
    if not all(bool(tensor.isfinite().all()) for tensor in file.tensors.values()):
        raise DamagedFileError(path / name, "is damaged: it holds what is no number")
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
        raise SessionError(f"{error}; begin the session anew, or restore the file") from error
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
        raise SessionError(f"{path} was begun with {begun}, and this model has others; load it as then (--chat, chat=True)")
    for name, fingerprint in saved.before.items():
        if tensor_fingerprint(parameters[name]) != fingerprint:
            raise SessionError(
                f"{path} was begun on other weights: {name} is not what it was before the first batch. Load the model it was "
                "begun on, unedited"
            )
    if saved.unedited != model.fingerprint(without=saved.before.keys()):
        raise SessionError(f"{path} was begun on other weights, in parts that it does not edit; load the model it was begun on")
    if applied_patches(model):
        raise SessionError("the model has patches applied already; revert them, or load it afresh, before resuming a session")


def saved_plan(path: Path, saved: SavedSession, method: Method | None, statistics: Statistics | None) -> Plan:
    """The plan that a saved session followed, for no facts yet."""
    base = method or find_method(saved.method)
    if base.name != saved.method:
        raise SessionError(f"{path} was begun with method {saved.method!r}, not {base.name!r}")
    strategy = base.strategy
    if strategy.name != saved.strategy or strategy.steps(saved.layers) != saved.steps:
        strategy = _strategy(saved)
    base = base.with_strategy(strategy)
    if method_parts(base) != saved.parts:
        raise SessionError(f"{path} was begun with a {saved.method!r} of other parts; give that one as method")
    try:
        settings = base.settings.override(saved.settings)
    except SettingsError as error:
        raise SessionError(f"the session in {path} is damaged: {error}") from error
    if statistics is None:
        corpus = _corpus(path, saved)
        statistics = Statistics(corpus, saved.samples, max_length=saved.max_length, until=saved.until)
    elif statistics.corpus and statistics.corpus.identity == saved.corpus_identity:
        # The same text by another path: patches of one sequence name it alike.
        statistics = replace(statistics, corpus=replace(statistics.corpus, name=saved.corpus))
    return Plan(
        method=base,
        layers=saved.layers,
        settings=settings,
        statistics=statistics,
        templates=saved.templates,
        facts=(),
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
    if saved.metrics:
        return Corpus(saved.corpus, saved.corpus_identity, 0)
    corpus = read_corpus(saved.corpus)
    if corpus.identity != saved.corpus_identity:
        raise SessionError(f"{path} was begun with another content of {saved.corpus}; restore that file, or begin anew")
    return corpus


def method_parts(method: Method) -> str:
    """What a method is made of, but for its name, strategy and default settings."""
    return "; ".join(f"{name}={_part(getattr(method, attribute))}" for name, attribute in _PARTS.items())


_PARTS = {
    "prior": "prior",
    "noise": "noise",
    "reads_bare_prompt": "reads_bare_prompt",
    "keeps_past": "caches_keys",
    "objective": "objective",
    "restraint": "constraint",
    "largest_batch": "largest_batch",
    "fine_tuning": "fine_tuning",
}


def _part(value: Any) -> str:
    # Parts are frozen dataclasses, whose repr says all; of any other object the type has to do.
    if isinstance(value, Objective):
        return repr(value).replace("components=", "sites=")
    return repr(value) if is_dataclass(value) or value is None or isinstance(value, int | float) else type(value).__qualname__


def load_metrics(path: Path, name: str | None, saved: SavedSession, size: int) -> dict[int, InverseMetric]:
    tensors = load_tensors(path, name, saved) if name else {}
    if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != {str(layer): (size, size) for layer in saved.metrics}:
        raise ValueError(f"{name} does not hold one {size} x {size} matrix for each edited layer")
    return {layer: InverseMetric(tensors[str(layer)], record.condition, record.rank) for layer, record in saved.metrics.items()}


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
