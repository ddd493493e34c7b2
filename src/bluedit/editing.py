"""`bluedit.edit`: facts in, an edit out, the model untouched; and what it takes, checked and filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bluedit.editors.base import Editor, Facts, Plan, Setup, State, ValueStore
from bluedit.editors.layers import choose_layers, unknown_layers
from bluedit.editors.presets import find_preset
from bluedit.editors.settings import Settings
from bluedit.edits import Edit
from bluedit.facts import OnConflict, check_on_conflict
from bluedit.methods import MEMIT, blue, find_method
from bluedit.models import EditableModel
from bluedit.models.inputs.templates import check_templates, context_templates
from bluedit.progress import Progress, silent
from bluedit.statistics import Statistics, read_corpus
from bluedit.strategies import Strategy, find_strategy

__all__ = ["EditOptions", "Facts", "Plan", "Progress", "Setup", "edit", "plan_edit", "prepare", "run_plan", "silent"]


class EditOptions(TypedDict, total=False):
    """What :func:`bluedit.edit` takes in addition to model and facts, all of it optional."""

    method: Editor | str | None
    strategy: Strategy | str | None
    layers: Sequence[int] | Literal["auto"] | None
    settings: Settings | Mapping[str, Any] | None
    corpus: str | Statistics | None
    templates: Sequence[str] | None
    seed: int
    on_conflict: OnConflict


def edit(
    model: EditableModel | PreTrainedModel,
    facts: Facts,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    method: Editor | str | None = None,
    strategy: Strategy | str | None = None,
    layers: Sequence[int] | Literal["auto"] | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    corpus: str | Statistics | None = None,
    templates: Sequence[str] | None = None,
    seed: int = 0,
    on_conflict: OnConflict = "error",
    progress: Progress = silent,
) -> Edit:
    """Write facts into a model, as an edit; the model itself is left as it was.

    **Arguments**

    - `model`: what :func:`~bluedit.models.load_model` gives, or any transformers causal language model with its `tokenizer`.
    - `facts`: :class:`~bluedit.facts.Fact` objects, or mappings with their fields; one, or many.
    - `method`: an editor, such as a :class:`~bluedit.editors.closed_form.method.Method`, or a name; `blue(MEMIT)` when left
      out.
    - `strategy`: replaces the method's strategy: a :class:`~bluedit.strategies.Strategy` or a name.
    - `layers`: the critical layers; may be left out for known models. `"auto"`: those that the stored trace of this very model
      shows (see :mod:`bluedit.tracing.choice`).
    - `settings`: a mapping of overrides such as `{"lambda": 5}`, or the method's settings as an object.
    - `corpus`: where second moments come from: `"text:FILE"`, or a :class:`~bluedit.statistics.Statistics`.
    - `templates`: context templates; generated from the model with `seed` when left out.
    - `seed`: of the templates; nothing else is random.
    - `on_conflict`: what becomes of facts that give one subject and relation, or one prompt, two targets: `"error"` refuses
      them, with `"last"` the later one wins, `"keep"` edits both.
    - `progress`: called as `progress(task, advance, total)` while work continues.

    **Returns** an :class:`~bluedit.edits.Edit`; methods that change weights give a :class:`~bluedit.edits.Patch`. An edit of no
    facts is the empty one. A method whose constraint acts at the end of a sequence (PRUNE) takes the one batch for the whole
    of it.

    **Raises** subclasses of :class:`~bluedit.errors.InputError` for what the caller can fix, and
    :class:`~bluedit.errors.NumericsError`; in each case the model is left as it was. Warns when a change outgrows its weight,
    and when the written weights leave much of what the facts ask for open.
    """
    editable = EditableModel.wrap(model, tokenizer)
    setup = prepare(
        editable,
        method=method,
        strategy=strategy,
        layers=layers,
        settings=settings,
        corpus=corpus,
        templates=templates,
        seed=seed,
        on_conflict=on_conflict,
    )
    return run_plan(editable, setup.plan(editable, facts), progress)


@torch.inference_mode(mode=False)
def run_plan(
    model: EditableModel,
    plan: Plan,
    progress: Progress = silent,
    state: State | None = None,
    store: ValueStore | None = None,
) -> Edit:
    """Carry out a plan: a sequence of one batch, its end included. The model is left as it was.

    `state` and `store` are those of earlier edits; see :meth:`~bluedit.editors.base.Editor.edit`.
    """
    method = plan.method
    done = method.edit(model, plan, state or method.begin(plan), progress, store).edit
    originals = {name: model.matrix(record.layer) for name, record in done.manifest.weights.items()}
    return method.finish(done, plan, originals) if method.ends_sequence else done


def prepare(
    model: EditableModel,
    *,
    method: Editor | str | None = None,
    strategy: Strategy | str | None = None,
    layers: Sequence[int] | Literal["auto"] | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    corpus: str | Statistics | None = None,
    templates: Sequence[str] | None = None,
    seed: int = 0,
    on_conflict: OnConflict = "error",
) -> Setup:
    """Check the options of an edit and fill in what was left out; see :func:`bluedit.edit`. Computes nothing expensive."""
    chosen = blue(MEMIT) if method is None else find_method(method)
    if strategy is not None:
        chosen = chosen.with_strategy(find_strategy(strategy))
    preset = find_preset(model.model.config)
    if layers == "auto":
        from bluedit.editors.layer_cache import recall

        fixed = chosen.strategy.fixed_layers
        layers = recall(model).layers_for(chosen.strategy) if fixed is None else fixed
    choice = choose_layers(chosen, model.structure, preset, layers)
    if choice is None:
        raise unknown_layers(chosen, model.structure)
    if isinstance(settings, Settings):
        settings = settings if type(settings) is type(chosen.settings) else chosen.override(settings.as_dict())
    else:
        known = preset.settings_for(chosen.name, chosen.strategy.name) if preset else {}
        settings = chosen.override(known, settings or {})
    if not isinstance(corpus, Statistics):
        name = corpus or (preset.corpus if preset else None)
        corpus = Statistics(read_corpus(name) if name else None)
    return Setup(
        method=chosen,
        layers=choice.layers,
        settings=settings,
        statistics=corpus,
        templates=check_templates(templates) if templates is not None else context_templates(model, seed),
        seed=seed,
        on_conflict=check_on_conflict(on_conflict),
    )


def plan_edit(model: EditableModel, facts: Facts, **options: Unpack[EditOptions]) -> Plan:
    """The plan of one edit; see :func:`prepare` and :meth:`Setup.plan`."""
    return prepare(model, **options).plan(model, facts)
