"""Textbook forms, written to be read: one fact at a time, full forward passes, dense float64 solves.

They follow the published descriptions step by step and share no code with the package but tokenisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bluedit.editors.closed_form.inverse_metric import InverseMetric
from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.statistics import SecondMoment

# -- closed forms --------------------------------------------------------------------------------------------------


def dense_change(moment: Tensor, weight: float, keys: Tensor, residual: Tensor, past: Tensor | None = None) -> Tensor:
    """MEMIT eq. 14 (BLUE eq. 8 with past keys): R K1^T (lambda C + Kp Kp^T + K1 K1^T)^-1."""
    metric = weight * moment.double() + keys.double() @ keys.double().T
    if past is not None:
        metric = metric + past.double() @ past.double().T
    return residual.double() @ keys.double().T @ torch.linalg.inv(metric)


def null_space(moment: Tensor, threshold: float) -> Tensor:
    """AlphaEdit's P: the projector on eigenvectors of C with an eigenvalue below the threshold."""
    values, vectors = torch.linalg.eigh(moment.double())
    chosen = vectors[:, values < threshold]
    return chosen @ chosen.T


def null_space_change(projector: Tensor, ridge: float, keys: Tensor, residual: Tensor, past: Tensor) -> Tensor:
    """AlphaEdit: R K1^T P (Kp Kp^T P + K1 K1^T P + L2 I)^-1."""
    metric = (past @ past.T + keys @ keys.T) @ projector + ridge * torch.eye(len(projector), dtype=torch.float64)
    return residual @ keys.T @ projector @ torch.linalg.inv(metric)


def exact_change(moment: Tensor, keys: Tensor, residual: Tensor) -> Tensor:
    """EMMET: R (K1^T C^-1 K1)^-1 K1^T C^-1; the residuals are met."""
    inverse = torch.linalg.inv(moment.double())
    return residual @ torch.linalg.inv(keys.T @ inverse @ keys) @ keys.T @ inverse


def rank_one_change(moment: Tensor, key: Tensor, bare_key: Tensor, residual: Tensor) -> Tensor:
    """ROME eq. 2: Lambda (C^-1 k)^T with Lambda = (v - W k_bare) / ((C^-1 k)^T k_bare)."""
    direction = torch.linalg.inv(moment.double()) @ key
    return torch.outer(residual / (direction @ bare_key), direction)


def keep_largest(change: Tensor, weight: Tensor, share: float) -> Tensor:
    """RECT: all but the `share` of entries with the largest |D / (W + 1e-8)| are zeroed."""
    sizes = (change / (weight + 1e-8)).abs().flatten()
    kept = torch.zeros_like(sizes)
    kept[sizes.argsort(descending=True)[: int(share * len(sizes))]] = 1
    return change * kept.view_as(change)


def restrain_singular_values(change: Tensor, weight: Tensor, base: float) -> Tensor:
    """PRUNE: singular values s above smax of W_0 become log_b(s) - log_b(smax) + smax."""
    largest = torch.linalg.svdvals(weight)[0]
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    log = torch.log(torch.tensor(base, dtype=torch.float64))
    restrained = torch.where(values > largest, values.log() / log - largest.log() / log + largest, values)
    return left @ torch.diag(restrained) @ right


# -- looking into a model ------------------------------------------------------------------------------------------


def _block(model: EditableModel, layer: int) -> nn.Module:
    return model.model.get_submodule(f"{model.structure.map.layers}.{layer}")


def _component(model: EditableModel, layer: int, component: str) -> nn.Module:
    places = {"layer": "", "mlp": model.structure.map.projection, "attention": model.structure.map.attention_projection}
    return _block(model, layer).get_submodule(places[component])


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@torch.no_grad()
def look(model: EditableModel, text: str, position: int, layer: int, component: str = "layer") -> tuple[Tensor, Tensor]:
    """Key, and what stands at a component, at one position of one text."""
    projection = _block(model, layer).get_submodule(model.structure.map.projection)
    seen: dict[str, Tensor] = {}
    handles = [
        projection.register_forward_pre_hook(
            lambda _, inputs: seen.__setitem__("key", inputs[0].flatten(0, -2)[position].clone())
        ),
        _component(model, layer, component).register_forward_hook(
            lambda _, __, output: seen.__setitem__("state", _first(output)[0, position].clone())
        ),
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


def state(model: EditableModel, fact: Fact, layer: int, component: str = "layer") -> Tensor:
    """What stands at a component for a fact: bare prompt only."""
    return look(model, *place(model, "{}", fact.prompt, fact.subject), layer, component)[1]


# -- values --------------------------------------------------------------------------------------------------------


def optimise(
    model: EditableModel,
    fact: Fact,
    layer: int,
    templates: Sequence[str],
    settings: Any,
    components: Sequence[str] = ("layer",),
    pmet: bool = False,
) -> tuple[Tensor, int, float]:
    """One fact's target, how often its loss was evaluated, and its last loss. ROME eq. 4 with torch's own Adam.

    `pmet`: while the target is the argmax after every prompt the likelihood counts a tenth, and optimisation stops if the KL
    divergence is then below 0.01.
    """
    target = list(model.text.target(fact.target))
    prompts = [place(model, template, fact.prompt, fact.subject) for template in templates]
    kl_text, kl_position = place(model, "{}", "{} is a", fact.subject)
    initial = [state(model, fact, layer, component) for component in components]
    deltas = [torch.zeros_like(one, requires_grad=True) for one in initial]
    optimizer = torch.optim.Adam(deltas, lr=settings.v_lr)
    original = None
    scale = 1.0
    for evaluation in range(1, settings.v_num_grad_steps + 1):
        optimizer.zero_grad()

        def forward(ids: Sequence[int], position: int) -> Tensor:
            def adding(delta: Tensor) -> object:
                def add(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
                    hidden = _first(output).clone()
                    hidden[0, position] += delta
                    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])

                return add

            handles = [
                _component(model, layer, component).register_forward_hook(adding(delta))
                for component, delta in zip(components, deltas, strict=True)
            ]
            try:
                return model.model(torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(-1)
            finally:
                for handle in handles:
                    handle.remove()

        losses, met = [], True
        for text, position in prompts:
            ids = [*model.text.prompt(text), *target[:-1]]
            log_probs = forward(ids, position)[-len(target) :]
            losses.append(-log_probs[range(len(target)), target].mean())
            met = met and log_probs.argmax(-1).tolist() == target
        log_probs = forward(model.text.prompt(kl_text), kl_position)[kl_position]
        original = log_probs.detach().clone() if original is None else original
        kl = torch.nn.functional.kl_div(original[None], log_probs[None], log_target=True, reduction="batchmean")
        decay = sum(delta.norm() / one.norm() ** 2 for delta, one in zip(deltas, initial, strict=True))
        loss = scale * torch.stack(losses).mean() + settings.kl_factor * kl + settings.v_weight_decay * decay
        if loss < settings.early_stop_loss or evaluation == settings.v_num_grad_steps:
            break
        if pmet:
            scale = 0.1 if met else 1.0
            if met and kl < 0.01:
                break
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for delta, one in zip(deltas, initial, strict=True):
                limit = settings.clamp_norm_factor * one.norm()
                if delta.norm() > limit:
                    delta.mul_(limit / delta.norm())
    return (initial[0] + deltas[0]).detach(), evaluation, loss.item()


def fine_tune(model: EditableModel, facts: Sequence[Fact], layer: int, settings: Any, *, teacher_forcing: bool) -> Tensor:
    """FT-L and FT-M: the change of W (d_model x d_ff), with torch's own Adam on the weight; one fact a forward pass."""
    weight = _block(model, layer).get_submodule(model.structure.map.projection).weight
    start = weight.detach().clone()
    optimizer = torch.optim.Adam([weight], lr=settings.ft_lr)
    for _ in range(settings.ft_num_steps):
        losses = []
        for fact in facts:
            prompt, target = model.text.prompt(fact.text), list(model.text.target(fact.target))
            ids = [*prompt, *target[:-1]] if teacher_forcing else prompt
            log_probs = model.model(torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(-1)
            rows = range(len(prompt) - 1, len(prompt) - 1 + len(target)) if teacher_forcing else [len(prompt) - 1] * len(target)
            losses.append(-log_probs[rows, target].mean())
        loss = torch.stack(losses).mean()
        if loss < settings.ft_early_stop_loss:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            weight.copy_(torch.clamp(weight, start - settings.norm_constraint, start + settings.norm_constraint))
    model.model.zero_grad(set_to_none=True)
    change = weight.detach() - start
    with torch.no_grad():
        weight.copy_(start)
    return change if model.structure.orientation == "out_in" else change.T


# -- whole edits ---------------------------------------------------------------------------------------------------


@dataclass
class TextbookSession:
    """A sequence of batches by one named method: what it has seen so far."""

    model: EditableModel
    method: str
    moments: dict[int, Tensor]
    templates: Sequence[str]
    settings: Any
    past: dict[int, Tensor] = field(default_factory=dict)
    totals: dict[int, Tensor] = field(default_factory=dict)

    def _solve(self, facts: Sequence[Fact], layer: int, keys: Tensor, residual: Tensor) -> Tensor:
        settings, moment = self.settings, self.moments[layer]
        past = self.past.get(layer, keys[:, :0])
        if self.method == "alphaedit":
            projector = null_space(moment, settings.nullspace_threshold)
            return null_space_change(projector, settings.L2, keys, residual, past)
        if self.method == "emmet":
            return exact_change(moment, keys, residual)
        if self.method in ("rome", "r-rome"):
            bare = key(self.model, facts[0], layer, self.templates[:1]) if self.method == "rome" else keys[:, 0]
            return rank_one_change(moment, keys[:, 0], bare, residual[:, 0])
        return dense_change(moment, settings.lambda_, keys, residual, past if self.method == "memit-seq" else None)

    def _install(self, layer: int, change: Tensor) -> None:
        weight = _block(self.model, layer).get_submodule(self.model.structure.map.projection).weight
        stored = change if self.model.structure.orientation == "out_in" else change.T
        with torch.no_grad():
            weight.copy_((weight.double() + stored).to(weight.dtype))

    def _weight(self, layer: int) -> Tensor:
        weight = _block(self.model, layer).get_submodule(self.model.structure.map.projection).weight.detach().clone()
        return weight if self.model.structure.orientation == "out_in" else weight.T

    def apply(self, facts: Sequence[Fact], steps: Sequence[tuple[int, int, float]]) -> dict[int, Tensor]:
        """Edit a batch in; the dense changes by layer. The caller puts the model back in the end."""
        if self.method in ("ft-l", "ft-m"):
            changes = {
                layer: fine_tune(self.model, facts, layer, self.settings, teacher_forcing=self.method == "ft-m")
                for layer, _, _ in steps
            }
            for layer, change in changes.items():
                self._install(layer, change)
            return changes
        components = {"pmet": ("mlp", "attention"), "rome": ("mlp",), "r-rome": ("mlp",)}.get(self.method, ("layer",))
        before = {layer: self._weight(layer) for layer, _, _ in steps}
        targets: dict[int, Tensor] = {}
        changes: dict[int, Tensor] = {}
        for layer, aim, share in steps:
            if aim not in targets:
                values = [
                    optimise(self.model, fact, aim, self.templates, self.settings, components, self.method == "pmet")[0]
                    for fact in facts
                ]
                targets[aim] = torch.stack(values, 1)
            keys = torch.stack([key(self.model, fact, layer, self.templates) for fact in facts], 1).double()
            states = torch.stack([state(self.model, fact, aim, components[0]) for fact in facts], 1)
            changes[layer] = self._solve(facts, layer, keys, share * (targets[aim] - states).double())
            self._install(layer, changes[layer])
        if self.method == "rect":
            for layer, change in changes.items():
                self._install(layer, keep_largest(change, before[layer].double(), self.settings.rect_keep) - change)
                changes[layer] = keep_largest(change, before[layer].double(), self.settings.rect_keep)
        # Past keys are those of the edited model, once the whole batch is in.
        for layer in changes:
            keys = torch.stack([key(self.model, fact, layer, self.templates) for fact in facts], 1).double()
            self.past[layer] = torch.cat([self.past.get(layer, keys[:, :0]), keys], 1)
            self.totals[layer] = self.totals.get(layer, torch.zeros(())) + changes[layer]
        return changes


def edit(
    model: EditableModel,
    facts: Sequence[Fact],
    steps: Sequence[tuple[int, int, float]],
    moments: dict[int, Tensor],
    templates: Sequence[str],
    settings: Any,
    method: str = "memit",
) -> dict[int, Tensor]:
    """Dense changes by layer of one batch, which is the whole sequence. The model is edited on the way; the caller puts it
    back."""
    sequence = TextbookSession(model, method, moments, templates, settings)
    before = {layer: sequence._weight(layer).double() for layer, _, _ in steps}
    changes = sequence.apply(facts, steps)
    if method == "prune":
        return {
            layer: restrain_singular_values(change, before[layer], settings.prune_base) for layer, change in changes.items()
        }
    return changes


def metric_of(moment_FF: Tensor, weight: float, *, shrinkage: float = 0.0, tokens: int = 0) -> InverseMetric:
    """B = (lambda C)^-1 as a prior makes it from a stored moment; lambda is `weight`."""
    inverse_FF, condition = SecondMoment(moment_FF, tokens).inverse(shrinkage)
    return InverseMetric(inverse_FF / weight, condition)
