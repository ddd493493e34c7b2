"""Solving again: an edit without some of its facts, or two edits as one, with the targets that they store.

*Concept.* What an edit optimised are targets, fact by fact; what it wrote is the solution of one closed form for all of them.
Taking a fact out means solving for the others alone, and merging two edits means solving for both together. Targets stay as
they are. Keys and gaps are measured anew on the model that the edit was made on, batch after batch as it was made.

*Exactness.* Solving again for all facts of an edit gives its change to rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal, get_args

from bluedit.editors.base import Editor, Setup
from bluedit.edits import Edit, Manifest, merge
from bluedit.errors import PatchError, SettingsError, StatisticsError, did_you_mean, excerpt
from bluedit.facts import Fact, conflicts, told_relation
from bluedit.methods import find_method
from bluedit.models import EditableModel
from bluedit.progress import Progress, silent
from bluedit.sessions.session import Session
from bluedit.statistics import Statistics, read_corpus
from bluedit.strategies import find_strategy

__all__ = ["Prefer", "check_prefer", "drop_facts", "merge_edits", "setup_of", "solve_again"]

Prefer = Literal["error", "first", "second"]
"""What becomes of a question that two edits answer differently."""
_SHOWN = 10


def drop_facts(
    model: EditableModel,
    edit: Edit,
    ids: Collection[str],
    *,
    statistics: Statistics | None = None,
    method: Editor | None = None,
    progress: Progress = silent,
) -> Edit:
    """The edit without some of its facts; nothing is optimised. The model is left as it was.

    **Arguments**

    - `model`: the one that the edit was computed on.
    - `ids`: the facts that go.
    - `statistics`: second moments; those that the edit names when left out.
    - `method`: needed where it is not one of the known ones.

    **Raises** :class:`~bluedit.errors.PatchError` for an id that the edit does not have, for another model, and for edits
    without stored targets.

    **Cost** keys and states of the remaining facts, and the closed form; no gradients.
    """
    places = _places(edit, ids)
    batches = [[place for place in batch if place not in places] for batch in _batches(edit)]
    return _solved(model, edit, [batch for batch in batches if batch], statistics, method, progress)


def merge_edits(
    model: EditableModel,
    first: Edit,
    second: Edit,
    *,
    prefer: Prefer = "error",
    statistics: Statistics | None = None,
    method: Editor | None = None,
    progress: Progress = silent,
) -> Edit:
    """Two edits of one model, made apart with the same options, as one: solved for the facts of both together.

    Two edits of one batch each become one batch; of sequences, the second follows the first. What both say is solved for once.
    The model is left as it was.

    **Arguments**

    - `prefer`: which edit counts where both answer a question (subject and relation, or prompt) differently; `"error"` refuses.

    **Raises** :class:`~bluedit.errors.PatchError` naming the facts that contradict each other, and what differs between edits
    that were not made with the same options.
    """
    facts = (*first.facts, *second.facts)
    gone = _repeated(facts, len(first.facts)) | _overruled(facts, len(first.facts), prefer)
    both = _with_distinct_ids(merge([first, second]))
    batches = _batches(both)
    if len(_batches(first)) <= 1 and len(_batches(second)) <= 1:
        batches = [[place for batch in batches for place in batch]]
    batches = [[place for place in batch if place not in gone] for batch in batches]
    for one in (first, second):
        one.check_fit(model.model, check=True)
    return _solved(model, both, [batch for batch in batches if batch], statistics, method, progress)


def check_prefer(value: str) -> Prefer:
    """**Raises** :class:`~bluedit.errors.SettingsError` for anything that is not one of :data:`Prefer`."""
    for known in get_args(Prefer):
        if value == known:
            return known
    raise SettingsError(did_you_mean(value, get_args(Prefer), what="--prefer"))


def solve_again(
    model: EditableModel,
    edits: Sequence[Edit],
    without: Collection[tuple[int, str]],
    setup: Setup,
    progress: Progress = silent,
) -> list[Edit | None]:
    """The edits of one sequence solved again on the model as it is now, which may not be the one they were computed on.

    **Arguments**

    - `edits`: the batches of a sequence, or one edit that is a whole sequence.
    - `without`: facts that go, as the number of their edit and their id.
    - `setup`: that of the edits, see :func:`setup_of`.

    **Returns** one edit for each that still has facts, and None for the others. The model is left as it was.
    """
    left = [
        [place for place, fact in enumerate(edit.facts) if (number, fact.id) not in without]
        for number, edit in enumerate(edits)
    ]
    session = Session.following(model, setup)
    try:
        if len(edits) == 1:
            for batch in _batches(edits[0]):
                if places := [place for place in batch if place in left[0]]:
                    _solve_batch(session, edits[0], places, progress)
            return [session.finish() if left[0] else None]
        return [
            _solve_batch(session, edit, places, progress) if places else None for edit, places in zip(edits, left, strict=True)
        ]
    finally:
        session.undo(len(session))


def setup_of(
    model: EditableModel, manifest: Manifest, *, statistics: Statistics | None = None, method: Editor | None = None
) -> Setup:
    """The options that an edit was made with.

    **Raises** :class:`~bluedit.errors.PatchError` for another chat template, and for another corpus than the edit's.
    """
    base = (method or find_method(manifest.method)).with_strategy(find_strategy(manifest.strategy))
    if manifest.chat != model.text.chat:
        made = "plain prompts" if manifest.chat is None else "prompts in a chat template"
        raise PatchError(f"the edit was made with {made}, and this model has others; load it in the same way (--chat)")
    return Setup(
        method=base,
        layers=manifest.layers,
        settings=base.settings.override(manifest.settings),
        statistics=statistics or _statistics(manifest),
        templates=manifest.templates,
        seed=manifest.seed,
        on_conflict="keep",
    )


def _statistics(manifest: Manifest) -> Statistics:
    """Where the edit's second moments came from."""
    if manifest.corpus is None:
        return Statistics()
    hint = "give it where it is now: --corpus text:FILE, or statistics="
    try:
        corpus = read_corpus(manifest.corpus)
    except StatisticsError as error:
        raise PatchError(
            f"the edit was made with the corpus {manifest.corpus}, which cannot be read ({error}); {hint}"
        ) from error
    if manifest.corpus_identity not in (None, corpus.identity):
        raise PatchError(f"the corpus {manifest.corpus} holds another text now than when the edit was made; {hint}")
    return Statistics(corpus, manifest.samples, max_length=manifest.max_length, until=manifest.until)


def _solved(
    model: EditableModel,
    edit: Edit,
    batches: Sequence[Sequence[int]],
    statistics: Statistics | None,
    method: Editor | None,
    progress: Progress,
) -> Edit:
    """Facts of an edit, by their places in it, solved for batch after batch, on the model that the edit was computed on."""
    edit.check_fit(model.model, check=True)
    session = Session.following(model, setup_of(model, edit.manifest, statistics=statistics, method=method))
    try:
        for batch in batches or [()]:
            _solve_batch(session, edit, batch, progress)
        return session.finish()
    finally:
        session.undo(len(session))


def _solve_batch(session: Session, edit: Edit, places: Sequence[int], progress: Progress) -> Edit:
    session.values = session.setup.method.stored_values(edit, places)
    facts = edit.facts
    return session.apply([facts[place] for place in places], on_conflict="keep", progress=progress)


def _batches(edit: Edit) -> list[list[int]]:
    """The places of an edit's facts, batch by batch."""
    sizes = edit.manifest.batches or (len(edit.facts),)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


def _places(edit: Edit, ids: Collection[str]) -> set[int]:
    known = [fact.id for fact in edit.facts]
    for name in ids:
        if name not in known:
            raise PatchError(f"the edit has no fact of that id. {did_you_mean(name, known, what='fact')}")
    return {place for place, name in enumerate(known) if name in ids}


def _repeated(facts: Sequence[Fact], first: int) -> set[int]:
    """The places of facts from `first` on that say what one before `first` says."""
    said = {(fact.subject, fact.prompt, fact.target) for fact in facts[:first]}
    return {
        place for place in range(first, len(facts)) if (facts[place].subject, facts[place].prompt, facts[place].target) in said
    }


def _overruled(facts: Sequence[Fact], first: int, prefer: Prefer) -> set[int]:
    """The places of facts that a fact of the preferred edit contradicts; the first edit has `first` of them."""
    pairs = [(one, other) for one, other in conflicts(facts) if one < first <= other]
    if pairs and prefer == "error":
        more = f"; and {len(pairs) - _SHOWN:,} more" if len(pairs) > _SHOWN else ""
        told = "; ".join(_contradiction(facts[one], facts[other]) for one, other in pairs[:_SHOWN])
        raise PatchError(f"the edits contradict each other: {told}{more}. Choose with --prefer first or second")
    return {other if prefer == "first" else one for one, other in pairs}


def _contradiction(one: Fact, other: Fact) -> str:
    return (
        f"{excerpt(one.id)} of the first and {excerpt(other.id)} of the second give {excerpt(one.subject)} two targets for "
        f"{excerpt(other.text)}: {excerpt(one.target)} and {excerpt(other.target)}{told_relation(one, other)}"
    )


def _with_distinct_ids(edit: Edit) -> Edit:
    """The edit with a number behind every id that an earlier fact has."""
    seen: Counter[str] = Counter()
    records = list(edit.manifest.facts)
    taken = {record.id for record in records}
    for place, record in enumerate(records):
        name = record.id
        while seen[name] or (name != record.id and name in taken):
            seen[record.id] += 1
            name = f"{record.id}~{seen[record.id]}"
        seen[name] += 1
        records[place] = record.model_copy(update={"id": name})
    return edit.redescribed(facts=tuple(records))
