"""Writing a session to its folder, so that a kill at any moment leaves the last complete state."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bluedit.editors.base import Edited, Setup, State
from bluedit.edits import Edit
from bluedit.models import EditableModel
from bluedit.sessions.files import SESSION_MARKER, SavedFolder, SavedSession, keys_name, patch_name
from bluedit.storage.documents import write_document
from bluedit.storage.tensors import write_tensors

__all__ = ["Content", "write_session"]


@dataclass(frozen=True)
class Content:
    """What a session holds when it is saved; `unedited` hashes all weights but the named ones."""

    id: str
    model: EditableModel
    setup: Setup
    batches: tuple[Edited, ...]
    whole: Edit | None
    state: State
    unedited: Callable[[tuple[str, ...]], str]

    @property
    def before(self) -> dict[str, str]:
        """The hashes of the weights that it changes, before the first batch."""
        found: dict[str, str] = {}
        for batch in self.batches:
            for name, record in batch.edit.manifest.weights.items():
                found.setdefault(name, record.before)
        return found


def write_session(path: Path, known: SavedFolder, content: Content) -> SavedFolder:
    """Write what the folder lacks, under names that no earlier state used, and last `session.json`, which names them all.

    `known` is what is there already. **Returns** what is there afterwards.
    """
    number = max(known.revision, known.attempted) + 1
    known.attempted = number
    folder = SavedFolder(number, number, list(known.stems), dict(known.state_files))
    digests: dict[str, str] = {}

    def write(name: str, what: Edit | Mapping[str, Tensor]) -> str:
        if isinstance(what, Edit):
            what.save(path / name, replace=True)
            digests[name] = what.digest
        else:
            digests[name] = write_tensors(path / name, what)
        return name

    for place in range(len(folder.stems), len(content.batches)):
        batch, stem = content.batches[place], f"{place + 1:04}-{number}"
        write(patch_name(stem), batch.edit)
        if batch.memory:
            write(keys_name(stem), batch.memory)
        folder.stems.append(stem)
    before, network = content.before, content.model.model
    weights = write(f"weights-{number}.safetensors", {name: network.get_parameter(name).detach() for name in before})
    whole = write(f"whole-{number}.safetensors", content.whole) if content.whole is not None else None
    for name, tensors in content.state.tensors().items():
        if name not in folder.state_files:
            folder.state_files[name] = write(f"{name}-{number}.safetensors", tensors)
    names = {name for stem in folder.stems for name in (patch_name(stem), keys_name(stem))}
    names |= {weights, whole, *folder.state_files.values()}
    folder.digests = {name: digest for name, digest in (known.digests | digests).items() if name in names}
    record = _record(content, folder, before, weights, whole)
    write_document(path / SESSION_MARKER, json.loads(record.model_dump_json()))
    return folder


def _record(content: Content, folder: SavedFolder, before: dict[str, str], weights: str, whole: str | None) -> SavedSession:
    """What `session.json` holds."""
    setup, model = content.setup, content.model
    corpus = setup.statistics.corpus
    return SavedSession(
        id=content.id,
        revision=folder.revision,
        method=setup.method.name,
        parts=setup.method.record(),
        strategy=setup.method.strategy.name,
        steps=setup.method.strategy.steps(setup.layers),
        layers=setup.layers,
        settings=setup.settings.as_dict(),
        templates=setup.templates,
        seed=setup.seed,
        corpus=corpus.name if corpus else None,
        corpus_identity=corpus.identity if corpus else None,
        samples=setup.statistics.samples,
        max_length=setup.statistics.max_length,
        until=setup.statistics.until,
        configuration=model.configuration_fingerprint(),
        dtype=str(model.model.dtype),
        chat=model.text.chat,
        unedited=content.unedited(tuple(before)),
        before=before,
        batches=tuple(folder.stems),
        state=content.state.record(),
        state_files=folder.state_files,
        weights_file=weights,
        whole_file=whole,
        digests=folder.digests,
    )
