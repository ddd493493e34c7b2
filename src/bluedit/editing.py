"""The one loop that turns a method, a model and facts into a patch.

Methods and strategies never fork it: what differs between them is data that it reads.

Shapes: D d_model, F d_ff, N facts.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any, Literal, Protocol, TypedDict, Unpack, cast, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bluedit.cautions import LargeChangeWarning, RoundingWarning, UnmetWarning
from bluedit.errors import FactError, NumericsError, SettingsError, excerpt
from bluedit.facts import Fact, OnConflict, check_facts, check_on_conflict
from bluedit.fine_tuning import fine_tune
from bluedit.known import lookup
from bluedit.methods import MEMIT, Method, Settings, blue
from bluedit.methods import method as find_method
from bluedit.models import EditableModel
from bluedit.patches import Change, Dense, LowRank, Manifest, Patch
from bluedit.patches.manifest import FactRecord, OptimisationRecord, WeightRecord
from bluedit.precision import all_finite, wide
from bluedit.progress import Progress, silent, stage
from bluedit.solvers import InverseMetric
from bluedit.statistics import Statistics, read_corpus
from bluedit.strategies import SINGLE, Step, Strategy
from bluedit.strategies import strategy as find_strategy
from bluedit.values import Values, check_templates, context_templates, fact_keys, fact_states, optimise_values

__all__ = [
    "EditOptions",
    "Facts",
    "Metrics",
    "Plan",
    "Progress",
    "ValueStore",
    "edit",
    "plan_edit",
    "restrain_sequence",
    "run_batch",
    "run_plan",
    "silent",
]


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
    on_conflict: OnConflict = "error"

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the strategy; none where there are no facts."""
        return self.method.strategy.steps(self.layers) if self.facts else ()

    def with_facts(self, model: EditableModel, facts: Facts, start: int = 0, on_conflict: OnConflict | None = None) -> Plan:
        """The same plan for other facts, checked; those without an id are numbered from `start`.

        `on_conflict`: for these facts, instead of the plan's.

        **Raises** :class:`~bluedit.errors.FactError` and :class:`~bluedit.errors.SettingsError` for facts that cannot be
        edited so.
        """
        given = cast("Iterable[Fact]", [facts] if isinstance(facts, Fact | dict) else facts)
        checked = check_facts(given, start, check_on_conflict(on_conflict or self.on_conflict))
        self.method.check_batch(len(checked))
        for fact in checked:
            try:
                row = model.text.row(fact, with_target=True)  # says now what no token can be found for
            except FactError as error:
                raise FactError(f"fact {excerpt(fact.id)}: {error}") from error
            if len(row.ids) > model.context_length:
                raise FactError(
                    f"fact {excerpt(fact.id)} takes {len(row.ids):,} tokens with its target; the model takes "
                    f"{model.context_length:,}: shorten its prompt"
                )
        return replace(self, facts=checked)


class EditOptions(TypedDict, total=False):
    """What :func:`edit` takes beside model and facts, all of it optional."""

    method: Method | str | None
    strategy: Strategy | str | None
    layers: Sequence[int] | Literal["auto"] | None
    settings: Settings | Mapping[str, Any] | None
    corpus: str | Statistics | None
    templates: Sequence[str] | None
    seed: int
    on_conflict: OnConflict


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
def edit(model: Any, *arguments: Any, progress: Progress = silent, **options: Unpack[EditOptions]) -> Patch:
    """Write facts into a model, as a patch; the model itself is left as it was.

    Called as `edit(model, facts)` with what :func:`~bluedit.models.load_model` gives, or as
    `edit(model, tokenizer, facts)` with any transformers causal language model.

    **Arguments**, beside these

    - `method`: a :class:`~bluedit.methods.Method` or a name; `blue(MEMIT)` when left out.
    - `strategy`: replaces the method's strategy: a :class:`~bluedit.strategies.Strategy` or a name.
    - `layers`: the critical layers; may be left out for known models. `"auto"`: those that the kept trace of this very model
      shows (see :mod:`bluedit.tracing.choice`).
    - `settings`: :class:`~bluedit.methods.Settings`, or a mapping of overrides such as `{"lambda": 5}`.
    - `corpus`: where second moments come from: `"text:FILE"`, or a :class:`~bluedit.statistics.Statistics`.
    - `templates`: context templates; generated from the model with `seed` when left out.
    - `seed`: of the templates; nothing else is random.
    - `on_conflict`: what becomes of facts that give one subject and relation, or one prompt, two targets: `"error"` refuses
      them, with `"last"` the later one wins, `"keep"` edits both.
    - `progress`: called as `progress(task, advance, total)` while work goes on.

    **Returns** a :class:`~bluedit.patches.Patch`. An edit of no facts is the empty patch. A method whose restraint acts at
    the end of a sequence (PRUNE) takes the one batch for the whole of it.

    **Raises** subclasses of :class:`~bluedit.errors.InputError` for what the caller can mend, and
    :class:`~bluedit.errors.NumericsError`; in each case the model is left as it was. Warns when a change outgrows its weight.
    """
    if len(arguments) not in (1, 2):
        raise TypeError("call edit(model, facts) with a loaded model, or edit(model, tokenizer, facts)")
    tokenizer, facts = arguments if len(arguments) == 2 else (None, *arguments)
    editable = EditableModel.wrap(model, tokenizer)
    return run_plan(editable, plan_edit(editable, facts, **options), progress)


def plan_edit(
    model: EditableModel,
    facts: Facts,
    *,
    method: Method | str | None = None,
    strategy: Strategy | str | None = None,
    layers: Sequence[int] | Literal["auto"] | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    corpus: str | Statistics | None = None,
    templates: Sequence[str] | None = None,
    seed: int = 0,
    on_conflict: OnConflict = "error",
) -> Plan:
    """Check everything an edit needs and fill in what was left out; see :func:`edit`. Computes nothing expensive."""
    chosen = blue(MEMIT) if method is None else find_method(method)
    if strategy is not None:
        chosen = chosen.with_strategy(find_strategy(strategy))
    known = lookup(model.model.config)
    if layers == "auto":
        from bluedit.tracing.kept import recall

        layers = chosen.strategy.fixed_layers or recall(model).layers_for(chosen.strategy)
    if layers is None and chosen.strategy.fixed_layers:
        layers = chosen.strategy.fixed_layers
    if layers is None and known is not None:
        layers = known.layers_for(chosen.name, one=chosen.strategy == SINGLE)
    if layers is None:
        example = "--layers 5 or layers=[5]" if chosen.strategy == SINGLE else "--layers 4-8 or layers=range(4, 9)"
        raise SettingsError(
            f"the critical layers of this model (of {model.structure.depth} layers) are not known for {chosen.name}; name "
            f"them, as in {example}, or have them chosen: `bluedit trace`, then auto"
        )
    if isinstance(layers, str) or not all(type(layer) is int for layer in layers):
        raise SettingsError(f"layers={layers!r} is not understood; give whole numbers, as in layers=range(4, 9)")
    critical = tuple(sorted(set(layers)))
    asked = {*critical, *(layer for step in chosen.strategy.steps(critical) for layer in (step.layer, step.aim))}
    if outside := sorted(layer for layer in asked if not 0 <= layer < model.structure.depth):
        raise SettingsError(f"layer {outside[-1]} is not in this model: it has layers 0 to {model.structure.depth - 1}")
    if sparse := sorted(asked - set(model.structure.dense)):
        raise SettingsError(
            f"layer {sparse[0]} is a mixture of experts: its MLP is no single matrix that could be edited; choose among layers "
            + ", ".join(map(str, model.structure.dense))
        )
    if not isinstance(settings, Settings):
        settings = chosen.override(known.settings_for(chosen.name, chosen.strategy.name) if known else {}, settings or {})
    if not isinstance(corpus, Statistics):
        name = corpus or (known.corpus if known else None)
        corpus = Statistics(read_corpus(name) if name else None)
    plan = Plan(
        method=chosen,
        layers=critical,
        settings=settings,
        statistics=corpus,
        templates=check_templates(templates) if templates is not None else context_templates(model, seed),
        facts=(),
        seed=seed,
        on_conflict=check_on_conflict(on_conflict),
    )
    return plan.with_facts(model, facts)


@dataclass
class Metrics:
    """The inverse metric of each edited layer, made from the prior when first asked for: the memory of a sequence.

    Statistics belong to the model as it is before its first edit: prepare all layers then.

    - `by_layer`: B as it is now, where the layer's weight is.
    - `initial`: B before the first batch, kept in main memory where past keys will change it, so that batches can be undone.
    """

    plan: Plan
    by_layer: dict[int, InverseMetric] = field(default_factory=dict)
    initial: dict[int, InverseMetric] = field(default_factory=dict)

    def prepare(self, model: EditableModel, layers: Iterable[int], progress: Progress = silent) -> None:
        """Make what is missing for `layers`, from second moments taken in one pass where they are not stored."""
        method = self.plan.method
        missing = [layer for layer in dict.fromkeys(layers) if layer not in self.by_layer]
        if not missing or method.fine_tuning:
            return
        with stage(progress, "second moments of keys") as advance:
            moments = self.plan.statistics.moments(model, missing, advance)
        for layer in missing:
            metric = method.prior.inverse(moments[layer], self.plan.settings)
            if method.keeps_past:
                self.initial[layer] = metric.copy("cpu")
            self.by_layer[layer] = metric.copy(model.weight(layer).device)

    def absorb(self, keys: Mapping[int, Tensor]) -> None:
        """Make keys (F, N) by layer past keys, where the method keeps them."""
        if self.plan.method.keeps_past:
            for layer, keys_FN in keys.items():
                self.by_layer[layer].absorb(keys_FN)

    def after(self, batches: Iterable[Mapping[int, Tensor]]) -> Metrics:
        """The metrics after these batches' keys, from the initial ones; a method without past keys has them already."""
        if not self.plan.method.keeps_past:
            return self
        by_layer = {layer: metric.copy(self.by_layer[layer].matrix_FF.device) for layer, metric in self.initial.items()}
        metrics = Metrics(self.plan, by_layer, self.initial)
        for keys in batches:
            metrics.absorb(keys)
        return metrics


class ValueStore(Protocol):
    """Values that runs on one model share: optimised once for the same facts at the same layer of the same edited state."""

    def recall(self, model: EditableModel, plan: Plan, layer: int) -> tuple[Values, float] | None:
        """What was optimised for the plan's facts at `layer` of the model as it is now, and the seconds it took then."""
        ...

    def keep(self, model: EditableModel, plan: Plan, layer: int, values: Values, seconds: float) -> None:
        """Keep what was just optimised."""
        ...


@dataclass
class _Work:
    """What the loop computes on the way: targets by the layer they are optimised at, keys by the layer they were measured
    at."""

    model: EditableModel
    plan: Plan
    metrics: Metrics
    progress: Progress
    values: dict[int, Values] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    records: dict[int, OptimisationRecord] = field(default_factory=dict)
    asked: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By changed layer: keys (F, N), and the residuals (D, N) that its change was to give at them."""
    store: ValueStore | None = None
    reused: float = 0.0
    """Seconds that values took which were found in the store."""

    def target(self, layer: int) -> Tensor:
        """Targets at `layer`, (D, N), optimised the first time they are asked for, on the model as it is edited then."""
        if layer not in self.values:
            self.values[layer] = self._optimised(layer)
        values = self.values[layer]
        self.records[layer] = OptimisationRecord(layer=layer, evaluations=values.evaluations, losses=values.losses)
        return values.targets_DN

    def _optimised(self, layer: int) -> Values:
        """Values at `layer` for the model as it is edited now: those of the store, or optimised, and stored."""
        plan, store = self.plan, self.store
        if store is not None and (found := store.recall(self.model, plan, layer)) is not None:
            self.reused += found[1]
            return found[0]
        started = time.monotonic()
        with stage(self.progress, f"optimising values at layer {layer}", len(plan.facts)) as advance:
            values = optimise_values(
                self.model, plan.facts, layer, plan.templates, plan.settings, plan.method.objective, progress=advance
            )
        if store is not None:
            store.keep(self.model, plan, layer, values, time.monotonic() - started)
        return values

    def least_squares(self, step: Step) -> Change:
        """R Q^T for one step: keys and gap measured on the model as it is edited now."""
        model, plan, method = self.model, self.plan, self.plan.method
        target_DN = self.target(step.aim)
        self.keys[step.layer] = keys_FN = fact_keys(model, plan.facts, step.layer, plan.templates)
        read_FN = fact_keys(model, plan.facts, step.layer, plan.templates[:1]) if method.reads_bare_prompt else None
        gap_DN = target_DN - fact_states(model, plan.facts, step.aim, method.objective.sites[0])
        names = tuple(fact.id for fact in plan.facts)
        gain_FN = self.metrics.by_layer[step.layer].gain(keys_FN, noise=method.noise, readout_FN=read_FN, names=names)
        self.asked[step.layer] = (keys_FN if read_FN is None else read_FN, step.share * gap_DN)
        return LowRank.of(step.share * gap_DN, gain_FN)

    def met(self, layer: int, change: Change) -> float | None:
        """What share of the residuals asked of a layer its change gives: sum <D k, r> / sum ||r||^2."""
        if layer not in self.asked:
            return None
        keys_FN, asked_DN = self.asked[layer]
        if isinstance(change, LowRank):
            given_DN = change.residual_DN @ (change.gain_FN.T @ keys_FN.to(change.gain_FN))
        else:
            given_DN = change.dense() @ keys_FN.to(change.dense())
        size = asked_DN.square().sum().item()
        return (given_DN.to(asked_DN) * asked_DN).sum().item() / size if size else None

    def measure(self) -> None:
        """Record what the weights as they are written now leave of each layer's targets."""
        if self.plan.method.fine_tuning:
            return
        site = self.plan.method.objective.sites[0]
        for layer, record in self.records.items():
            values = self.values[layer]
            asked_N = (values.targets_DN - values.initial_DN).norm(dim=0)
            left_N = (values.targets_DN - fact_states(self.model, self.plan.facts, layer, site).to(values.targets_DN)).norm(
                dim=0
            )
            shares = (left_N / asked_N).nan_to_num(0.0, posinf=0.0)
            update = {"remaining": _four_digits(shares), "asked": _four_digits(asked_N)}
            self.records[layer] = record.model_copy(update=update)

    def fine_tuned(self, layer: int) -> Change:
        """The change that training the weight makes."""
        plan = self.plan
        assert plan.method.fine_tuning is not None
        with stage(self.progress, f"training layer {layer}", plan.settings.ft_num_steps) as advance:
            tuned = fine_tune(self.model, plan.facts, layer, plan.method.fine_tuning, plan.settings, progress=advance)
        evaluations = (tuned.evaluations,) * len(plan.facts)
        self.records[layer] = OptimisationRecord(layer=layer, evaluations=evaluations, losses=tuned.losses)
        return Dense(tuned.change_DF)


@torch.inference_mode(mode=False)
def run_batch(
    model: EditableModel,
    plan: Plan,
    metrics: Metrics,
    progress: Progress = silent,
    values: Mapping[int, Values] | None = None,
    store: ValueStore | None = None,
) -> tuple[Patch, dict[int, Tensor]]:
    """One batch of a sequence, with what the batches before left in `metrics`: its patch, and its keys by layer.

    The model's weights are written on the way, and hold their original bits afterwards. `metrics` is only read: absorb the
    keys when the patch is kept. `values`, by layer, are those that were optimised for these facts already, with these settings
    and on this model as it is edited when they are needed; `store` holds those of other runs. The patch's seconds count what
    was found there with the time it took. A restraint at the end of the sequence is not applied here.
    """
    started = time.monotonic()
    method, steps = plan.method, plan.steps
    metrics.prepare(model, (step.layer for step in steps), progress)
    work = _Work(model, plan, metrics, progress, dict(values or {}), store=store)
    changes: dict[int, Change] = {}
    with model.restoring(step.layer for step in steps) as originals:
        for step in steps:
            change = work.fine_tuned(step.layer) if method.fine_tuning else work.least_squares(step)
            changes[step.layer] = _checked(change, step.layer)
            change.add_to(model.matrix(step.layer))
        if method.restraint and method.restraint.when == "batch":
            for layer, change in changes.items():
                weight_DF = model.structure.oriented(originals[layer])
                changes[layer] = _checked(method.restraint.restrain(change, weight_DF, plan.settings), layer)
                model.weight(layer).detach().copy_(originals[layer])
                changes[layer].add_to(model.matrix(layer))
        work.measure()
        if method.keeps_past and (method.restraint or list(changes) != sorted(changes)):
            # Otherwise no weight below a layer changed after its keys were measured, and they are the edited model's already.
            work.keys = {layer: fact_keys(model, plan.facts, layer, plan.templates) for layer in changes}
    return _patch(model, work, changes, time.monotonic() - started + work.reused), work.keys


def run_plan(
    model: EditableModel,
    plan: Plan,
    progress: Progress = silent,
    metrics: Metrics | None = None,
    values: Mapping[int, Values] | None = None,
    store: ValueStore | None = None,
) -> Patch:
    """Carry out a plan: a sequence of one batch, its end included. The model is left as it was.

    `metrics`, `values` and `store` are what is there already, as for :func:`run_batch`.
    """
    patch, _ = run_batch(model, plan, metrics or Metrics(plan), progress, values, store)
    weights = {name: model.matrix(record.layer) for name, record in patch.manifest.weights.items()}
    return restrain_sequence(patch, plan, weights)


def restrain_sequence(patch: Patch, plan: Plan, weights: Mapping[str, Tensor]) -> Patch:
    """The patch of a whole sequence, after the restraint that acts at its end, if the method has one.

    `weights` are those from before the sequence by name, d_model x d_ff.
    """
    restraint = plan.method.restraint
    if not patch.changes or not restraint or restraint.when != "sequence":
        return patch
    changes: dict[str, Change] = {}
    records: dict[str, WeightRecord] = {}
    for name, record in patch.manifest.weights.items():
        change = restraint.restrain(patch.changes[name], weights[name], plan.settings)
        changes[name] = _checked(change, record.layer)
        norm = change.norm()
        relative = _relative(norm, weights[name])
        rounding = _rounding(change, norm, weights[name], record.layer, plan)
        records[name] = record.model_copy(update={"norm": norm, "relative_norm": relative, "rounding": rounding})
    columns = "facts" if all(changes[name] is patch.changes[name] for name in changes) else "directions"
    return Patch(changes, patch.manifest.model_copy(update={"weights": records, "columns": columns}))


def _checked(change: Change, layer: int) -> Change:
    try:
        change.check()
    except ValueError as error:
        raise NumericsError(
            f"the change of layer {layer} is of no use ({error}); raise lambda or shrinkage, or load the model in a wider dtype"
        ) from error
    return change


def _relative(norm: float, weight_DF: Tensor) -> float:
    """||D|| / ||W||; 0 for a weight of zeros, beside which no change has a size."""
    size = wide(weight_DF).norm().item()
    return norm / size if size else 0.0


_ROUNDING = 0.1
"""Of a change, lost to the precision of its weight: from here on worth a warning."""


def _rounding(change: Change, norm: float, weight_DF: Tensor, layer: int, plan: Plan) -> float | None:
    """||rounded(W + D) - W - D|| / ||D|| for a half-precision weight. Warns when much of the change is lost."""
    if weight_DF.dtype not in (torch.float16, torch.bfloat16) or not norm:
        return None
    rounded_DF = weight_DF.clone()
    change.add_to(rounded_DF)
    if not all_finite(rounded_DF):
        raise NumericsError(
            f"the edited weight of layer {layer} does not fit {str(weight_DF.dtype).removeprefix('torch.')}; load the model in "
            "float32 (--dtype float32)"
        )
    lost = (rounded_DF.float() - weight_DF.float() - change.dense().to(weight_DF.device)).norm().item() / norm
    if lost > _ROUNDING:
        dtype = str(weight_DF.dtype).removeprefix("torch.")
        warnings.warn(RoundingWarning(layer=layer, amount=lost, origin=_origin(plan), dtype=dtype), stacklevel=5)
    return lost


def _origin(plan: Plan) -> str:
    """What a warning is about, for those who edit with several methods."""
    return f"{plan.method.name}, {plan.method.strategy.name}"


_UNMET = 0.5
"""Of what facts ask for, left open: from here on worth a warning. On SmolLM2-135M-Instruct 10 CounterFact records had ES
100 where up to 0.46 was left open at the last layer, 90 and 70 at 0.69 (BLUE) and 0.54 (even), 50 and 40 at 0.87 and
0.76."""


def _warn_unmet(plan: Plan, records: Iterable[OptimisationRecord]) -> None:
    """Warn where the written weights leave much of what was asked for open at the last layer aimed at.

    What a layer below leaves open is asked for again there.
    """
    measured = [(record.layer, share) for record in records if (share := record.left_open) is not None]
    if not measured:
        return
    layer, share = max(measured)
    if share > _UNMET:
        warning = UnmetWarning(layer=layer, amount=share, origin=_origin(plan), advice=_unmet_advice(plan))
        warnings.warn(warning, stacklevel=4)


def _unmet_advice(plan: Plan) -> str:
    """What makes more of the residuals come true, by settings that the method has."""
    uses = plan.method.uses
    if "L2" in uses:
        return f"lower L2 (it is {plan.settings.L2:g}), or raise nullspace_threshold"
    if "lambda" in uses:
        return f"lower lambda (it is {plan.settings.lambda_:g})"
    return "choose other layers, or fewer facts at a time"


def _four_digits(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{one:.4g}") for one in values.tolist())


def _advice(method: Method, *, null_space: bool) -> str:
    """What makes a method's changes smaller, by settings that it has."""
    if method.fine_tuning:
        return "lower norm_constraint or ft_lr"
    if null_space:
        return "lower nullspace_threshold, raise L2, or take second moments over more text"
    raised = " or ".join(name for name in ("shrinkage", "lambda") if name in method.uses)
    return f"{f'raise {raised}, or ' if raised else ''}take second moments over more text"


def _record(
    model: EditableModel, plan: Plan, layer: int, change: Change, metric: InverseMetric | None, met: float | None = None
) -> WeightRecord:
    norm = change.norm()
    relative = _relative(norm, model.matrix(layer))
    condition, rank = (metric.condition, metric.rank) if metric else (None, None)
    if relative > 1:
        advice = _advice(plan.method, null_space=rank is not None)
        warnings.warn(
            LargeChangeWarning(layer=layer, amount=relative, origin=_origin(plan), advice=advice, condition=condition),
            stacklevel=4,
        )
    return WeightRecord(
        layer=layer,
        before=model.weight_fingerprint(layer),
        norm=norm,
        relative_norm=relative,
        condition=condition,
        null_space_rank=rank,
        rounding=_rounding(change, norm, model.matrix(layer), layer, plan),
        met=None if met is None else float(f"{met:.4g}"),
    )


def _patch(model: EditableModel, work: _Work, changes: dict[int, Change], seconds: float) -> Patch:
    plan, names = work.plan, model.structure.weight_name
    used = plan.method.uses
    weights = {
        names(layer): _record(model, plan, layer, change, work.metrics.by_layer.get(layer), work.met(layer, change))
        for layer, change in changes.items()
    }
    _warn_unmet(plan, work.records.values())
    manifest = Manifest(
        model=str(getattr(model.model.config, "_name_or_path", "") or type(model.model).__name__),
        configuration=model.configuration_fingerprint(),
        method=plan.method.name,
        strategy=plan.method.strategy.name,
        layers=plan.layers,
        settings=plan.settings.recorded(used),
        templates=plan.templates,
        chat=model.text.chat,
        seed=plan.seed,
        corpus=plan.statistics.corpus.name if plan.statistics.corpus else None,
        facts=tuple(FactRecord(**asdict(fact)) for fact in plan.facts),
        batches=(len(plan.facts),),
        weights=weights,
        optimisation=tuple(work.records.values()),
        seconds=round(seconds, 3),
        versions={name: metadata.version(name) for name in ("bluedit", "torch", "transformers")},
    )
    return Patch({names(layer): change for layer, change in changes.items()}, manifest)
