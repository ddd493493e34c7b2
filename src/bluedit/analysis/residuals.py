"""Computed against distributed residuals: their angle (BLUE, figure 3), and how far they are apart (figure 5).

Shapes: D d_model, N facts.
"""

from __future__ import annotations

from typing import Any

import torch

from bluedit.analysis.means import mean
from bluedit.analysis.place import Place
from bluedit.analysis.study import Study
from bluedit.progress import Progress, silent

__all__ = ["measure_cosine", "measure_gap"]


def measure_cosine(study: Study, place: Place | None = None, progress: Progress = silent) -> dict[str, Any]:
    """cos(delta_l*, delta_l) of the computed and the distributed residual per critical layer; a `CosineResult`'s entries.

    A share of a vector has its direction: this is the cosine with the last layer's residual whatever the distribution. It is 1
    at the last layer. A fact whose residual is 0 at one of the two, the model having said the target before, has no cosine
    there, and is left out of the mean.

    **Cost** values at every critical layer.
    """
    del place
    last_DN = study.residuals(study.layers[-1], progress).double()
    by_layer: list[dict[str, Any]] = []
    for layer in study.layers:
        own_DN = study.residuals(layer, progress).double()
        norms_N = own_DN.norm(dim=0) * last_DN.norm(dim=0)
        cosines_N = (own_DN * last_DN).sum(0) / norms_N
        values = [round(one, 5) if size else None for one, size in zip(cosines_N.tolist(), norms_N.tolist(), strict=True)]
        found = [one for one in values if one is not None]
        by_layer.append({"layer": layer, "cosine": mean(found) if found else None, "by_fact": values})
    return {"by_layer": by_layer}


def measure_gap(study: Study, place: Place | None = None, progress: Progress = silent) -> dict[str, Any]:
    """|| R^l* - R^L ||_2 per critical layer, as a mean over facts and of all together; a `GapResult`'s entries.

    **Cost** values at every critical layer.
    """
    del place
    last_DN = study.residuals(study.layers[-1], progress).double()
    size = last_DN.norm(dim=0).mean().item()
    by_layer: list[dict[str, Any]] = []
    for layer in study.layers:
        own_DN = study.residuals(layer, progress).double()
        gaps_N = (own_DN - last_DN).norm(dim=0)
        by_layer.append(
            {
                "layer": layer,
                "gap": mean(gaps_N),
                "relative": mean(gaps_N / size if size else gaps_N),
                "spectral": float(f"{torch.linalg.matrix_norm(own_DN - last_DN, 2).item():.5g}"),
                "computed": mean(own_DN.norm(dim=0)),
            }
        )
    return {"by_layer": by_layer}
