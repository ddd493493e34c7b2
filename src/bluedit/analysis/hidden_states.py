"""Where hidden states of unrelated prompts go when facts are edited: numbers, and a map (BLUE, figures 7, 9 and 10).

*Concept.* An edit should leave alone what it is not about. The hidden states of other factual prompts, after the edited layer
and at their subject's last token, are taken before and after. A picture of them (t-SNE) hides sizes, so these are measured:

    shift = || mean h' - mean h || / sqrt( mean || h - mean h ||^2 )        moved = mean of || h' - h || / || h ||

The first is 0 where states only spread, and 1 where the cloud has moved by its own radius.

Shapes: P prompts, D d_model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluedit.analysis.means import interval, mean
from bluedit.analysis.place import Place
from bluedit.analysis.study import Study
from bluedit.datasets import Case
from bluedit.editors.closed_form.keys import fact_states
from bluedit.errors import InputError
from bluedit.evaluation.intervals import bootstrap
from bluedit.progress import Progress, silent
from bluedit.sessions import Session
from bluedit.strategies import BOUNDARY, Strategy

__all__ = ["BEFORE", "FEWEST", "check_installed", "measure_hidden_states", "shift"]

BEFORE = "before"
FEWEST = 10
"""Prompts that a map needs at least."""
_PERPLEXITY = 30.0


def check_installed() -> None:
    """**Raises** :class:`~bluedit.errors.InputError` where scikit-learn is missing."""
    if find_spec("sklearn") is None:
        raise InputError("t-SNE needs scikit-learn; install it with: pip install 'bluedit[analysis]'")


def measure_hidden_states(
    study: Study,
    place: Place | None = None,
    progress: Progress = silent,
    *,
    prompts: Sequence[Case],
    batch_size: int | None = None,
    layer: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Hidden states of `prompts` before an edit, after one with distributed residuals, and after one with BLUE; the entries of
    a `HiddenStatesResult`.

    **Arguments**

    - `prompts`: cases that are not edited, :data:`FEWEST` at least; their bare prompts count.
    - `batch_size`: edit in sequence, so many facts at a time; all at once when left out.
    - `layer`: whose output is looked at; the last critical layer when left out.
    - `seed`: of t-SNE.

    **Cost** two edits of all facts, and for the map O(P^2).

    **Raises** :class:`~bluedit.errors.InputError` when there are too few prompts, or scikit-learn is missing.
    """
    del place
    check_installed()
    if len(prompts) < FEWEST:
        raise InputError(
            f"{len(prompts)} prompts are left that are not about an edited subject, too few for a map ({FEWEST} at least); "
            "edit fewer facts, or name a larger data set"
        )
    looked = study.layers[-1] if layer is None else layer
    strategies = (study.setup.method.strategy, BOUNDARY)
    size = batch_size or len(study.cases)
    states = {BEFORE: _states(study, prompts, looked)}
    for strategy in strategies:
        states[strategy.name] = _edited_states(study, strategy, prompts, looked, size, progress)
    progress("t-SNE", 0, None)
    perplexity = min(_PERPLEXITY, (len(prompts) - 1) / 3)
    by_strategy = [{"strategy": one.name, **shift(states[BEFORE], states[one.name])} for one in strategies]
    return {
        "layer": looked,
        "prompts": len(prompts),
        "batch_size": size,
        "perplexity": perplexity,
        "by_strategy": by_strategy,
        "points": _map(states, perplexity, seed),
    }


def shift(before_PD: Tensor, after_PD: Tensor) -> dict[str, Any]:
    """How far the mean has moved in units of the spread before, and how far single states have; with intervals over prompts."""
    before, after = (one.double().cpu().numpy() for one in (before_PD, after_PD))

    def relative(chosen: np.ndarray) -> float:
        centre = before[chosen].mean(0)
        spread = np.sqrt(np.square(before[chosen] - centre).sum(1).mean())
        return float(np.linalg.norm(after[chosen].mean(0) - centre) / spread) if spread else 0.0

    moved = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    return {"shift": interval(bootstrap(len(before), relative), scale=0.01), "moved": mean(moved, percent=True)}


def _states(study: Study, prompts: Sequence[Case], layer: int) -> Tensor:
    return fact_states(study.model, [case.fact for case in prompts], layer).T.cpu()


def _edited_states(
    study: Study, strategy: Strategy, prompts: Sequence[Case], layer: int, size: int, progress: Progress
) -> Tensor:
    """The states after all facts were edited in sequence; the model is left as it was."""
    session = Session.following(study.model, replace(study.setup, method=study.setup.method.with_strategy(strategy)))
    session.values = study.values
    try:
        for batch in study.batches(size):
            session.apply([case.fact for case in batch], progress=progress)
        session.finish()
        return _states(study, prompts, layer)
    finally:
        session.undo(len(session))


def _map(states: Mapping[str, Tensor], perplexity: float, seed: int) -> dict[str, list[list[float]]]:
    """One t-SNE map of all states together, so that what has not moved lies where it was."""
    from sklearn.manifold import TSNE

    together = torch.cat([one.float() for one in states.values()]).numpy()
    points = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(together)
    parts = np.split(np.asarray(points, dtype=float).round(3), len(states))
    return {name: part.tolist() for name, part in zip(states, parts, strict=True)}
