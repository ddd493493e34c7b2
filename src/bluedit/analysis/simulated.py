"""Simulated editing: what a residual does to a fact's target when it is simply added to the hidden state (BLUE, eq. 9).

*Concept.* An edit at layer l tries to make the layer's MLP give the residual. Adding the residual itself at the subject's last
token shows what the edit could give at best, without the weights, the prior and the other facts of the batch:

    contribution(l) = p_edited(target) - p_original(target),    the mean over the rewriting prompts

with p the probability of the target: exp of the mean log-probability of its tokens, as in value optimisation.

Shapes: D d_model, N facts, B rows (each fact's prompts one after the other), T target tokens over all rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bluedit.analysis.means import mean
from bluedit.analysis.place import Place
from bluedit.analysis.study import Study
from bluedit.editors.losses import mean_by_row
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.models.editable import Component
from bluedit.models.forward.prefix import Injection
from bluedit.models.memory.budget import in_batches, plain_budget
from bluedit.progress import Progress, silent

__all__ = ["measure_contribution", "simulated_probabilities"]


def measure_contribution(study: Study, place: Place | None = None, progress: Progress = silent) -> dict[str, object]:
    """Contribution scores of distributed and computed residuals per critical layer; the entries of a `ContributionResult`.

    **Cost** values at every critical layer, and three forward passes over the rewriting prompts for each.
    """
    model, plan = study.model, study.plan
    study.residuals(study.layers[-1], progress)  # before the bar: what all layers need

    def one(key: str) -> dict[str, list[float]]:
        layer = int(key)
        added = [study.distributed(layer, progress), study.residuals(layer, progress)]
        added.insert(0, torch.zeros_like(added[0]))
        found = simulated_probabilities(model, plan.facts, plan.templates, layer, study.component, added)
        return dict(zip(("unedited", "distributed", "computed"), found.tolist(), strict=True))

    parts = (place or Place()).each([str(layer) for layer in study.layers], "simulated edits, layers", one, progress)
    by_layer: list[dict[str, object]] = []
    for key, found in parts.items():
        unedited, distributed, computed = (torch.tensor(found[name]) for name in ("unedited", "distributed", "computed"))
        by_layer.append(
            {
                "layer": int(key),
                "share": study.share(int(key)),
                "distributed": mean(distributed - unedited, percent=True),
                "computed": mean(computed - unedited, percent=True),
                "difference": mean(computed - distributed, percent=True),
            }
        )
    first = parts[str(study.layers[0])]
    return {"unedited": mean(first["unedited"], percent=True), "by_layer": by_layer}


@torch.no_grad()
def simulated_probabilities(
    model: EditableModel,
    facts: Sequence[Fact],
    templates: Sequence[str],
    layer: int,
    component: Component,
    added: Sequence[Tensor],
) -> Tensor:
    """The probability of each fact's target with vectors added at the subject's last token, (len(added), N).

    `added`: (D, N) each, a column a fact, added at the output of a component of `layer` in every rewriting prompt.
    """
    rows = [[model.text.row(fact, template, with_target=True) for template in templates] for fact in facts]
    found = torch.zeros(len(added), len(facts), dtype=torch.float64)

    def run(chosen: list[int]) -> Tensor:
        injection = Injection(model, [row for index in chosen for row in rows[index]], layer, (component,))
        places = [
            (number, position - row.subject, token)
            for number, row in enumerate(injection.rows)
            for position, token in zip(row.target_positions, row.target, strict=True)
        ]
        rows_T, positions_T, tokens_T = torch.tensor(places, device=model.device).T
        results: list[Tensor] = []
        for vectors_DN in added:
            added_BD = vectors_DN.T[chosen].repeat_interleave(len(templates), 0)
            logits_TV = injection.logits(added_BD[None], rows_T, positions_T)
            log_probs_T = logits_TV.double().log_softmax(-1).gather(1, tokens_T[:, None])[:, 0]
            means_B = mean_by_row(log_probs_T, rows_T, len(injection.rows))
            results.append(means_B.exp().view(len(chosen), len(templates)).mean(1))
        return torch.stack(results)

    lengths = [sum(len(row.ids) for row in one) for one in rows]
    with model.frozen():
        for chosen, probabilities in in_batches(lengths, plain_budget(model), run):
            found[:, chosen] = probabilities.cpu()
    return found
