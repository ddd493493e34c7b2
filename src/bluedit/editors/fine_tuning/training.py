"""Fine-tuning of one weight within a box: the baselines FT-L and FT-M.

Adam minimises the mean over facts of

    FT-L:  -1/|o| sum_t log p(o_t | prompt)               every target token asked for at the prompt's last token
    FT-M:  -1/|o| sum_t log p(o_t | prompt, o_1..o_t-1)   teacher forced

over one MLP output matrix W, clamped to W_0 +- norm_constraint after every step (Zhu et al. 2020). There is no prior, no
key and no value.

Shapes: D d_model, F d_ff, N facts, T target tokens over a batch's rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor

from bluedit.editors.base import Edited, Plan
from bluedit.editors.fine_tuning.settings import FineTuningSettings
from bluedit.editors.losses import mean_by_row
from bluedit.editors.records import checked, manifest_of, weight_record
from bluedit.edits.changes import Dense
from bluedit.edits.manifest import OptimisationRecord, WeightRecord
from bluedit.edits.patch import Patch
from bluedit.errors import NumericsError
from bluedit.facts import Fact
from bluedit.models import Batch, EditableModel
from bluedit.models.memory.budget import TokenBudget, in_batches
from bluedit.precision import upcast
from bluedit.progress import Progress, stage

__all__ = ["Tuned", "edit_batch", "fine_tune"]

_TOKEN_BUDGET = 8192


class Forcing(Protocol):
    """How target tokens are asked for, see :class:`~bluedit.editors.fine_tuning.methods.FineTuning`."""

    @property
    def teacher_forcing(self) -> bool: ...


@dataclass(frozen=True)
class Tuned:
    """A trained weight's change (D x F, float32), steps taken, evaluations of the loss, and each fact's last loss."""

    change_DF: Tensor
    steps: int
    evaluations: int
    losses: tuple[float, ...]


@torch.inference_mode(mode=False)
def edit_batch(model: EditableModel, plan: Plan, tuning: Forcing, progress: Progress) -> Edited:
    """Train on one batch of facts: its patch. The model is left as it was."""
    started = time.monotonic()
    settings = cast("FineTuningSettings", plan.settings)
    patches: dict[str, Dense] = {}
    weights: dict[str, WeightRecord] = {}
    records: list[OptimisationRecord] = []
    for layer in dict.fromkeys(step.layer for step in plan.steps):
        with stage(progress, f"training layer {layer}", settings.ft_num_steps) as advance:
            tuned = fine_tune(model, plan.facts, layer, tuning, settings, progress=advance)
        change = Dense(tuned.change_DF)
        checked(change, layer)
        name = model.structure.weight_name(layer)
        patches[name] = change
        weights[name] = weight_record(model, plan, layer, change, advice="lower norm_constraint or ft_lr")
        evaluations = (tuned.evaluations,) * len(plan.facts)
        records.append(OptimisationRecord(layer=layer, evaluations=evaluations, losses=tuned.losses))
    seconds = time.monotonic() - started
    return Edited(Patch(patches, manifest_of(model, plan, weights=weights, optimisation=records, seconds=seconds)))


@torch.enable_grad()
def fine_tune(
    model: EditableModel,
    facts: Sequence[Fact],
    layer: int,
    tuning: Forcing,
    settings: FineTuningSettings,
    *,
    token_budget: int = _TOKEN_BUDGET,
    progress: Callable[[int], object] | None = None,
) -> Tuned:
    """Train the MLP output matrix of `layer` on all facts at once; the model is left as it was.

    **Arguments**

    - `token_budget`: padded tokens of one forward pass; the gradient is summed over passes.
    - `progress`: called with the number of steps done, after each.

    **Raises** :class:`~bluedit.errors.NumericsError` naming a fact whose loss is not finite.

    **Cost** per step: one forward and one backward pass over every fact's bare prompt.
    """
    rows = [model.text.row(fact, with_target=True) for fact in facts]
    if not tuning.teacher_forcing:
        # The prompt alone: what follows its last token is not looked at.
        rows = [replace(row, ids=row.ids[: len(row.ids) - len(row.target) + 1]) for row in rows]
    budget = TokenBudget(token_budget)
    weight = model.weight(layer)
    master = upcast(weight.detach()).clone()
    low, high = master - settings.norm_constraint, master + settings.norm_constraint
    start = master.clone()
    optimizer = torch.optim.Adam([master], lr=settings.ft_lr)
    losses_N = torch.zeros(len(facts), device=weight.device, dtype=master.dtype)
    asked = weight.requires_grad

    def run(chosen: list[int]) -> tuple[Tensor, Tensor]:
        loss_B = _losses(model, Batch.of([rows[index] for index in chosen], model.device), tuning.teacher_forcing)
        return loss_B.detach(), torch.autograd.grad(loss_B.sum() / len(facts), weight)[0]

    steps = evaluations = 0
    with model.restoring([layer]), model.frozen():
        weight.requires_grad_(True)
        try:
            for _ in range(settings.ft_num_steps):
                gradient = torch.zeros_like(master)
                for chosen, (loss_B, part) in in_batches([len(row.ids) for row in rows], budget, run):
                    gradient += part.to(gradient)
                    losses_N[chosen] = loss_B.to(losses_N)
                evaluations += 1
                if not torch.isfinite(losses_N).all():
                    fact = facts[int((~torch.isfinite(losses_N)).nonzero()[0])]
                    raise NumericsError(
                        f"the loss of fact {fact.id!r} ({fact.text!r}) is not finite at step {steps}; lower ft_lr, or load the "
                        "model in float32 or bfloat16"
                    )
                if progress is not None:
                    progress(1)
                if losses_N.mean() < settings.ft_early_stop_loss:
                    break
                master.grad = gradient
                optimizer.step()
                steps += 1
                with torch.no_grad():
                    torch.clamp(master, low, high, out=master)
                    weight.copy_(master)
        finally:
            weight.requires_grad_(asked)
    return Tuned(model.structure.oriented(master - start), steps, evaluations, tuple(losses_N.tolist()))


def _losses(model: EditableModel, batch: Batch, teacher_forcing: bool) -> Tensor:
    """The loss of every row, (B,)."""
    device = batch.ids.device
    rows_T, positions_T, tokens_T = batch.target_index()
    if not teacher_forcing:
        positions_T = torch.tensor([len(row.ids) - 1 for row in batch.rows], device=device)[rows_T]
    with model.head_at(rows_T, positions_T, last_mlp=True):
        logits_TV = upcast(model.forward(batch)[0])
    nll_T = torch.nn.functional.cross_entropy(logits_TV, tokens_T, reduction="none")
    return mean_by_row(nll_T, rows_T, len(batch.rows))
