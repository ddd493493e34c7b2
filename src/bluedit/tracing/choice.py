"""Which layers to edit in a model that nobody has tuned, read off a trace.

*Concept.* An edit at layer l writes the fact into that layer's MLP and hands it on in the hidden state of the subject's last
token. It needs two things: that MLPs put facts there, and that somebody above still reads the fact from there. A trace
measures both at the subject's last token: the indirect effect of the MLPs around l, and that of the hidden state after l, which
falls off where attention has carried the fact away to the prompt's last token.

*Rule.* The critical layers begin with the first layer whose MLPs restore at least half of what any layer's do, and end with the
last whose hidden state restores at least half of what any layer's does:

    first = min { l : m(l) >= max m / 2 },    last = max { l >= first : h(l) >= max h / 2 }    (first where there is none)

with m, h the average indirect effects at the subject's last token. The first part is MEMIT's criterion for the early end of its
range (section 4.1); the late end is where value optimisation loses its hold. BLUE edits the two ends.

Shapes: N facts, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bluedit.datasets.cases import Case
from bluedit.editors.layer_cache import Choice, remember
from bluedit.errors import SettingsError
from bluedit.models import EditableModel
from bluedit.tracing.restoring import TraceSettings
from bluedit.tracing.trace import Trace, trace_cases

__all__ = ["choose", "choose_layers", "layers_by_tracing"]

_SHARE = 0.5
_RESAMPLES = 1000
_COMPONENTS = ("layer", "mlp")


def choose_layers(trace: Trace) -> Choice:
    """The critical layers that a trace shows.

    **Raises** :class:`~bluedit.errors.SettingsError` when it shows none, or was not made at the components that are needed.
    """
    if missing := [component for component in _COMPONENTS if component not in trace.settings.components]:
        raise SettingsError(f"layers are chosen from the components {' and '.join(_COMPONENTS)}; {missing[0]} was not traced")
    return choose(trace.effects("mlp"), trace.effects("layer"))


def choose(mlp_NL: np.ndarray, layer_NL: np.ndarray) -> Choice:
    """The rule on indirect effects at the subject's last token, of every fact: of MLPs and of hidden states, (N, L).

    **Raises** :class:`~bluedit.errors.SettingsError` when there is no fact, or no effect at any layer.
    """
    means = [effects_NL.mean(0) if len(effects_NL) else np.zeros(effects_NL.shape[1]) for effects_NL in (mlp_NL, layer_NL)]
    if min(values.max(initial=0.0) for values in means) <= 0:
        raise SettingsError(
            f"the trace of {len(mlp_NL)} facts shows no effect at the subject's last token, and no layers can be chosen: "
            "trace more facts, whose prompts do not end with their subject, or name the layers"
        )
    first, last = _range(*means)
    draws = np.random.default_rng(0).integers(0, len(mlp_NL), (_RESAMPLES, len(mlp_NL)))
    same = [_range(mlp_NL[chosen].mean(0), layer_NL[chosen].mean(0)) == (first, last) for chosen in draws]
    peak = first + int(means[0][first : last + 1].argmax())
    return Choice(layers=tuple(range(first, last + 1)), peak=peak, facts=len(mlp_NL), agreement=float(np.mean(same)))


def _range(mlp_L: np.ndarray, layer_L: np.ndarray) -> tuple[int, int]:
    first = int((mlp_L >= _SHARE * mlp_L.max()).argmax())
    (holding,) = (layer_L >= _SHARE * layer_L.max()).nonzero()
    return first, max(first, int(holding.max(initial=first)))


def layers_by_tracing(
    model: EditableModel,
    cases: Sequence[Case],
    *,
    seed: int = 0,
    progress: Callable[[str, int, int | None], object] = lambda *_: None,
) -> Choice:
    """Trace facts at the components and the one token that a choice needs, choose, and remember.

    The trace is stored in the cache folder: an interrupted trace resumes, and a complete one is read.
    """
    trace = trace_cases(
        model, cases, TraceSettings(components=_COMPONENTS, seed=seed, choice_only=True), cached=True, progress=progress
    )
    choice = choose_layers(trace)
    remember(choice, trace.model, model.text.chat)
    return choice
