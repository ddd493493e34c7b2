"""Value optimisation: the hidden state that would make the model say the new object, for many facts at once.

*Concept.* For one fact at layer l, delta is added to the layer's output at the subject's last token, in every prompt.
It minimises (ROME eq. 4, MEMIT eq. 16)

    mean over the prompts of -log p(target | prompt) / |target tokens|
    + kl_factor KL(p_edited || p_original)  at the subject's last token of "{subject} is a"
    + v_weight_decay ||delta|| / ||h0||^2

by Adam from delta = 0, projected onto ||delta|| <= clamp_norm_factor ||h0|| after every step. The target is h0 + delta.

PMET optimises two vectors at once, at the outputs of the layer's MLP and of its attention, each in a ball of its own; the
decay is summed over both, and only the MLP's becomes the target. Which components, and what happens once the target is the
argmax, are said by the method's :class:`~bluedit.methods.Objective`.

*Mechanism.* Facts do not interact, so a wave of them is one forward and one backward pass per evaluation, run by
:class:`~bluedit.models.forward.prefix.Injection` on the tokens and layers that delta reaches, and no others. A fact leaves
its wave as soon as its own loss is low enough.

Shapes: N facts of a wave, B rows (per fact its rewriting prompts, then its KL prompt where that is another), S suffix tokens,
T target tokens over all rows, V vocabulary where logits are meant and vectors of a fact otherwise, D d_model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from bluedit.editors.closed_form.keys import fact_states
from bluedit.editors.closed_form.objectives import HIDDEN_STATE, Objective, ValueSettings
from bluedit.editors.closed_form.warm_start import predict_deltas, spread
from bluedit.editors.losses import mean_by_row, readings, weight_decay
from bluedit.errors import FactError, NumericsError
from bluedit.facts import Fact
from bluedit.models import EditableModel, Row
from bluedit.models.forward.prefix import Injection
from bluedit.models.memory.budget import TokenBudget, gradient_budget
from bluedit.precision import upcast

__all__ = ["Values", "optimise_values"]

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_OVERHEAD_TOKENS = {"cpu": 48}
_GPU_OVERHEAD_TOKENS = 1024
"""What a pass costs whatever its size, in tokens that could be run in the same time. A CPU's matrix products are nearly as
fast a token for 250 tokens as for 1,000; a GPU is still waiting for its next kernel then. The CPU's number was measured, the
GPU's is assumed."""
_KL_PROMPT = "{} is a"


@dataclass(frozen=True)
class Values:
    """Optimised values of facts at one layer, in the order of the facts.

    - `targets_DN`: z = h0 + delta, (D, N) float32, at the objective's first component.
    - `initial_DN`: h0, what stood there before, (D, N) float32.
    - `evaluations`: how often each fact's loss was evaluated; one more than the steps it took.
    - `losses`: each fact's last loss.
    """

    layer: int
    targets_DN: Tensor
    initial_DN: Tensor
    evaluations: tuple[int, ...]
    losses: tuple[float, ...]

    def tensors(self) -> dict[str, Tensor]:
        """What is stored: a row for each fact."""
        return {"targets": self.targets_DN.T, "initial": self.initial_DN.T}

    def record(self) -> dict[str, Any]:
        """What is stored of the rest."""
        return {"evaluations": self.evaluations, "losses": self.losses, "contiguous": self.targets_DN.is_contiguous()}

    @classmethod
    def restored(cls, layer: int, record: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> Values:
        """The values that were stored, to the same bits and laid out as they were."""
        targets_DN, initial_DN = (tensors[name].to(device).T for name in ("targets", "initial"))
        if record["contiguous"]:
            # Laid out otherwise, the same numbers could be summed in another order later.
            targets_DN, initial_DN = targets_DN.contiguous(), initial_DN.contiguous()
        return cls(layer, targets_DN, initial_DN, tuple(record["evaluations"]), tuple(record["losses"]))


@torch.enable_grad()
def optimise_values(
    model: EditableModel,
    facts: Sequence[Fact],
    layer: int,
    templates: Sequence[str],
    settings: ValueSettings,
    objective: Objective = HIDDEN_STATE,
    *,
    start_DN: Tensor | None = None,
    token_budget: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Values:
    """Optimise the value of every fact at `layer`.

    **Arguments**

    - `templates`: context templates, the bare prompt first; they make the rewriting prompts.
    - `settings`: with `warm_start_after`, some facts start from 0 and the others from a prediction; see
      :mod:`bluedit.editors.closed_form.warm_start`.
    - `start_DN`: deltas to start from instead, (D, N), at the objective's first component; they are projected onto their balls.
      A start that is near saves evaluations, and costs one forward pass for the divergence's reference.
    - `token_budget`: padded tokens that are run again at every evaluation, at most (a single fact may exceed it); found from
      the memory there is when left out. When memory runs out all the same, it is halved: facts that have finished stay so.
    - `progress`: called with the number of facts that have just finished.

    **Returns** :class:`Values`.

    **Raises** :class:`~bluedit.errors.FactError` when a prompt is longer than the model's context,
    :class:`~bluedit.errors.NumericsError` naming the fact whose loss is not finite,
    :class:`~bluedit.errors.ResourceError` when memory does not suffice for a single fact.

    **Cost** per fact: one forward pass over its prompts; then per evaluation a forward and a backward pass through the
    layers above `layer`, over the tokens from the subject's last one on.
    """
    if start_DN is None and 0 < settings.warm_start_after < len(facts):
        return _warmed(model, facts, layer, templates, settings, objective, token_budget=token_budget, progress=progress)
    prompts = [_prompts(model, fact, templates) for fact in facts]
    device = model.weight(layer).device
    targets_ND = upcast(torch.zeros(len(facts), model.structure.d_model, device=device, dtype=model.weight(layer).dtype))
    initial_ND = torch.zeros_like(targets_ND)
    evaluations = [0] * len(facts)
    losses = [float("nan")] * len(facts)
    budget = gradient_budget(model, layer) if token_budget is None else TokenBudget(token_budget)
    overhead = _OVERHEAD_TOKENS.get(device.type, _GPU_OVERHEAD_TOKENS)

    def run(chosen: list[int]) -> None:
        start_ND = None if start_DN is None else start_DN.T[chosen]
        wave = _Wave(model, layer, [prompts[index] for index in chosen], settings, objective, start_ND)
        initial_ND[chosen] = wave.initial_VND[0]
        numbers = torch.tensor(chosen, device=device)
        while len(numbers):
            losses_N, done_N = wave.evaluate()
            if not torch.isfinite(losses_N).all():
                _refuse(facts[int(numbers[~torch.isfinite(losses_N)][0])], layer, wave.evaluations)
            if wave.evaluations == settings.v_num_grad_steps:
                done_N = torch.ones_like(done_N)
            targets_ND[numbers[done_N]] = (wave.initial_VND[0] + wave.delta_VND[0])[done_N]
            for index, loss in zip(numbers[done_N].tolist(), losses_N[done_N].tolist(), strict=True):
                evaluations[index], losses[index] = wave.evaluations, loss
            numbers = numbers[~done_N]
            if done_N.any() and progress is not None:
                progress(int(done_N.sum()))
            if len(numbers):
                wave.step()
                if done_N.any():
                    wave.keep(~done_N)

    with model.frozen():
        while left := [index for index, count in enumerate(evaluations) if not count]:
            for wave in _waves([prompts[index] for index in left], budget.tokens, overhead):
                chosen = [left[place] for place in wave]
                with budget.attempt(_tokens([prompts[index] for index in chosen]), alone=len(chosen) == 1) as attempt:
                    run(chosen)
                if attempt.failed:
                    break  # The rest is cut into smaller waves; what has finished is left no more.
    return Values(layer, targets_ND.T, initial_ND.T, tuple(evaluations), tuple(losses))


def _warmed(
    model: EditableModel,
    facts: Sequence[Fact],
    layer: int,
    templates: Sequence[str],
    settings: ValueSettings,
    objective: Objective,
    **options: Any,
) -> Values:
    """Some facts from 0, the others with half of the evaluations from what those teach."""
    first = spread(settings.warm_start_after, len(facts))
    rest = sorted(set(range(len(facts))) - set(first))
    seen, others = [facts[place] for place in first], [facts[place] for place in rest]
    cold = settings.override({"warm_start_after": 0})
    taught = optimise_values(model, seen, layer, templates, cold, objective, **options)
    initial_DM = fact_states(model, others, layer, objective.components[0])
    start_DM = predict_deltas(model, seen, taught.initial_DN, taught.targets_DN - taught.initial_DN, others, initial_DM)
    half = cold.override({"v_num_grad_steps": (settings.v_num_grad_steps + 1) // 2})
    warm = optimise_values(model, others, layer, templates, half, objective, start_DN=start_DM, **options)
    order = torch.tensor([*first, *rest]).argsort().tolist()
    evaluations, losses = (*taught.evaluations, *warm.evaluations), (*taught.losses, *warm.losses)
    return Values(
        layer,
        torch.cat([taught.targets_DN, warm.targets_DN], 1)[:, order],
        torch.cat([taught.initial_DN, warm.initial_DN], 1)[:, order],
        tuple(evaluations[place] for place in order),
        tuple(losses[place] for place in order),
    )


class _Prompts(NamedTuple):
    """What a fact's loss is taken over: its rewriting prompts with their target, and the KL prompt.

    Up to the subject's last token, where the divergence is taken, the KL prompt is the bare prompt wherever that begins
    with the subject: then `kl` is None, and the bare prompt's row serves for both.
    """

    rewriting: tuple[Row, ...]
    kl: Row | None

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.rewriting if self.kl is None else (*self.rewriting, self.kl)

    @property
    def suffix(self) -> int:
        """Tokens from the subject's last one on, of the longest row."""
        return max(len(row.ids) - row.subject for row in self.rewriting)


def _prompts(model: EditableModel, fact: Fact, templates: Sequence[str]) -> _Prompts:
    kl_text = _KL_PROMPT.replace("{}", fact.subject)
    kl_row = model.text.subject_row(kl_text, 0, len(fact.subject))
    rewriting = tuple(model.text.row(fact, template, with_target=True) for template in templates)
    # What follows the subject is not looked at.
    kl = Row(kl_row.ids[: kl_row.subject + 1], kl_row.subject)
    shared = rewriting[0].ids[: rewriting[0].subject + 1] == kl.ids
    longest = max(len(row.ids) for row in (*rewriting, kl))
    if longest > model.context_length:
        raise FactError(
            f"fact {fact.id!r} takes {longest} tokens with its context and target; the model takes {model.context_length}: "
            "shorten its prompt"
        )
    return _Prompts(rewriting, None if shared else kl)


def _waves(prompts: Sequence[_Prompts], token_budget: int, overhead: int) -> list[list[int]]:
    """Facts in waves, the longest first, so that memory peaks at once and not at the end.

    What is run again and again are the suffixes, padded to the longest of their wave: facts of unlike suffixes should part.
    But every wave costs something by itself, as much as `overhead` tokens do. The cut of the sorted facts at which both
    together cost least is found by dynamic programming, in O(N w) for waves of w facts.
    """
    longest = [max(len(row.ids) for row in one.rows) for one in prompts]
    order = sorted(range(len(prompts)), key=lambda index: (-prompts[index].suffix, -longest[index]))
    # best[n]: the least cost of the first n facts, and where their last wave starts.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        rows, choices = 0, list[tuple[int, int]]()
        for start in range(end - 1, -1, -1):
            first = prompts[order[start]]
            rows += len(first.rows)
            tokens = rows * first.suffix
            if tokens > token_budget and choices:
                break
            choices.append((best[start][0] + tokens + overhead, start))
        best.append(min(choices))
    waves: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        waves.append(order[start:end])
        end = start
    return waves[::-1]


def _tokens(prompts: Sequence[_Prompts]) -> int:
    """Padded tokens of a wave that are run again at every evaluation."""
    return sum(len(one.rows) for one in prompts) * max(one.suffix for one in prompts)


def _refuse(fact: Fact, layer: int, evaluations: int) -> NoReturn:
    raise NumericsError(
        f"the loss of fact {fact.id!r} ({fact.text!r}) at layer {layer} is not finite at evaluation {evaluations}; "
        "lower v_lr, or load the model in float32 or bfloat16"
    )


class _Wave:
    """Facts that are optimised together: their deltas, Adam's moments, and the pass that evaluates them."""

    def __init__(
        self,
        model: EditableModel,
        layer: int,
        prompts: Sequence[_Prompts],
        settings: ValueSettings,
        objective: Objective,
        start_ND: Tensor | None = None,
    ) -> None:
        self._settings = settings
        self._objective = objective
        self._rewriting = len(prompts[0].rewriting)
        self._injection = Injection(model, [row for one in prompts for row in one.rows], layer, objective.components)
        counts = [len(one.rows) for one in prompts]
        first = [sum(counts[:place]) for place in range(len(prompts))]  # the bare prompts
        self.initial_VND = self._injection.initial(first)
        device = self.initial_VND.device
        self._owner_B = torch.arange(len(prompts), device=device).repeat_interleave(torch.tensor(counts, device=device))
        self._kl_rows_N = torch.tensor(
            [place + (0 if one.kl is None else len(one.rewriting)) for place, one in zip(first, prompts, strict=True)],
            device=device,
        )
        self.delta_VND = torch.zeros_like(self.initial_VND)
        self._first_VND = torch.zeros_like(self.delta_VND)
        self._second_VND = torch.zeros_like(self.delta_VND)
        self._scale_N = torch.ones_like(self.delta_VND[0, :, 0])
        self._original_NV: Tensor | None = None
        self._loss_N = torch.empty(0)
        self._leaf_VND = self.delta_VND
        self.evaluations = 0
        self._index()
        if start_ND is not None:
            with torch.no_grad():
                logits = self._logits(self.delta_VND)[len(self._rows_T) :]
                self._original_NV = logits.log_softmax(-1, dtype=self.delta_VND.dtype)
            self.delta_VND[0] = start_ND.to(self.delta_VND)
            self._project()

    def _index(self) -> None:
        """Where in the suffixes the targets' logits are wanted; the KL prompts' are at the first token."""
        rows = self._injection.rows
        places = [
            (index, position - row.subject, token)
            for index, row in enumerate(rows)
            for position, token in zip(row.target_positions, row.target, strict=True)
        ]
        device = self.delta_VND.device
        self._rows_T, self._positions_T, self._tokens_T = torch.tensor(places, device=device).T

    def evaluate(self) -> tuple[Tensor, Tensor]:
        """The loss of every fact, and whether it is done, (N,) each."""
        self.evaluations += 1
        self._leaf_VND = self.delta_VND.clone().requires_grad_()
        logits = self._logits(self._leaf_VND)
        nll_T, kl_N, log_probs = readings(logits, self._tokens_T, self._original_NV)
        count = len(self._rows_T)
        if self._original_NV is None:
            # delta is still 0: this is the model as it was.
            self._original_NV = log_probs[count:].clone()
        # A KL prompt has no target, and adds nothing.
        nll_B = mean_by_row(nll_T, self._rows_T, len(self._injection.rows))
        nll_N = torch.zeros_like(self._scale_N).index_add(0, self._owner_B, nll_B) / self._rewriting
        settings, objective = self._settings, self._objective
        decay_N = sum(
            weight_decay(delta_ND, initial_ND) for delta_ND, initial_ND in zip(self._leaf_VND, self.initial_VND, strict=True)
        )
        self._loss_N = self._scale_N * nll_N + settings.kl_factor * kl_N + settings.v_weight_decay * decay_N
        done_N = self._loss_N.detach() < settings.early_stop_loss
        if objective.met_scale is not None:
            missed_T = (log_probs[:count].argmax(-1) != self._tokens_T).float()
            met_N = (
                torch.zeros_like(self._scale_N, dtype=missed_T.dtype).index_add(0, self._owner_B[self._rows_T], missed_T) == 0
            )
            # A target that is lost again counts in full again.
            self._scale_N = torch.where(met_N, objective.met_scale, torch.ones_like(self._scale_N))
            done_N |= met_N & (kl_N.detach() < objective.met_kl)
        return self._loss_N.detach(), done_N

    def _logits(self, delta_VND: Tensor) -> Tensor:
        """Logits where targets' tokens are predicted, then where the divergence is taken."""
        with self._precision():
            return self._injection.logits(
                delta_VND[:, self._owner_B],
                torch.cat([self._rows_T, self._kl_rows_N]),
                torch.cat([self._positions_T, torch.zeros_like(self._kl_rows_N)]),
            )

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        """What the model's matrix products are computed in."""
        name = self._settings.v_autocast
        if name == "off":
            return contextlib.nullcontext()
        return torch.autocast(self.delta_VND.device.type, getattr(torch, name))

    def step(self) -> None:
        """One step of Adam on every delta, then the projection onto the balls around 0."""
        settings, steps = self._settings, self.evaluations
        (gradient_VND,) = torch.autograd.grad(self._loss_N.sum(), self._leaf_VND)
        self._first_VND.lerp_(gradient_VND, 1 - _BETAS[0])
        self._second_VND.lerp_(gradient_VND.square(), 1 - _BETAS[1])
        scale_VND = (self._second_VND / (1 - _BETAS[1] ** steps)).sqrt_().add_(_EPSILON)
        self.delta_VND.addcdiv_(self._first_VND, scale_VND, value=-settings.v_lr / (1 - _BETAS[0] ** steps))
        self._project()

    def _project(self) -> None:
        """Every delta onto its ball around 0."""
        norms_VN = self.delta_VND.norm(dim=-1)
        limits_VN = self._settings.clamp_norm_factor * self.initial_VND.norm(dim=-1)
        self.delta_VND.mul_(torch.where(norms_VN > limits_VN, limits_VN / norms_VN, 1.0)[..., None])

    def keep(self, keep_N: Tensor) -> None:
        """Continue with these facts only."""
        keep_B = keep_N[self._owner_B]
        self._injection.select(keep_B.nonzero().squeeze(1))
        self._kl_rows_N = (keep_B.cumsum(0) - 1)[self._kl_rows_N[keep_N]]
        self._owner_B = (keep_N.cumsum(0) - 1)[self._owner_B[keep_B]]
        self.initial_VND, self.delta_VND = self.initial_VND[:, keep_N], self.delta_VND[:, keep_N]
        self._first_VND, self._second_VND = self._first_VND[:, keep_N], self._second_VND[:, keep_N]
        assert self._original_NV is not None
        self._original_NV, self._scale_N = self._original_NV[keep_N], self._scale_N[keep_N]
        self._index()
