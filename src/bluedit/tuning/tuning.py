"""Settings for a model that nobody has tuned: tried on held-out facts, every trial stored.

A trial edits all facts of the search, in batches that do not know of one another, and asks for what should have changed and
what should have stayed. The objective is S with every comparison counted by how clear it is, p / (p + p') in place of 1 for
p > p', with p and p' the geometric means over the tokens of what is wanted and of its rival: unlike S it still has a slope
where all edits fail, or all succeed. A change that outgrows its weight costs a point for every doubling beyond: the prompts
of a trial see little of what such a change does elsewhere. Whether what was found is better than the start is then measured
on facts that the search has not seen.

A tuning file is JSON, written after every trial: a search that was stopped resumes, and its trials can be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from bluedit.datasets.cases import Case
from bluedit.editing import EditOptions, prepare, run_plan
from bluedit.editors.base import Editor, Plan, Setup, Storable, ValueStore
from bluedit.editors.settings import Settings
from bluedit.errors import DatasetError, InputError, NumericsError, SettingsError
from bluedit.evaluation.scoring import Scores, compare, tally
from bluedit.models import EditableModel
from bluedit.models.editable import tensor_fingerprint
from bluedit.models.respondent import as_respondent
from bluedit.progress import Progress, silent
from bluedit.storage.files import writable_target
from bluedit.storage.locks import claimed
from bluedit.tuning.file import TUNING, Check, Trial, Tuning, read_tuning
from bluedit.tuning.held_out import HeldOut, Material, hold_out
from bluedit.tuning.search import Axis, Point, compass

__all__ = ["tune"]

_FAILED = -1e3
"""The objective where no edit came about: below all others."""


def tune(
    model: EditableModel,
    cases: Sequence[Case],
    *,
    vary: Sequence[str] | None = None,
    trials: int = 32,
    count: int = 100,
    batch_size: int | None = None,
    out: Path | None = None,
    replace: bool = False,
    on_trial: Callable[[Trial], object] | None = None,
    progress: Progress = silent,
    **options: Unpack[EditOptions],
) -> Tuning:
    """Search for the settings that a model is best edited with.

    **Arguments**

    - `cases`: requested edits, or facts that the model knows, which are then given other objects; see
      :func:`~bluedit.tuning.held_out.hold_out`.
    - `vary`: the settings to vary; when left out those of the prior (lambda and shrinkage, or L2 and the threshold of the null
      space), clamp and learning rate, but for those in `settings`.
    - `trials`: the maximum number, the start included.
    - `count`: at most this many facts are used, 60 % for the search and 40 % for validation.
    - `batch_size`: facts of one edit; all of a search's at once when left out. Batches do not know of one another.
    - `out`: the tuning file, written after every trial. A search that was stopped resumes; a complete one is read. With
      `replace`, the existing file is lost with the first trial.
    - `on_trial`: called with every trial of the search when it is done, those read from the file too.
    - `options`: as for :func:`bluedit.edit`. `settings` are where the search starts.

    **Returns** a :class:`Tuning`. Where the check gives a lower S than for the start, its settings are the start's. The model
    is left as it was.

    **Raises** subclasses of :class:`~bluedit.errors.InputError` for what the caller can fix, including facts that no trial
    edits, and :class:`~bluedit.errors.NumericsError` when no trial gives numbers.
    """
    setup = prepare(model, **options)
    method = setup.method
    fixed = options.get("settings")
    axes = _axes(method, vary, fixed if isinstance(fixed, Mapping) else {})
    if trials < 1:
        raise SettingsError(f"trials={trials} leaves nothing to try; a search needs about 20")
    if out is not None and out.is_dir():
        raise InputError(f"{out} is a folder, and a tuning file is one file; name it, as in {out / 'tuning.json'}")
    material = hold_out(model, cases, count=count, seed=setup.seed)
    size = batch_size or method.largest_batch or len(material.search)
    method.check_batch(size)
    # Cached in memory: every trial asks again.
    setup = method.prepare(model, setup, progress)
    search = _Search(model, setup, axes, material, size, trials, out, replace, on_trial, progress)
    with claimed(out) if out is not None else contextlib.nullcontext():
        return search.run()


def _axes(method: Editor, vary: Sequence[str] | None, fixed: Mapping[str, Any]) -> tuple[Axis, ...]:
    declared = method.settings.described()
    ranks = {name: declared[name].search.usual for name in method.uses if declared[name].search}  # type: ignore[union-attr]
    usual = sorted((name for name, rank in ranks.items() if rank), key=ranks.__getitem__)
    names = vary or [name for name in usual if name not in fixed]
    axes = tuple(Axis.named(name, method) for name in dict.fromkeys(names))
    if unused := [axis.name for axis in axes if axis.name not in method.uses]:
        raise SettingsError(f"{method.name} does not use the setting {unused[0]!r}; it uses {', '.join(method.uses)}")
    if not axes:
        raise SettingsError("every setting that would be varied is set; name what to vary with --vary, or set fewer")
    return axes


class _SpentError(Exception):
    """No trials are left."""


@dataclass
class _Search:
    """One search: its trials so far, by the settings they tried."""

    model: EditableModel
    setup: Setup
    axes: tuple[Axis, ...]
    material: Material
    size: int
    limit: int
    out: Path | None
    replace: bool
    on_trial: Callable[[Trial], object] | None
    progress: Progress
    known: dict[tuple[float, ...], Trial] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    moves: list[int] = field(default_factory=list)
    values: ValueStore = field(default_factory=lambda: _FirstValues())  # noqa: PLW0108 (defined below)

    def run(self) -> Tuning:
        """Go through the trials, those of the file first, check the outcome, and write the file."""
        if (earlier := self._claimed()) is not None and earlier.complete:
            for trial in earlier.trials:
                self._tell(trial)
            return earlier
        self.known = {tuple(trial.settings.values()): trial for trial in (earlier.trials if earlier else ())}
        self.progress("trials", 0, self.limit)
        with contextlib.suppress(_SpentError):
            compass(self.axes, self._objective, self._chosen)
        chosen = self._best()
        best = self.trials[chosen]
        if not best.scores["S"]["value"]:
            raise DatasetError(
                "tune",
                [
                    f"none of {len(self.trials)} trials edits these facts (S is 0 in the best): give facts in the model's own "
                    "language, check the layers, or start elsewhere with --vary NAME --set NAME=VALUE"
                ],
            )
        check, better = self._check(best)
        settings = {**self._start, **(best.settings if better else {})}
        tuning = self._tuning(settings).model_copy(update={"chosen": chosen, "check": check, "complete": True})
        if self.out:
            tuning.save(self.out)
        return tuning

    @cached_property
    def _start(self) -> dict[str, Any]:
        uses = self.setup.method.uses
        recorded = self.setup.settings.recorded(uses)
        return {name: recorded[name] for name in uses if name in recorded}

    @cached_property
    def _claim(self) -> str:
        """A hash of everything that a trial's outcome depends on."""
        setup, moments = self.setup, self.setup.statistics.precomputed
        text = json.dumps(
            {
                "model": self.model.fingerprint(),
                "chat": self.model.text.chat.identity if self.model.text.chat else None,
                "method": (setup.method.name, setup.method.strategy.name, setup.layers),
                "start": self._start,
                "vary": [axis.name for axis in self.axes],
                "templates": setup.templates,
                "moments": {layer: tensor_fingerprint(moment.matrix_FF) for layer, moment in moments.items()},
                "facts": [asdict(one) for part in (self.material.search, self.material.check) for one in part],
                "batch_size": self.size,
                "trials": self.limit,
            }
        )
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _claimed(self) -> Tuning | None:
        """What the file holds of this very search.

        **Raises** :class:`~bluedit.errors.InputError` when it holds something else.
        """
        if self.out is None or not self.out.exists():
            return None
        if self.replace:
            writable_target(self.out, replace=True, kind=TUNING)
            return None
        earlier = read_tuning(self.out)
        if earlier.claim != self._claim:
            raise InputError(
                f"{self.out} is of another search (other facts, weights or options); choose another file with --out, or use "
                "--force to discard it"
            )
        return earlier

    def _tuning(self, settings: dict[str, Any]) -> Tuning:
        setup = self.setup
        return Tuning(
            configuration=self.model.configuration_fingerprint(),
            claim=self._claim,
            method=setup.method.name,
            strategy=setup.method.strategy.name,
            layers=setup.layers,
            batch_size=self.size,
            settings=settings,
            varied=tuple(axis.name for axis in self.axes),
            trials=tuple(self.trials),
            moves=tuple(self.moves),
            facts={
                "search": len(self.material.search),
                "check": len(self.material.check),
                "left_out": dict(self.material.left_out),
            },
        )

    # -- trials ----------------------------------------------------------------------------------------------------

    def _settings(self, point: Point) -> dict[str, float] | None:
        """The varied settings at a point; None beyond an end."""
        values = {axis.name: axis.value(self._start[axis.name], halves) for axis, halves in zip(self.axes, point, strict=True)}
        return None if None in values.values() else values  # pyright: ignore[reportReturnType]

    def _number(self, settings: Mapping[str, float]) -> int | None:
        return next((number for number, trial in enumerate(self.trials) if trial.settings == settings), None)

    def _objective(self, point: Point) -> float | None:
        settings = self._settings(point)
        if settings is None:
            return None
        number = self._number(settings)
        if number is None:
            if len(self.trials) == self.limit:
                raise _SpentError
            number = len(self.trials)
            trial = self.known.get(tuple(settings.values())) or self._try(settings, self.material.search)[0]
            self.trials.append(trial)
            if self.out:
                self._tuning(self._start).save(self.out)
            self._tell(trial)
        objective = self.trials[number].objective
        return _FAILED if objective is None else objective

    def _chosen(self, point: Point) -> None:
        number = self._number(self._settings(point) or {})
        assert number is not None
        self.moves.append(number)

    def _tell(self, trial: Trial) -> None:
        self.progress("trials", 1, self.limit)
        if self.on_trial is not None:
            self.on_trial(trial)

    def _best(self) -> int:
        """The trial with the largest objective, also where that was not worth a step; of equals the smallest change."""
        done = [
            (trial.objective, -trial.relative_norm, number)
            for number, trial in enumerate(self.trials)
            if trial.objective is not None and trial.relative_norm is not None
        ]
        if not done:
            raise NumericsError(f"none of {len(self.trials)} trials made an edit; the first error: {self.trials[0].problem}")
        return max(done)[2]

    def _try(self, varied: Mapping[str, float], part: Sequence[HeldOut]) -> tuple[Trial, Scores | None]:
        """One trial on the facts of a part; its scores with their outcomes too, where it gave any."""
        started = time.monotonic()
        settings = self.setup.settings.override(varied)
        try:
            with warnings.catch_warnings():
                # A change that outgrows its weight is a column of the trail here.
                warnings.simplefilter("ignore")
                plain, clear, norm = self._edited(settings, part)
        except NumericsError as error:
            return Trial(settings=dict(varied), seconds=_since(started), problem=str(error)), None
        trial = Trial(
            settings=dict(varied),
            scores=plain.as_dict(),
            objective=round(clear["S"].value - math.log2(max(1.0, norm)), 4),
            relative_norm=float(f"{norm:.4g}"),
            seconds=_since(started),
        )
        return trial, plain

    def _edited(self, settings: Settings, part: Sequence[HeldOut]) -> tuple[Scores, Scores, float]:
        """The scores after editing a part, plain and by how clear each comparison is, and the largest relative change."""
        setup = dataclasses.replace(self.setup, settings=settings)
        state = setup.method.begin(setup)
        plain: list[tuple[str, dict[str, tuple[float, ...]]]] = []
        clear: list[tuple[str, dict[str, tuple[float, ...]]]] = []
        norm = 0.0
        for start in range(0, len(part), self.size):
            batch = part[start : start + self.size]
            planned = setup.plan(self.model, [one.fact for one in batch])
            patch = run_plan(self.model, planned, silent, state, self.values)
            norm = max([norm, *(record.relative_norm for record in patch.manifest.weights.values())])
            queries = [(one.prompt, answer) for held in batch for one in held.questions for answer in (one.wanted, one.other)]
            with patch.applied(self.model, check=False):
                answers = as_respondent(self.model).answer(queries)
            for held in batch:
                margins: dict[str, list[float]] = {}
                for one in held.questions:
                    margin = answers[one.prompt, one.wanted].log_prob - answers[one.prompt, one.other].log_prob
                    if math.isnan(margin):
                        raise NumericsError("the edited model gives no finite scores")
                    margins.setdefault(one.score, []).append(margin)
                plain.append((held.fact.id, {name: tuple(float(one > 0) for one in found) for name, found in margins.items()}))
                clear.append((held.fact.id, {name: tuple(map(_confidence, found)) for name, found in margins.items()}))
        return tally(plain), tally(clear), norm

    def _check(self, best: Trial) -> tuple[Check, bool]:
        """Start and outcome on facts that the search has not seen; whether the outcome holds there."""
        self.progress("validating on held-out facts", 0, None)
        first = self.trials[0].settings
        start, before = self._try(first, self.material.check)
        chosen, after = (start, before) if best.settings == first else self._try(best.settings, self.material.check)
        difference = compare(after, before, "S") if before and after else None
        check = Check(start=start, chosen=chosen, difference=difference.as_dict() if difference else None)
        return check, after is not None and (difference is None or difference.value >= 0)


@dataclass
class _FirstValues:
    """The values of an edit's first step, which lambda does not touch: optimised once for all trials that have the rest in
    common. Those of later steps depend on what the first one wrote."""

    known: dict[Any, Any] = field(default_factory=dict[Any, Any])

    def recall(self, model: EditableModel, plan: Plan, layer: int) -> tuple[Any, float] | None:
        del model
        found = self.known.get(self._key(plan, layer))
        return None if found is None else (found, 0.0)

    def keep(self, model: EditableModel, plan: Plan, layer: int, values: Storable, seconds: float) -> None:
        del model, seconds
        if (key := self._key(plan, layer)) is not None:
            self.known[key] = values

    def _key(self, plan: Plan, layer: int) -> Any:
        if layer != plan.steps[0].target_layer:
            return None
        return plan.facts, json.dumps(plan.method.value_identity(plan.settings), sort_keys=True)


def _confidence(margin: float) -> float:
    """p / (p + p') from log p - log p'."""
    return 1 / (1 + math.exp(-margin)) if margin > -700 else 0.0


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
