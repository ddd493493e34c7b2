"""Edits of chosen layers, scored: each critical layer alone (BLUE, figures 4 and 8), and all pairs of layers.

A part that is kept holds the outcomes of every case, so that differences are paired over cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bluedit.analysis.place import Place
from bluedit.analysis.study import Study
from bluedit.editing import Plan, run_plan
from bluedit.editors.base import State
from bluedit.evaluation import Scores, compare, score_cases
from bluedit.evaluation.language import HeldOutText
from bluedit.evaluation.scoring import tally
from bluedit.progress import Progress, silent
from bluedit.strategies import explicit

__all__ = ["measure_pairs", "measure_single_layer"]

_COMPARED = ("ES", "PS", "NS", "S")


def measure_single_layer(study: Study, place: Place | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Scores after editing one critical layer alone, with its computed and with its distributed residual; the entries of a
    `SingleLayerResult`.

    **Cost** values at every critical layer, two edits and scorings for each.
    """
    keys = [f"{kind} {layer}" for layer in study.layers for kind in ("computed", "distributed")]
    work = _Work(study, progress)

    def one(key: str) -> Mapping[str, Any]:
        if key == "before":
            return work.scored()
        kind, layer = key.split()
        return work.edited(study.planned(study.alone(int(layer), computed=kind == "computed")))

    parts = (place or Place()).each(["before", *keys], "single layers, edits", one, progress)
    scores = {key: _scores(part) for key, part in parts.items()}
    by_layer: list[dict[str, Any]] = []
    for layer in study.layers:
        computed, distributed = f"computed {layer}", f"distributed {layer}"
        by_layer.append(
            {
                "layer": layer,
                "share": study.share(layer),
                "computed": scores[computed].as_dict(),
                "distributed": scores[distributed].as_dict(),
                "difference": _differences(scores[computed], scores[distributed]),
                "computed_norm": parts[computed]["relative_norm"][str(layer)],
                "distributed_norm": parts[distributed]["relative_norm"][str(layer)],
            }
        )
    return {"before": scores["before"].as_dict(), "by_layer": by_layer}


def measure_pairs(
    study: Study, place: Place | None = None, progress: Progress = silent, *, text: HeldOutText | None = None
) -> dict[str, Any]:
    """Scores of BLUE at every pair (a, b) of layers, a <= b, where (a, a) is layer a alone; the entries of a `PairsResult`.

    `text`: held-out text, made of the unedited model.

    **Cost** for L layers L (L + 1) / 2 edits and scorings; values at the first layer of a pair are optimised L times in all, at
    the second for every pair.
    """
    layers = study.layers
    keys = [f"{first}-{last}" for first in layers for last in layers if first <= last]
    work = _Work(study, progress, text)

    def one(key: str) -> Mapping[str, Any]:
        if key == "before":
            return work.scored()
        layers = dict.fromkeys(_pair(key))  # one where both are the same
        return work.edited(study.planned(explicit([(layer, layer, 1.0) for layer in layers])))

    parts = (place or Place()).each(["before", *keys], "pairs of layers", one, progress)
    scores = {key: _scores(part) for key, part in parts.items()}
    name = "S" if "S" in scores["before"].estimates else "EA"  # cases without neighborhoods have no S
    best = max(keys, key=lambda key: scores[key][name].value)
    equal = [key for key in keys if (found := compare(scores[key], scores[best], name)) is None or found.high >= 0]
    pairs: list[dict[str, Any]] = []
    for key in keys:
        first, last = _pair(key)
        found = {name: value for name, value in parts[key].items() if name != "outcomes"}
        pairs.append({"first": first, "last": last, "scores": scores[key].as_dict(), **found})
    return {"before": scores["before"].as_dict(), "pairs": pairs, "best": _pair(best), "equal": [_pair(key) for key in equal]}


def _pair(key: str) -> list[int]:
    return [int(layer) for layer in key.split("-")]


class _Work:
    """Edits that are scored one after the other; second moments and metrics are made once."""

    def __init__(self, study: Study, progress: Progress, text: HeldOutText | None = None) -> None:
        self._study = study
        self._progress = progress
        self._text = text
        self._state: State | None = None

    def edited(self, plan: Plan) -> dict[str, Any]:
        """What a plan's edit does: outcomes of cases, held-out text, what is left open, how large the changes are."""
        study = self._study
        if self._state is None:
            self._state = plan.method.begin(plan)
        patch = run_plan(study.model, plan, self._progress, self._state, study.values)
        with patch.applied(study.model, check=False):
            found = self.scored()
        return found | {
            "remaining": {
                str(one.layer): round(one.left_open, 4) for one in patch.manifest.optimisation if one.left_open is not None
            },
            "relative_norm": {str(one.layer): one.relative_norm for one in patch.manifest.weights.values()},
        }

    def scored(self) -> dict[str, Any]:
        """Outcomes of all cases, and held-out text where there is some, for the model as it is now."""
        study, progress = self._study, self._progress
        scores = score_cases(study.model, study.cases, progress=lambda done, total: progress("scoring", done, total))
        found: dict[str, Any] = {"outcomes": [[name, {**outcomes}] for name, outcomes in scores.cases]}
        if self._text is not None:
            found["text"] = self._text.scores(study.model).as_dict()
        return found


def _scores(part: Mapping[str, Any]) -> Scores:
    """The scores of a part, from what it kept."""
    return tally([(name, {score: tuple(values) for score, values in found.items()}) for name, found in part["outcomes"]])


def _differences(one: Scores, other: Scores) -> dict[str, Any]:
    found = {name: compare(one, other, name) for name in _COMPARED}
    return {name: value.as_dict() for name, value in found.items() if value}
