"""The one loop that turns a method, a model and facts into a patch.

Methods and strategies never fork it: what differs between them is data that it reads.

Shapes: D d_model, F d_ff, N facts.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, Protocol, TypedDict, Unpack, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bluedit.errors import NumericsError, SettingsError
from bluedit.facts import Fact, check_facts
from bluedit.known import lookup
from bluedit.methods import MEMIT, Method, Settings, blue
from bluedit.methods import method as find_method
from bluedit.models import EditableModel
from bluedit.patches import LowRank, Manifest, Patch
from bluedit.patches.patch import FactRecord, OptimisationRecord, WeightRecord
from bluedit.solvers import InverseMetric
from bluedit.statistics import Statistics, read_corpus
from bluedit.strategies import Strategy
from bluedit.strategies import strategy as find_strategy
from bluedit.values import Values, check_templates, context_templates, fact_keys, fact_states, optimise_values

__all__ = ["Plan", "Progress", "edit", "plan_edit", "run_plan"]


class Progress(Protocol):
    """What a progress display offers to the loop: called with what is being done, how much is done and of how much."""

    def __call__(self, task: str, advance: int, total: int | None) -> object: ...


def _silent(task: str, advance: int, total: int | None) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines an edit but the model itself: checked, defaults filled in."""

    method: Method
    layers: tuple[int, ...]
    settings: Settings
    statistics: Statistics
    templates: tuple[str, ...]
    facts: tuple[Fact, ...]
    seed: int = 0


class EditOptions(TypedDict, total=False):
    """What :func:`edit` takes beside model and facts, all of it optional."""

    method: Method | str | None
    strategy: Strategy | str | None
    layers: Sequence[int] | None
    settings: Settings | Mapping[str, Any] | None
    corpus: str | Statistics | None
    templates: Sequence[str] | None
    seed: int


Facts = Iterable[Fact | dict[str, Any]] | Fact | dict[str, Any]


@overload
def edit(model: EditableModel, facts: Facts, /, *, progress: Progress = ..., **options: Unpack[EditOptions]) -> Patch: ...
@overload
def edit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Facts,
    /,
    *,
    progress: Progress = ...,
    **options: Unpack[EditOptions],
) -> Patch: ...
def edit(model: Any, *arguments: Any, progress: Progress = _silent, **options: Unpack[EditOptions]) -> Patch:
    """Write facts into a model, as a patch; the model itself is left as it was.

    Called as `edit(model, facts)` with what :func:`~bluedit.models.load_model` gives, or as
    `edit(model, tokenizer, facts)` with any transformers causal language model.

    **Arguments**, beside these

    - `method`: a :class:`~bluedit.methods.Method` or a name; `blue(MEMIT)` when left out.
    - `strategy`: replaces the method's strategy: a :class:`~bluedit.strategies.Strategy` or a name.
    - `layers`: the critical layers; may be left out for known models.
    - `settings`: :class:`~bluedit.methods.Settings`, or a mapping of overrides such as `{"lambda": 5}`.
    - `corpus`: where second moments come from: `"text:FILE"`, or a :class:`~bluedit.statistics.Statistics`.
    - `templates`: context templates; generated from the model with `seed` when left out.
    - `seed`: of the templates; nothing else is random.
    - `progress`: called as `progress(task, advance, total)` while work goes on.

    **Returns** a :class:`~bluedit.patches.Patch`. An edit of no facts is the empty patch.

    **Raises** subclasses of :class:`~bluedit.errors.InputError` for what the caller can mend, and
    :class:`~bluedit.errors.NumericsError`; in each case the model is left as it was. Warns when a change outgrows its weight.
    """
    if len(arguments) not in (1, 2):
        raise TypeError("call edit(model, facts) with a loaded model, or edit(model, tokenizer, facts)")
    tokenizer, facts = arguments if len(arguments) == 2 else (None, *arguments)
    if isinstance(facts, Fact | dict):
        facts = [facts]
    editable = EditableModel.wrap(model, tokenizer)
    return run_plan(editable, plan_edit(editable, facts, **options), progress)


def plan_edit(
    model: EditableModel,
    facts: Iterable[Fact | dict[str, Any]],
    *,
    method: Method | str | None = None,
    strategy: Strategy | str | None = None,
    layers: Sequence[int] | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    corpus: str | Statistics | None = None,
    templates: Sequence[str] | None = None,
    seed: int = 0,
) -> Plan:
    """Check everything an edit needs and fill in what was left out; see :func:`edit`. Computes nothing expensive."""
    chosen = blue(MEMIT) if method is None else find_method(method)
    if strategy is not None:
        chosen = chosen.with_strategy(find_strategy(strategy))
    known = lookup(model.model.config)
    if layers is None and chosen.strategy.fixed_layers:
        layers = chosen.strategy.fixed_layers
    if layers is None and known is None:
        raise SettingsError(
            f"the critical layers of this model (of {model.structure.depth} layers) are not known; name them, as in "
            "--layers 4-8 or layers=range(4, 9)"
        )
    if isinstance(layers, str) or not all(type(layer) is int for layer in layers or ()):
        raise SettingsError(f"layers={layers!r} is not understood; give whole numbers, as in layers=range(4, 9)")
    critical = tuple(sorted(set(layers if layers is not None else known.layers)))  # type: ignore[union-attr]
    asked = {*critical, *(layer for step in chosen.strategy.steps(critical) for layer in (step.layer, step.aim))}
    if outside := sorted(layer for layer in asked if not 0 <= layer < model.structure.depth):
        raise SettingsError(f"layer {outside[-1]} is not in this model: it has layers 0 to {model.structure.depth - 1}")
    if not isinstance(settings, Settings):
        settings = chosen.settings.override({**(known.settings_for(chosen.name) if known else {}), **(settings or {})})
    if not isinstance(corpus, Statistics):
        name = corpus or (known.corpus if known else None)
        corpus = Statistics(read_corpus(name) if name else None)
    checked = check_facts(facts)
    for fact in checked:
        model.text.row(fact, with_target=True)  # says now what no token can be found for
    return Plan(
        method=chosen,
        layers=critical,
        settings=settings,
        statistics=corpus,
        templates=check_templates(templates) if templates is not None else context_templates(model, seed),
        facts=checked,
        seed=seed,
    )


@dataclass
class _Aims:
    """Targets by the layer they are optimised at, each computed the first time it is asked for."""

    model: EditableModel
    plan: Plan
    progress: Progress
    values: dict[int, Values] = field(default_factory=dict)

    def at(self, layer: int) -> Tensor:
        """Targets at `layer`, (D, N), optimised on the model as it is edited now."""
        if layer not in self.values:
            facts = self.plan.facts
            self.values[layer] = optimise_values(
                self.model, facts, layer, self.plan.templates, self.plan.settings,
                progress=lambda done: self.progress(f"optimising values at layer {layer}", done, len(facts)),
            )  # fmt: skip
        return self.values[layer].targets_DN


@torch.inference_mode(mode=False)
def run_plan(model: EditableModel, plan: Plan, progress: Progress = _silent) -> Patch:
    """Carry out a plan. The model's weights are written on the way, and hold their original bits afterwards."""
    started = time.monotonic()
    steps = plan.method.strategy.steps(plan.layers) if plan.facts else ()
    statistics, settings = plan.statistics, plan.settings
    moments = statistics.moments(
        model, [step.layer for step in steps], lambda done, total: progress("second moments of keys", done, total)
    )
    aims = _Aims(model, plan, progress)
    changes: dict[int, LowRank] = {}
    conditions: dict[int, float] = {}
    with model.restoring([step.layer for step in steps]):
        for step in steps:
            targets_DN = aims.at(step.aim)
            keys_FN = fact_keys(model, plan.facts, step.layer, plan.templates)
            gap_DN = targets_DN - fact_states(model, plan.facts, step.aim)
            moment = moments[step.layer]
            prior = InverseMetric.from_second_moment(
                moment.matrix_FF, settings.lambda_, shrinkage=settings.shrinkage, tokens=moment.tokens
            )
            gain_FN = prior.gain(keys_FN, noise=plan.method.noise, names=tuple(fact.id for fact in plan.facts))
            changes[step.layer] = _checked(LowRank.of(step.share * gap_DN, gain_FN), step.layer)
            conditions[step.layer] = prior.condition
            changes[step.layer].add_to(model.matrix(step.layer))
    records = {layer: _record(model, layer, change, conditions[layer]) for layer, change in changes.items()}
    return Patch(
        {model.structure.weight_name(layer): change for layer, change in changes.items()},
        _manifest(model, plan, records, aims, time.monotonic() - started),
    )


def _checked(change: LowRank, layer: int) -> LowRank:
    if not all(bool(torch.isfinite(factor).all()) for factor in (change.residual_DN, change.gain_FN)):
        raise NumericsError(f"the change of layer {layer} is not finite; raise lambda or shrinkage, or use a wider dtype")
    return change


def _record(model: EditableModel, layer: int, change: LowRank, condition: float) -> WeightRecord:
    norm = change.norm()
    relative = norm / model.matrix(layer).float().norm().item()
    if relative > 1:
        warnings.warn(
            f"the change of layer {layer} is {relative:.1f} times as large as the weight it changes (condition number of the "
            f"second moment: {condition:.1e}); raise shrinkage or lambda, or take second moments over more text",
            stacklevel=3,
        )
    return WeightRecord(
        layer=layer, before=model.weight_fingerprint(layer), norm=norm, relative_norm=relative, condition=condition
    )


def _manifest(model: EditableModel, plan: Plan, records: dict[int, WeightRecord], aims: _Aims, seconds: float) -> Manifest:
    return Manifest(
        model=str(getattr(model.model.config, "_name_or_path", "") or type(model.model).__name__),
        configuration=model.configuration_fingerprint(),
        method=plan.method.name,
        strategy=plan.method.strategy.name,
        layers=plan.layers,
        settings=plan.settings.as_dict(),
        templates=plan.templates,
        seed=plan.seed,
        corpus=plan.statistics.corpus.name if plan.statistics.corpus else None,
        facts=tuple(FactRecord(**asdict(fact)) for fact in plan.facts),
        weights={model.structure.weight_name(layer): record for layer, record in records.items()},
        optimisation=tuple(
            OptimisationRecord(layer=layer, evaluations=values.evaluations, losses=values.losses)
            for layer, values in aims.values.items()
        ),
        seconds=round(seconds, 3),
        versions={name: metadata.version(name) for name in ("bluedit", "torch", "transformers")},
    )
