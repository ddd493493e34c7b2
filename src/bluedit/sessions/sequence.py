"""A sequence of edits in one call, saved in a folder if wanted: what `bluedit edit --batch-size --session` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bluedit.editors.base import Setup
from bluedit.edits import Edit
from bluedit.errors import SessionError
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.progress import Progress, silent
from bluedit.sessions.files import SESSION_MARKER, SavedSession, load_patch, patch_name, read_session, saved_setup
from bluedit.sessions.session import Session

__all__ = ["check_saved", "edit_in_sequence"]


def edit_in_sequence(
    model: EditableModel,
    setup: Setup,
    facts: Sequence[Fact],
    batch_size: int,
    folder: Path | None = None,
    progress: Progress = silent,
    *,
    each: Callable[[Session], object] = lambda _: None,
) -> Edit:
    """Edit facts batch by batch, and take them back again: the patch of the whole sequence.

    **Arguments**

    - `folder`: where the session is saved after every batch; a session that is there already resumes.
    - `each`: called with the session when it has begun or resumed, and after every batch, once that is saved.

    **Raises** :class:`~bluedit.errors.SessionError` when the folder holds a sequence of other facts, or with another setup.
    """
    if folder is not None and (folder / SESSION_MARKER).is_file():
        check_saved(folder, setup, facts)
        session = Session.resume(folder, model, method=setup.method, statistics=setup.statistics)
    else:
        session = Session.following(model, setup)
    try:
        each(session)
        in_batches = len(facts) > batch_size
        if in_batches:
            progress("facts", len(session.facts), len(facts))
        for start in range(len(session.facts), max(len(facts), 1), batch_size):
            batch = facts[start : start + batch_size]
            session.apply(batch, progress=progress, on_conflict=setup.on_conflict)
            if folder is not None:
                session.save(folder)
            each(session)
            if in_batches:
                progress("facts", len(batch), len(facts))
        return session.finish()
    finally:
        session.undo(len(session))


def check_saved(folder: Path, setup: Setup, facts: Sequence[Fact]) -> None:
    """See that a saved session is of this setup and these facts, before anything is computed or loaded for it.

    **Raises** :class:`~bluedit.errors.SessionError` naming all that differs.
    """
    saved = read_session(folder)
    patches = [load_patch(folder, patch_name(stem), saved) for stem in saved.batches]
    _check_one_corpus(folder, saved, patches)
    theirs = saved_setup(folder, saved, setup.method, setup.statistics)
    differing = [name for name in _PLANNED if getattr(theirs, name) != getattr(setup, name)]
    if theirs.method.strategy.steps(setup.layers) != setup.method.strategy.steps(setup.layers):
        differing.append("steps")
    begun = tuple(fact for patch in patches for fact in patch.facts)
    if begun != tuple(facts[: len(begun)]):
        differing.append("facts")
    now = setup.statistics
    identity = now.corpus.identity if now.corpus else None
    # A session that was repaired may not know what its corpus held; then its name has to do.
    unknown = saved.corpus_identity == "" and now.corpus is not None and now.corpus.name == saved.corpus
    if saved.corpus_identity != identity and not unknown:
        there, here = (name or "none" for name in (saved.corpus, now.corpus.name if now.corpus else None))
        differing.append(f"corpus ({there}, and here {here}{', with other content' if there == here else ''})")
    for name in ("samples", "max_length", "until"):
        there, here = getattr(saved, name), getattr(now, name)
        if there != here:
            differing.append(f"{name} ({'all' if there is None else there}, and here {'all' if here is None else here})")
    if differing:
        raise SessionError(
            f"{folder} holds a session with other {' and '.join(differing)}; go on with those, or choose another folder "
            "for this one"
        )


def _check_one_corpus(folder: Path, saved: SavedSession, patches: Sequence[Edit]) -> None:
    """Earlier versions could add batches to a session with another corpus, which can then not be finished.

    **Raises** :class:`~bluedit.errors.SessionError` when that was done.
    """
    corpora = [patch.manifest.corpus for patch in patches]
    first = next((place for place, corpus in enumerate(corpora) if corpus != corpora[0]), None)
    if first is not None:
        count = len(corpora) - first
        raise SessionError(
            f"batch {first + 1} of {folder} was edited with the corpus {corpora[first]}, and the first with {corpora[0]}: the "
            f"session cannot be finished so. Undo {'that batch' if count == 1 else f'the last {count} batches'}: bluedit "
            f"session undo {folder} --model NAME --batches {count}"
        )


_PLANNED = ("layers", "settings", "templates", "seed")
"""What two setups have in common if they make the same edits of the same facts."""
