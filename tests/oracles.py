"""Textbook forms, written to be read: one fact at a time, full forward passes, dense float64 solves.

They follow the published descriptions step by step and share no code with the package but tokenisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bluedit.facts import Fact
from bluedit.methods import Settings
from bluedit.models import EditableModel


def dense_change(moment: Tensor, weight: float, keys: Tensor, residual: Tensor, past: Tensor | None = None) -> Tensor:
    """MEMIT eq. 14 (BLUE eq. 8 with past keys): R K1^T (lambda C + Kp Kp^T + K1 K1^T)^-1."""
    metric = weight * moment.double() + keys.double() @ keys.double().T
    if past is not None:
        metric = metric + past.double() @ past.double().T
    return residual.double() @ keys.double().T @ torch.linalg.inv(metric)


def _modules(model: EditableModel, layer: int) -> tuple[torch.nn.Module, torch.nn.Module]:
    block = model.model.get_submodule(f"{model.structure.map.layers}.{layer}")
    return block, block.get_submodule(model.structure.map.projection)


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def look(model: EditableModel, text: str, position: int, layer: int) -> tuple[Tensor, Tensor]:
    """Key and layer output at one position of one text."""
    block, projection = _modules(model, layer)
    seen: dict[str, Tensor] = {}
    handles = [
        projection.register_forward_pre_hook(lambda _, inputs: seen.__setitem__("key", inputs[0][0, position].clone())),
        block.register_forward_hook(lambda _, __, output: seen.__setitem__("state", _first(output)[0, position].clone())),
    ]
    model.model(torch.tensor([model.text.prompt(text)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen["key"], seen["state"]


def place(model: EditableModel, template: str, prompt: str, subject: str) -> tuple[str, int]:
    """A filled prompt and its subject's last token, the published way: by the length of the tokenised prefix."""
    before = template.split("{}")[0] + prompt.split("{}")[0]
    text = template.replace("{}", prompt.replace("{}", subject))
    return text, len(model.text.prompt(before + subject)) - 1


def key(model: EditableModel, fact: Fact, layer: int, templates: Sequence[str]) -> Tensor:
    """A fact's key: the mean over kinds of context of the mean within each kind."""
    each = [look(model, *place(model, template, fact.prompt, fact.subject), layer)[0] for template in templates]
    kinds = [torch.stack(each[:1]).mean(0)] + ([torch.stack(each[1:]).mean(0)] if len(each) > 1 else [])
    return torch.stack(kinds).mean(0)


def state(model: EditableModel, fact: Fact, layer: int) -> Tensor:
    """A fact's hidden state: bare prompt only."""
    return look(model, *place(model, "{}", fact.prompt, fact.subject), layer)[1]


def optimise(
    model: EditableModel, fact: Fact, layer: int, templates: Sequence[str], settings: Settings
) -> tuple[Tensor, int, float]:
    """One fact's target, how often its loss was evaluated, and its last loss. ROME eq. 4 with torch's own Adam."""
    block, _ = _modules(model, layer)
    target = list(model.text.target(fact.target))
    prompts = [place(model, template, fact.prompt, fact.subject) for template in templates]
    kl_text, kl_position = place(model, "{}", "{} is a", fact.subject)
    initial = state(model, fact, layer)
    delta = torch.zeros_like(initial, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=settings.v_lr)
    original = None
    for evaluation in range(1, settings.v_num_grad_steps + 1):
        optimizer.zero_grad()

        def forward(ids: Sequence[int], position: int) -> Tensor:
            def add(_: torch.nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
                hidden = _first(output).clone()
                hidden[0, position] += delta
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            with block.register_forward_hook(add):
                return model.model(torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(-1)

        losses = []
        for text, position in prompts:
            ids = [*model.text.prompt(text), *target[:-1]]
            log_probs = forward(ids, position)[-len(target) :]
            losses.append(-log_probs[range(len(target)), target].mean())
        log_probs = forward(model.text.prompt(kl_text), kl_position)[kl_position]
        original = log_probs.detach().clone() if original is None else original
        kl = torch.nn.functional.kl_div(original[None], log_probs[None], log_target=True, reduction="batchmean")
        loss = (
            torch.stack(losses).mean() + settings.kl_factor * kl + settings.v_weight_decay * delta.norm() / initial.norm() ** 2
        )
        if loss < settings.early_stop_loss or evaluation == settings.v_num_grad_steps:
            break
        loss.backward()
        optimizer.step()
        limit = settings.clamp_norm_factor * initial.norm()
        with torch.no_grad():
            if delta.norm() > limit:
                delta.mul_(limit / delta.norm())
    return (initial + delta).detach(), evaluation, loss.item()


def edit(
    model: EditableModel,
    facts: Sequence[Fact],
    steps: Sequence[tuple[int, int, float]],
    moments: dict[int, Tensor],
    templates: Sequence[str],
    settings: Settings,
) -> dict[int, Tensor]:
    """Dense changes by layer. The model is edited on the way; the caller puts it back."""
    targets: dict[int, Tensor] = {}
    changes: dict[int, Tensor] = {}
    for layer, aim, share in steps:
        if aim not in targets:
            targets[aim] = torch.stack([optimise(model, fact, aim, templates, settings)[0] for fact in facts], 1)
        keys = torch.stack([key(model, fact, layer, templates) for fact in facts], 1)
        gap = targets[aim] - torch.stack([state(model, fact, aim) for fact in facts], 1)
        changes[layer] = dense_change(moments[layer], settings.lambda_, keys, share * gap)
        with torch.no_grad():
            weight = _modules(model, layer)[1].weight
            stored = changes[layer] if model.structure.orientation == "out_in" else changes[layer].T
            weight.copy_((weight.double() + stored).to(weight.dtype))
    return changes
