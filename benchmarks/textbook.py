"""The textbook baselines that benchmarks compare with: what research code does, written plainly and without waste of its own.

One fact at a time, every prompt run whole at every step, logits over the whole vocabulary at every position; a dense solve;
one pass over the corpus per layer; one record at a time. Rows of one fact or record are padded to one batch, as the
research code does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bluedit.datasets import Case
from bluedit.editors.closed_form.objectives import ValueSettings
from bluedit.facts import Fact
from bluedit.models import Batch, EditableModel, Row

__all__ = ["dense_update", "optimise_one", "score_one", "second_moment_of_one_layer"]


def optimise_one(
    model: EditableModel, fact: Fact, layer: int, templates: Sequence[str], settings: ValueSettings
) -> tuple[Tensor, float]:
    """The target of one fact (ROME eq. 4, MEMIT eq. 16) and its last loss; torch's own Adam, no early stop but the
    setting's."""
    target = model.text.target(fact.target, fact.text)
    start = len(fact.subject)
    kl_row = model.text.subject_row(f"{fact.subject} is a", 0, start)
    rows = [*(model.text.row(fact, template, with_target=True) for template in templates), kl_row]
    batch = Batch.of(rows, model.device)
    places = torch.arange(len(rows), device=model.device)
    initial = model.subject_states(rows[:1], layer, "layer")[0]
    delta = torch.zeros_like(initial, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.v_lr)
    original = None
    wanted = torch.tensor(target, device=model.device)

    def add(hidden: Tensor) -> Tensor:
        changed = hidden.clone()
        changed[places, batch.subjects] += delta
        return changed

    loss = torch.zeros((), device=model.device)
    for evaluation in range(1, settings.v_num_grad_steps + 1):
        optimizer.zero_grad()
        with model.hooked(layer, "layer", add):
            log_probs = model.forward(batch).log_softmax(-1, dtype=torch.float32)
        losses = [
            -log_probs[index, list(row.target_positions)].gather(1, wanted[:, None]).mean()
            for index, row in enumerate(rows[:-1])
        ]
        kl = log_probs[-1, kl_row.subject]
        original = kl.detach().clone() if original is None else original
        divergence = (kl.exp() * (kl - original)).sum()
        decay = delta.norm() / initial.norm() ** 2
        loss = torch.stack(losses).mean() + settings.kl_factor * divergence + settings.v_weight_decay * decay
        if loss < settings.early_stop_loss or evaluation == settings.v_num_grad_steps:
            break
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            limit = settings.clamp_norm_factor * initial.norm()
            if delta.norm() > limit:
                delta.mul_(limit / delta.norm())
    return (initial + delta).detach(), loss.item()


def dense_update(prior_FF: Tensor, keys_FN: Tensor, residual_DN: Tensor) -> Tensor:
    """MEMIT eq. 14 by one dense solve of an F x F system: R K1^T (lambda C + K1 K1^T)^-1, d_model x d_ff."""
    return torch.linalg.solve(prior_FF + keys_FN @ keys_FN.T, keys_FN @ residual_DN.T).T


@torch.no_grad()
def second_moment_of_one_layer(model: EditableModel, texts: Sequence[str], layer: int) -> Tensor:
    """E[k k^T] of one layer, a document at a time, the whole model run for each."""
    size = model.structure.d_ff
    total, tokens = torch.zeros(size, size, dtype=torch.float64), 0
    for ids in model.text.documents(texts):
        seen: list[Tensor] = []
        with model.hooked(layer, "key", seen.append):
            model.forward(Batch.of([Row(ids)], model.device))
        keys_TF = seen[0][0].float()
        total += keys_TF.T @ keys_TF
        tokens += len(ids)
    return total / tokens


@torch.no_grad()
def score_one(model: EditableModel, case: Case) -> dict[str, list[bool]]:
    """Whether the new object is preferred (rewrite, paraphrases) or the true one (neighborhood).

    As the research code does: all prompts of one record with both targets are one padded batch, logits are computed at every
    position, and their log-softmax is taken where a target's token is predicted.
    """
    assert case.true_target is not None
    kinds = {"ES": (case.fact.text,), "PS": case.paraphrases, "NS": case.neighborhood}
    rows: list[Row] = []
    for prompt in (prompt for prompts in kinds.values() for prompt in prompts):
        for text in (case.fact.target, case.true_target):
            target = model.text.target(text, prompt)
            rows.append(Row(model.text.prompt(prompt) + target[:-1], target=target))
    logits = model.forward(Batch.of(rows, model.device))
    means = [
        sum(
            logits[index, position].log_softmax(-1, dtype=torch.float32)[token].item()
            for position, token in zip(row.target_positions, row.target, strict=True)
        )
        / len(row.target)
        for index, row in enumerate(rows)
    ]
    pairs = iter(zip(means[::2], means[1::2], strict=True))
    found: dict[str, list[bool]] = {}
    for name, prompts in kinds.items():
        if prompts:
            chosen = [next(pairs) for _ in prompts]
            found[name] = [(true > new) if name == "NS" else (new > true) for new, true in chosen]
    return found
