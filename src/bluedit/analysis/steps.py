"""How many steps value optimisation takes per layer when every layer gets a residual of its own (BLUE, table 1).

*Concept.* Critical layers are edited from below, each with a residual computed on the model as edited so far. Where the first
layer has written the facts already, an upper one starts below the early-stop loss, and takes no step.
"""

from __future__ import annotations

from typing import Any, cast

from bluedit.analysis.means import mean
from bluedit.analysis.place import Place
from bluedit.analysis.study import Study
from bluedit.editing import run_plan
from bluedit.editors.closed_form.objectives import ValueSettings
from bluedit.progress import Progress, silent
from bluedit.strategies import EACH_LAYER

__all__ = ["measure_steps"]


def measure_steps(study: Study, place: Place | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Steps per layer under each-layer residuals, all facts in one batch; the entries of a `StepsResult`.

    A fact's steps are the evaluations of its loss that did not end it, as the paper counts: 25 of 25 for a fact that is never
    done, 0 for one whose loss is below `early_stop_loss` from the start. Adam's updates are one less in the first case.

    **Cost** that of an edit of all facts, with values optimised at each critical layer.
    """
    del place  # What takes long are the values, and those are kept by themselves.
    settings = cast("ValueSettings", study.setup.settings)
    edit = run_plan(study.model, study.planned(EACH_LAYER), progress, store=study.values)
    by_layer: list[dict[str, Any]] = []
    for record in edit.manifest.optimisation:
        pairs = list(zip(record.evaluations, record.losses, strict=True))
        done = [loss < settings.early_stop_loss for _, loss in pairs]
        steps = [count - int(one) for (count, _), one in zip(pairs, done, strict=True)]
        by_layer.append(
            {
                "layer": record.layer,
                "steps": mean(steps),
                "updates": mean([count - 1 for count, _ in pairs]),
                "unfinished": mean([float(not one) for one in done], percent=True),
                "by_fact": steps,
            }
        )
    return {"most": settings.v_num_grad_steps, "early_stop_loss": settings.early_stop_loss, "by_layer": by_layer}
