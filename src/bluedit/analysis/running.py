"""The table of analyses, and the one way in which each is carried out: claimed, resumed, measured, kept, drawn."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bluedit.analysis.bounds import measure_bounds
from bluedit.analysis.hidden_states import measure_hidden_states
from bluedit.analysis.place import Place, at
from bluedit.analysis.residuals import measure_cosine, measure_gap
from bluedit.analysis.scored import measure_pairs, measure_single_layer
from bluedit.analysis.simulated import measure_contribution
from bluedit.analysis.steps import measure_steps
from bluedit.analysis.study import Study
from bluedit.evaluation import protocol
from bluedit.experiments.sharing import SharedValues
from bluedit.progress import Progress, silent
from bluedit.results.analysis import (
    AnalysisResult,
    BoundsResult,
    ContributionResult,
    CosineResult,
    GapResult,
    HiddenStatesResult,
    PairsResult,
    SingleLayerResult,
    StepsResult,
)

__all__ = ["ANALYSES", "Analysis", "analyse"]


@dataclass(frozen=True)
class Analysis:
    """One analysis: what it measures, and the record of its result."""

    measure: Callable[..., Mapping[str, Any]]
    record: type[AnalysisResult]


ANALYSES: dict[str, Analysis] = {
    "steps": Analysis(measure_steps, StepsResult),
    "contribution": Analysis(measure_contribution, ContributionResult),
    "cosine": Analysis(measure_cosine, CosineResult),
    "gap": Analysis(measure_gap, GapResult),
    "single-layer": Analysis(measure_single_layer, SingleLayerResult),
    "bounds": Analysis(measure_bounds, BoundsResult),
    "hidden-states": Analysis(measure_hidden_states, HiddenStatesResult),
    "pairs": Analysis(measure_pairs, PairsResult),
}
"""The analyses of a model by name. Another one is another entry, with a figure in `figures.py` and a table in `words.py`."""


def analyse(
    name: str,
    study: Study,
    folder: Path | None = None,
    *,
    values: Path | None = None,
    claim: Mapping[str, Any] | None = None,
    replace: bool = False,
    progress: Progress = silent,
    **options: Any,
) -> AnalysisResult:
    """Carry out an analysis, from where its folder has it. The model is left as it was.

    **Arguments**

    - `name`: of :data:`ANALYSES`. `options`: what its measurement takes besides.
    - `folder`: where parts are kept as they are done, and the result; a killed analysis resumes there, a complete one is read.
    - `values`: a folder of optimised values that analyses of one model share: what one has optimised no other does again. When
      left out they are kept in `folder` until the end.
    - `claim`: what the options are, in JSON, so that a folder is not resumed with others.
    - `replace`: lose an earlier analysis in the folder, of whatever.

    **Raises** :class:`~bluedit.errors.InputError` when the folder holds another analysis, and what its measurement does.
    """
    analysis = ANALYSES[name]
    started = time.monotonic()
    with at(folder, _claim(name, study, claim or {}), replace=replace) as place:
        if (earlier := place.finished(analysis.record)) is not None:
            return earlier
        with _values(study, place, values):
            found = analysis.measure(study, place, progress, **options)
        setup = study.setup
        corpus = setup.statistics.corpus
        result = analysis.record.of(
            {
                "analysis": name,
                "method": setup.method.name,
                "layers": list(study.layers),
                "settings": setup.settings.as_dict(),
                "templates": len(setup.templates),
                "corpus": corpus.name if corpus else None,
                "samples": setup.statistics.samples,
                "protocol": protocol(
                    study.model, study.cases, dataset=study.dataset, seed=setup.seed, fingerprint=study.fingerprint
                ),
                "seconds": round(time.monotonic() - started, 3),
                **found,
            }
        )
        place.finish(result)
    return result


def _claim(name: str, study: Study, more: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that determines the result."""
    setup = study.setup
    cases = json.dumps([asdict(case) for case in study.cases], sort_keys=True, default=str)
    corpus = setup.statistics.corpus
    return {
        "analysis": name,
        "model_fingerprint": study.fingerprint,
        "dtype": str(study.model.dtype),
        "chat": study.model.text.chat.identity if study.model.text.chat else None,
        "dataset": study.dataset,
        "cases": hashlib.sha256(cases.encode()).hexdigest()[:32],
        "method": setup.method.name,
        "distribution": setup.method.strategy.name,
        "layers": list(setup.layers),
        "settings": setup.settings.as_dict(),
        "corpus": corpus.identity if corpus else None,
        "samples": setup.statistics.samples,
        "templates": list(setup.templates),
        "seed": setup.seed,
        "options": dict(more),
    }


@contextlib.contextmanager
def _values(study: Study, place: Place, folder: Path | None) -> Generator[None]:
    """Inside, the study keeps values: in the folder that was named, else in its own place, which has none left afterwards."""
    if study.values is not None:
        yield
        return
    # Any layer may be edited: with all of them in the key, analyses of different layers share what is the same.
    layers = tuple(study.model.structure.dense)
    with tempfile.TemporaryDirectory() as temporary:
        own = (place.folder or Path(temporary)) / "values"
        shared = SharedValues(folder or own, study.fingerprint, layers)
        study.values = shared
        try:
            yield
        finally:
            study.values = None
        if folder is None:
            shared.remove()
