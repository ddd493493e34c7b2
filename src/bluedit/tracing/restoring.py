"""Corrupt and restore: which hidden states carry a fact (Meng et al. 2022a, section 2.1 and appendix B).

*Concept.* Three runs of one prompt, whose answer o the model knows. The clean run says o with probability p. In the corrupted
run Gaussian noise on the embeddings of the subject's tokens leaves p* of it. In a restored run, corrupted by the same noise,
what stands at one token i and one layer l is put back to its clean value, and o is said with p*(i, l). The indirect effect of
the state is p*(i, l) - p*; the total effect is p - p*. The state that is put back is the hidden state after a layer, or what
MLPs or attention add over a window of layers around l.

*Mechanism.* Noise is drawn once a fact and shared by all its restorations. A restoration at layer l leaves the corrupted run as
it was below l, and left of the subject nothing is corrupted: a
:class:`~bluedit.models.forward.prefix.SuffixBatch` of the corrupted run stores both, and only what is above and to the right is
run again, for many tokens and all samples of noise in one pass.

Shapes: S noise samples, T tokens of the prompt, L layers, R restored runs (a token and a sample each), D d_model.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bluedit.errors import NumericsError, SettingsError, did_you_mean, excerpt
from bluedit.models import EditableModel, Row
from bluedit.models.editable import Component
from bluedit.models.forward.prefix import SuffixBatch
from bluedit.models.generation import no_logits
from bluedit.models.inputs.tokens import Batch

__all__ = ["COMPONENTS", "FactTrace", "Question", "TraceSettings", "subject_noise", "trace_fact"]

COMPONENTS: tuple[Component, ...] = ("layer", "mlp", "attention")
"""What can be restored: the hidden state after a layer, or the output of MLPs or of attention over a window of layers."""

_PUBLISHED_WINDOW, _PUBLISHED_DEPTH = 10, 48
_TOKEN_BUDGET = 2048


_MOST_SAMPLES = 10_000
"""All samples of a fact are run at once."""


@dataclass(frozen=True, kw_only=True)
class TraceSettings:
    """What a trace depends on in addition to the model and the facts.

    **Arguments**

    - `components`: what is restored, of :data:`COMPONENTS`.
    - `noise`: the noise's standard deviation, in standard deviations of the subjects' embeddings; published: 3.
    - `samples`: how many draws of noise are averaged for each fact; published: 10.
    - `window`: over how many layers MLPs or attention are restored; None is the published 10 of 48 layers, scaled to the
      model's depth.
    - `seed`: of the noise.
    - `choice_only`: restore at the subject's last token alone, which is all that a choice of layers looks at. The other tokens'
      effects are nan.

    **Raises** :class:`~bluedit.errors.SettingsError` for values out of range.
    """

    components: tuple[Component, ...] = COMPONENTS
    noise: float = 3.0
    samples: int = 10
    window: int | None = None
    seed: int = 0
    choice_only: bool = False

    def __post_init__(self) -> None:
        for component in self.components:
            if component not in COMPONENTS:
                raise SettingsError(did_you_mean(component, COMPONENTS, what="component"))
        if not self.components:
            raise SettingsError(f"no component is named; name some of {', '.join(COMPONENTS)}")
        object.__setattr__(self, "components", tuple(component for component in COMPONENTS if component in self.components))
        if not 0 <= self.noise < float("inf"):
            raise SettingsError(f"noise={self.noise}: this is not a standard deviation; the published one is 3")
        for name in ("samples", "window"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise SettingsError(f"{name}={value}; it must be at least 1")
        if self.samples > _MOST_SAMPLES:
            raise SettingsError(f"samples={self.samples}; draw at most {_MOST_SAMPLES:,} samples of noise (10 are published)")

    def layers(self, component: Component, layer: int, depth: int) -> range:
        """The layers whose `component` is restored at `layer`: itself, or the window l - w // 2 .. l + ceil(w / 2) - 1."""
        if component == "layer":
            return range(layer, layer + 1)
        window = self.window or max(1, round(_PUBLISHED_WINDOW * depth / _PUBLISHED_DEPTH))
        return range(max(0, layer - window // 2), min(depth, layer + (window + 1) // 2))

    def as_dict(self) -> dict[str, Any]:
        document = asdict(self) | {"components": list(self.components)}
        if not self.choice_only:
            del document["choice_only"]  # as traces were described before there was a choice
        return document


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt whose answer the model knows.

    - `ids`: the prompt's tokens.
    - `subject`: the positions of the subject's tokens.
    - `answer`: the answer's first token, whose probability is traced.
    """

    id: str
    prompt: str
    subject_text: str
    object: str
    ids: tuple[int, ...]
    subject: range
    answer: int


@dataclass(frozen=True, kw_only=True, eq=False)
class FactTrace:
    """What the restorations of one fact gave, as probabilities of the object's first token, means over the samples of noise.

    - `tokens`: the prompt's tokens as text; `subject`: the positions of the subject's.
    - `clean`, `corrupted`: p and p*.
    - `restored`: by component p*(i, l), (T, L) float64. Left of the subject it is p*: nothing is corrupted there.
    """

    id: str
    prompt: str
    subject_text: str
    object: str
    tokens: tuple[str, ...]
    subject: range
    clean: float
    corrupted: float
    restored: Mapping[Component, np.ndarray]

    def effects(self, component: Component) -> np.ndarray:
        """Indirect effects p*(i, l) - p* at a component, (T, L)."""
        return self.restored[component] - self.corrupted

    def as_dict(self) -> dict[str, Any]:
        """The fact without its tensors, for JSON."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "subject": self.subject_text,
            "object": self.object,
            "tokens": list(self.tokens),
            "subject_tokens": [self.subject.start, self.subject.stop],
            "clean": self.clean,
            "corrupted": self.corrupted,
        }

    @classmethod
    def of(cls, record: Mapping[str, Any], restored: Mapping[Component, np.ndarray]) -> FactTrace:
        """The fact of :meth:`as_dict`, with its tensors."""
        return cls(
            id=record["id"],
            prompt=record["prompt"],
            subject_text=record["subject"],
            object=record["object"],
            tokens=tuple(record["tokens"]),
            subject=range(*record["subject_tokens"]),
            clean=float(record["clean"]),
            corrupted=float(record["corrupted"]),
            restored=restored,
        )


@torch.no_grad()
def trace_fact(
    model: EditableModel, question: Question, settings: TraceSettings, deviation: float, token_budget: int = _TOKEN_BUDGET
) -> FactTrace:
    """Trace one fact over all tokens and layers.

    **Arguments**

    - `deviation`: the standard deviation of embeddings that the settings' `noise` counts.
    - `token_budget`: tokens of the restored runs in one forward pass, at most (the samples of one token may exceed it).

    Noise is seeded by the prompt and the settings' seed, so that a fact's trace depends on no other fact.

    **Raises** :class:`~bluedit.errors.NumericsError` naming the fact whose logits are not finite.

    **Cost**: per component S T runs from each of the L layers upwards, over the tokens from the subject on; S runs with
    `choice_only`.
    """
    depth, length, first = model.structure.depth, len(question.ids), question.subject.start
    starts: dict[int, list[tuple[Component, int]]] = {}
    for component in settings.components:
        for layer in range(depth):
            # The last layer whose output the restoration leaves as it is in the corrupted run, or replaces.
            start = layer if component == "layer" else settings.layers(component, layer, depth).start - 1
            starts.setdefault(start, []).append((component, layer))
    with model.frozen():
        clean = _Clean(model, question, settings)
        noise_STD = subject_noise(model, question, settings, deviation)
        rows = (Row(question.ids, first),) * settings.samples
        with _added_to_embeddings(model, noise_STD):
            corrupted = float(_probabilities(model, rows, question.answer).mean())
        untouched = float("nan") if settings.choice_only else corrupted
        restored = {component: np.full((length, depth), untouched) for component in settings.components}
        for start, places in sorted(starts.items()):
            with _added_to_embeddings(model, noise_STD):
                run = SuffixBatch(model, rows, start, share=False)
            for component, layer in places:
                layers = settings.layers(component, layer, depth)
                # What the last layer does at any other token is read by nobody.
                tokens = range(length - 1 if layers.start == depth - 1 else first, length)
                if settings.choice_only:
                    last = question.subject.stop - 1
                    restored[component][last, layer] = corrupted
                    tokens = range(max(tokens.start, last), min(tokens.stop, last + 1))
                step = max(1, token_budget // (settings.samples * (length - first)))
                for begin in range(tokens.start, tokens.stop, step):
                    chosen = range(begin, min(begin + step, tokens.stop))
                    values = _restore(model, run, noise_STD[:, first:], clean, component, layers, chosen, question)
                    restored[component][chosen.start : chosen.stop, layer] = values
    traced = slice(question.subject.stop - 1, question.subject.stop) if settings.choice_only else slice(None)
    if not all(np.isfinite(one).all() for one in (clean.probability, corrupted, *(v[traced] for v in restored.values()))):
        raise NumericsError(f"tracing fact {excerpt(question.id)}: {no_logits(question.prompt)}")
    return FactTrace(
        id=question.id,
        prompt=question.prompt,
        subject_text=question.subject_text,
        object=question.object,
        tokens=tuple(str(model.tokenizer.decode([token])) for token in question.ids),
        subject=question.subject,
        clean=clean.probability,
        corrupted=corrupted,
        restored=restored,
    )


class _Clean:
    """The clean run: the object's probability, and what stands at every component of every layer, (T, D)."""

    def __init__(self, model: EditableModel, question: Question, settings: TraceSettings) -> None:
        self.states: dict[tuple[Component, int], Tensor] = {}
        with contextlib.ExitStack() as stack:
            for component in settings.components:
                for layer in range(model.structure.depth):
                    stack.enter_context(model.hooked(layer, component, partial(self._keep, (component, layer))))
            self.probability = float(_probabilities(model, (Row(question.ids),), question.answer)[0])

    def _keep(self, place: tuple[Component, int], hidden_BTD: Tensor) -> None:
        self.states[place] = hidden_BTD[0]


def _restore(
    model: EditableModel,
    run: SuffixBatch,
    noise_SUD: Tensor,
    clean: _Clean,
    component: Component,
    layers: range,
    tokens: Sequence[int],
    question: Question,
) -> np.ndarray:
    """Mean probability of the object over the samples of noise, for each of `tokens` restored at `component` of `layers`.

    U counts tokens from the subject's first on, as `run` does.
    """
    first, samples = question.subject.start, len(noise_SUD)
    runs_R = torch.arange(samples).repeat(len(tokens))
    tokens_R = torch.tensor(tokens).repeat_interleave(samples)
    here_R, rows_R = tokens_R - first, torch.arange(len(runs_R))
    many = copy.copy(run)
    many.select(runs_R.to(run.states_BSD.device))

    def put_back(hidden_RUD: Tensor, layer: int) -> Tensor:
        device = hidden_RUD.device
        restored_RUD = hidden_RUD.clone()
        restored_RUD[rows_R.to(device), here_R.to(device)] = clean.states[component, layer].to(device)[tokens_R.to(device)]
        return restored_RUD

    states_RUD = many.states_BSD
    with contextlib.ExitStack() as stack:
        if component == "layer":
            states_RUD = put_back(states_RUD, layers.start)
        else:
            for layer in layers:
                stack.enter_context(model.hooked(layer, component, partial(put_back, layer=layer)))
            if layers.start == 0:  # nothing is stored below the first layer: it reads the embeddings
                stack.enter_context(_added_to_embeddings(model, noise_SUD[runs_R.to(noise_SUD.device)]))
        device = states_RUD.device
        last_R = torch.full_like(rows_R, len(question.ids) - 1 - first)
        looked_into = component == "mlp" and layers.stop == model.structure.depth
        logits_RV = many.logits(states_RUD, rows_R.to(device), last_R.to(device), last_mlp=not looked_into)
    probabilities_R = logits_RV.double().softmax(-1)[:, question.answer]
    return probabilities_R.view(len(tokens), samples).mean(1).cpu().numpy()


def _probabilities(model: EditableModel, rows: Sequence[Row], answer: int) -> Tensor:
    """The probability of `answer` after each of some rows of one length."""
    batch = Batch.of(rows, model.device)
    rows_B = torch.arange(len(rows), device=model.device)
    with model.head_at(rows_B, torch.full_like(rows_B, batch.ids.shape[1] - 1)):
        return model.forward(batch)[0].double().softmax(-1)[:, answer]


def subject_noise(model: EditableModel, question: Question, settings: TraceSettings, deviation: float) -> Tensor:
    """Noise for every sample and token, (S, T, D); 0 outside the subject."""
    identity = f"{settings.seed}|{question.ids}|{question.subject}"
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") >> 1)
    # The width of the embeddings, which in some models is not that of the hidden states.
    width = int(model.model.get_input_embeddings().weight.shape[1])  # type: ignore[arg-type]
    drawn = torch.randn(settings.samples, len(question.subject), width, generator=generator)
    noise_STD = torch.zeros(settings.samples, len(question.ids), width)
    noise_STD[:, question.subject.start : question.subject.stop] = settings.noise * deviation * drawn
    return noise_STD.to(model.device)


@contextlib.contextmanager
def _added_to_embeddings(model: EditableModel, noise_BTD: Tensor) -> Generator[None]:
    """Inside, noise is added to what the input embedding gives."""

    def after(_: torch.nn.Module, __: Any, output: Tensor) -> Tensor:
        return (output.to(noise_BTD.dtype) + noise_BTD).to(output.dtype)

    handle = model.model.get_input_embeddings().register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
