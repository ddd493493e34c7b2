"""`bluedit.edit`: facts in, an edit out, the model untouched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bluedit.editors.base import Editor, State, ValueStore
from bluedit.editors.plan import EditOptions, Facts, Plan, Setup, plan_edit, prepare
from bluedit.editors.settings import Settings
from bluedit.edits import Edit
from bluedit.facts import OnConflict
from bluedit.models import EditableModel
from bluedit.progress import Progress, silent
from bluedit.statistics import Statistics
from bluedit.strategies import Strategy

__all__ = ["EditOptions", "Facts", "Plan", "Progress", "Setup", "edit", "plan_edit", "prepare", "run_plan", "silent"]


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
