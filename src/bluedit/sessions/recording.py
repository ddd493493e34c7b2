"""Edits into a ledger: facts, batch by batch, and facts taken out of what is there.

A sequence is saved in the ledger's folder after every batch, and the batch becomes a version after that. So a killed command
leaves a whole number of batches in both, the ledger's last batch at most missing; the same command resumes, and first adds
what is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bluedit.editors.base import Editor, Setup
from bluedit.edits import Edit, merge
from bluedit.edits.base import applied_patches, arrange, settled
from bluedit.edits.ledger import Batch, Ledger, Version
from bluedit.errors import LedgerError, did_you_mean, excerpt
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.progress import Progress, silent
from bluedit.sessions.files import SESSION
from bluedit.sessions.resolving import setup_of, solve_again
from bluedit.sessions.sequence import edit_in_sequence
from bluedit.sessions.session import Session
from bluedit.statistics import Statistics
from bluedit.storage.files import discard

__all__ = ["drop_from_ledger", "edit_into_ledger"]


def edit_into_ledger(
    ledger: Ledger,
    model: EditableModel,
    setup: Setup,
    facts: Sequence[Fact],
    batch_size: int | None = None,
    *,
    note: str = "",
    progress: Progress = silent,
) -> Edit:
    """Edit facts into the model as the ledger has it, and record every batch as a version.

    Second moments and context templates are those of the unedited model. A constraint that acts at the end of a sequence
    makes one version of the whole.

    **Arguments**

    - `model`: the ledger's, without edits; it is left so.
    - `setup`: made with that model.

    **Returns** the edit of the whole sequence. Where the head's last edits are of just these facts, made with these options,
    they are returned, and nothing is edited: a command that was killed at its very end can be run again.

    **Raises** :class:`~bluedit.errors.LedgerError` for another model, and when a sequence that was interrupted is not resumed
    with the same facts and options.
    """
    ledger.check_model(model)
    if ledger.session() is None and (there := _already(ledger, setup, facts)) is not None:
        return there
    setup = setup.method.prepare(model, setup, progress)
    size = batch_size or max(1, len(facts))
    if len(facts) <= size and ledger.session() is None:
        with settled(model, ledger.edits()):
            whole = edit_in_sequence(model, setup, facts, size, progress=progress)
        if facts:
            ledger.record("apply", ledger.head.edits, [whole], note=note)
        return whole
    base, folder = ledger.session() or (ledger.head.number, ledger.folder / f"session-{ledger.head.number}")
    at_end = setup.method.ends_sequence
    if at_end and (there := _already(ledger, setup, facts)) is not None:
        # Killed between the version and the end.
        discard(folder, SESSION)
        return there
    _check_head(ledger, base)

    def record(session: Session) -> None:
        for number, edit in enumerate(session.patches):
            batch = Batch(sequence=session.id, number=number)
            if edit.facts and not ledger.holds(batch):
                ledger.record("apply", ledger.head.edits, [edit], note=note, batches=[batch])

    with settled(model, ledger.edits(base)):
        options = {} if at_end else {"each": record}
        whole = edit_in_sequence(model, setup, facts, size, folder, progress, **options)
    if at_end:
        ledger.record("apply", ledger.head.edits, [whole], note=note)
    discard(folder, SESSION)
    return whole


def _already(ledger: Ledger, setup: Setup, facts: Sequence[Fact]) -> Edit | None:
    """The head's last edits as one, if they are of these facts and were made with these options."""
    found: list[Edit] = []
    statistics = setup.statistics
    corpus = statistics.corpus.identity if statistics.corpus else None
    settings = setup.settings.recorded(setup.method.uses)
    wanted = (
        setup.method.name, setup.method.strategy.name, setup.layers, settings, setup.templates, setup.seed, corpus,
        statistics.samples,
    )  # fmt: skip
    for edit in reversed(ledger.edits()):
        one = edit.manifest
        made = (one.method, one.strategy, one.layers, one.settings, one.templates, one.seed, one.corpus_identity, one.samples)
        if made != wanted or sum(len(other.facts) for other in found) >= len(facts):
            break
        found.insert(0, edit)
    return merge(found) if found and tuple(fact for edit in found for fact in edit.facts) == tuple(facts) else None


def _check_head(ledger: Ledger, base: int) -> None:
    """**Raises** :class:`~bluedit.errors.LedgerError` when the head is not at a batch of the sequence under way."""
    begun = ledger.versions[base].edits
    if ledger.head.edits[: len(begun)] != begun or not ledger.in_one_sequence(ledger.head.edits[len(begun) :]):
        raise LedgerError(
            f"a sequence from version {base} on was interrupted, and the ledger was changed since: its head is version "
            f"{ledger.head.number}. Check out the last batch of that sequence (bluedit log checkout {ledger.folder} N), or "
            f"remove {ledger.folder / f'session-{base}'} to give the rest of it up"
        )


def drop_from_ledger(
    ledger: Ledger,
    model: EditableModel,
    ids: Collection[str],
    *,
    edit: str | None = None,
    statistics: Statistics | None = None,
    method: Editor | None = None,
    progress: Progress = silent,
) -> Version:
    """The next version, without some facts: their edits, and those after them, are solved again. Nothing is optimised.

    Edits before the first one that holds such a fact stay as they are, bit for bit.

    **Arguments**

    - `model`: the ledger's. It is left as it was; :meth:`Ledger.restore` brings it to the new version.
    - `edit`: the digest of the edit that they are dropped from, or the beginning of it; needed where several edits have facts
      of that id.

    **Raises** :class:`~bluedit.errors.LedgerError` for an id that no edit or several edits have, and for another model.
    """
    sequences = ledger.sequences()
    gone = [_places(ledger, sequences, name, edit) for name in ids]
    first = min((sequence for sequence, _, _ in gone), default=len(sequences))
    before = applied_patches(model)
    arrange([], model)
    try:
        ledger.check_model(model)
        # Second moments are those of the unedited model.
        setups: list[Setup] = []
        for sequence in sequences[first:]:
            setup = setup_of(model, sequence[0][1].manifest, statistics=statistics, method=method)
            setups.append(setup.method.prepare(model, setup, progress))
        kept = [one for sequence in sequences[:first] for one in sequence]
        arrange([one for _, one in kept], model)
        solved: list[Edit] = []
        places: list[Batch | None] = []
        for number, (sequence, setup) in enumerate(zip(sequences[first:], setups, strict=True), first):
            without = {(place, name) for group, place, name in gone if group == number}
            found = [
                one for one in solve_again(model, [one for _, one in sequence], without, setup, progress) if one is not None
            ]
            for one in found:
                one.apply(model)
            solved += found
            # Its batches are another sequence now.
            name = Session.following(model, setup).id
            places += [Batch(sequence=name, number=place) if len(found) > 1 else None for place in range(len(found))]
    finally:
        arrange(before, model)
    return ledger.record("drop", [digest for digest, _ in kept], solved, note=", ".join(ids), batches=places)


def _places(
    ledger: Ledger, sequences: Sequence[Sequence[tuple[str, Edit]]], name: str, edit: str | None
) -> tuple[int, int, str]:
    """The number of the sequence, and of its edit in it, that has a fact of this id."""
    found = [
        (group, place, digest)
        for group, sequence in enumerate(sequences)
        for place, (digest, one) in enumerate(sequence)
        if digest.startswith(edit or "") and any(fact.id == name for fact in one.facts)
    ]
    if not found:
        known = [fact.id for sequence in sequences for _, one in sequence for fact in one.facts]
        where = f" in an edit {edit}" if edit else ""
        raise LedgerError(f"version {ledger.head.number} has no such fact{where}. {did_you_mean(name, known, what='fact')}")
    if len(found) > 1:
        digests = ", ".join(digest[:8] for _, _, digest in found)
        raise LedgerError(f"several edits have a fact {excerpt(name)}: {digests}; say which with --edit")
    return found[0][0], found[0][1], name
