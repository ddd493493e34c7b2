"""Tracing a file of facts: who is known, the traces of those who are, their averages, and a folder that stores it all.

A trace's folder:

| path | holds |
|---|---|
| `trace.json` | what the trace depends on; once it is complete, also the facts, averages and the chosen layers |
| `traced.jsonl` | while the trace is under way: a line for every fact that is done, so that a killed trace resumes |
| `restored.safetensors` | per component p*(i, l) of all facts, one below the other, (tokens, L) float64 |

Shapes: N facts, T tokens of a prompt, L layers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from bluedit import renamed
from bluedit.datasets.cases import Case
from bluedit.errors import DamagedFileError, DatasetError, FactError, InputError, SettingsError, excerpt
from bluedit.evaluation.intervals import Estimate, bootstrap
from bluedit.models import EditableModel
from bluedit.models.editable import Component
from bluedit.models.likelihood import answer_queries
from bluedit.storage.documents import read_document, write_document
from bluedit.storage.files import OutputKind, cache_folder, contents
from bluedit.storage.resumable import Journal, earlier_work, workplace
from bluedit.storage.tensors import read_tensors, write_tensors
from bluedit.tracing.restoring import FactTrace, Question, TraceSettings, trace_fact

__all__ = ["GROUPS", "LAST_SUBJECT", "TRACE_MARKER", "Trace", "groups", "trace_cases"]

LAST_SUBJECT = "last subject token"
GROUPS = (
    "first subject token",
    "middle subject tokens",
    LAST_SUBJECT,
    "first token after",
    "further tokens",
    "last token",
)
"""The parts of a prompt that are averaged over, as in Meng et al. 2022a, figure 2."""

TRACE_MARKER = "trace.json"
"""The file that shows a folder to be a trace's."""
_UNDER_WAY = "traced.jsonl"
_TENSORS = "restored.safetensors"
_WRITTEN = re.compile(r"trace\.json|traced\.jsonl|restored\.safetensors|(average|layers|fact-\d+)\.png")
_FORMAT = 1
_SHOWN = 5
"""Facts that cannot be traced, and are named where none can."""


def groups(length: int, subject: range) -> dict[str, range]:
    """The tokens of each of :data:`GROUPS` in a prompt of `length` tokens. Each token is in one group; groups may be empty.

    The prompt's last token is that even where it is the subject's: what is restored there is the answer itself. A subject of
    one token has its last token only.
    """
    last = length - 1
    end = min(subject.stop, last)
    after = range(subject.stop, last)
    return {
        "first subject token": range(subject.start, min(subject.start + 1, subject.stop - 1)),
        "middle subject tokens": range(subject.start + 1, max(subject.start + 1, subject.stop - 1)),
        LAST_SUBJECT: range(subject.stop - 1, end),
        "first token after": after[:1],
        "further tokens": after[1:],
        "last token": range(last, length),
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """The traces of all facts that the model knows.

    - `depth`: the model's number of layers, L; `model`: its fingerprint.
    - `deviation`: the standard deviation of the subjects' embeddings, which the settings' `noise` counts.
    - `facts`: the known facts' traces, in the file's order.
    - `unknown`: ids of facts that the model does not know, left out.
    - `refused`: ids of facts that cannot be traced, and why.
    """

    settings: TraceSettings
    model: str
    depth: int
    deviation: float
    facts: tuple[FactTrace, ...]
    unknown: tuple[str, ...] = ()
    refused: Mapping[str, str]

    def effects(self, component: Component, group: str = LAST_SUBJECT) -> np.ndarray:
        """Indirect effects of the facts that have tokens in the group, means over those, (N, L)."""
        if component not in self.settings.components:
            raise SettingsError(f"component {component!r} was not traced; there is {', '.join(self.settings.components)}")
        rows = [
            fact.effects(component)[tokens.start : tokens.stop].mean(0)
            for fact in self.facts
            if (tokens := groups(len(fact.tokens), fact.subject)[group])
        ]
        return np.array(rows).reshape(-1, self.depth)

    def average(self, component: Component, group: str = LAST_SUBJECT) -> tuple[Estimate, ...]:
        """The average indirect effect at each layer, in percentage points, with its 95 % bootstrap interval over facts.

        Empty where no fact has a token in the group.
        """
        effects_NL = self.effects(component, group)
        if not len(effects_NL):
            return ()
        return tuple(
            bootstrap(len(column), lambda chosen, column=column: float(column[chosen].mean())) for column in effects_NL.T
        )

    def heat_map(self, component: Component) -> np.ndarray:
        """Average indirect effects by group and layer, (groups, L), as probabilities; nan for groups without tokens."""
        return np.array(
            [e.mean(0) if len(e := self.effects(component, group)) else np.full(self.depth, np.nan) for group in GROUPS]
        )

    def total(self) -> Estimate | None:
        """The average total effect p - p*, in percentage points."""
        values = np.array([fact.clean - fact.corrupted for fact in self.facts])
        return bootstrap(len(values), lambda chosen: float(values[chosen].mean())) if len(values) else None

    def summary(self) -> dict[str, Any]:
        """Averages and counts, for JSON. Effects are in percentage points; the last subject token's have intervals."""
        total = self.total()
        return {
            "model_fingerprint": self.model,
            "depth": self.depth,
            "settings": self.settings.as_dict(),
            "deviation": self.deviation,
            "known": len(self.facts),
            "unknown": len(self.unknown),
            "refused": dict(self.refused),
            "total_effect": total.as_dict() if total else None,
            "at_last_subject_token": {
                component: [estimate.as_dict() for estimate in self.average(component)]
                for component in self.settings.components
            },
            "average": {
                component: {
                    group: None if np.isnan(row).any() else (100 * row).round(3).tolist()
                    for group, row in zip(GROUPS, self.heat_map(component), strict=True)
                }
                for component in self.settings.components
            },
        }

    def save(self, folder: Path, more: Mapping[str, Any] | None = None) -> None:
        """Write the trace to its folder; `more` is added to `trace.json`. The file that says it is complete comes last."""
        folder.mkdir(parents=True, exist_ok=True)
        depth = self.depth
        tensors = {
            component: np.concatenate([fact.restored[component] for fact in self.facts] or [np.zeros((0, depth))])
            for component in self.settings.components
        }
        digest = write_tensors(
            folder / _TENSORS, {component: torch.from_numpy(values) for component, values in tensors.items()}
        )
        document = {
            "format": _FORMAT,
            "complete": True,
            "restored": digest,
            **self.summary(),
            "unknown_facts": list(self.unknown),
            "facts": [fact.as_dict() for fact in self.facts],
            **(more or {}),
        }
        write_document(folder / TRACE_MARKER, document)
        Journal(folder / _UNDER_WAY).remove()

    @classmethod
    def load(cls, folder: Path) -> Trace:
        """The trace in a folder.

        **Raises** :class:`~bluedit.errors.InputError` when there is none, or none that is complete.
        """
        document = _read(folder / TRACE_MARKER)
        if not document.get("complete"):
            raise InputError(f"the trace in {folder} is not complete; run `bluedit trace` with --out {folder} again")
        try:
            stored = read_tensors(folder / _TENSORS)
            if document.get("restored") != stored.digest:
                raise DamagedFileError(folder / _TENSORS, "is another file, put in its place")
            tensors = {component: tensor.numpy() for component, tensor in stored.tensors.items()}
            settings = document["settings"]
            facts: list[FactTrace] = []
            start = 0
            for record in document["facts"]:
                stop = start + len(record["tokens"])
                restored = {component: tensors[component][start:stop] for component in settings["components"]}
                facts.append(FactTrace.of(record, restored))
                start = stop
            return cls(
                settings=TraceSettings(**cast("dict[str, Any]", settings)),
                model=document["model_fingerprint"],
                depth=document["depth"],
                deviation=document["deviation"],
                facts=tuple(facts),
                unknown=tuple(document["unknown_facts"]),
                refused=document["refused"],
            )
        except DamagedFileError as error:
            raise InputError(f"{error}; remove its folder and trace again") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the trace in {folder} cannot be read ({error}); remove the folder and trace again") from error


def trace_cases(
    model: EditableModel,
    cases: Sequence[Case],
    settings: TraceSettings | None = None,
    folder: Path | None = None,
    *,
    cached: bool = False,
    replace: bool = False,
    progress: Callable[[str, int, int | None], object] = lambda *_: None,
) -> Trace:
    """Trace the facts that a model knows.

    A case's object is its true target where it has one, else its fact's target. It is known when it is the model's greedy
    answer, all tokens of it; facts that are not known are counted and left out.

    **Arguments**

    - `folder`: where every fact is stored as soon as it is done, and the whole trace at the end. A killed trace resumes
      there, to the same bits; a complete one is read.
    - `cached`: keep the trace in a folder of its own in the user's cache.
    - `replace`: lose an earlier trace in the folder, of whatever.
    - `progress`: called as `progress(task, advance, total)`.

    **Returns** a :class:`Trace`. The model is left as it was.

    **Raises** :class:`~bluedit.errors.DatasetError` when no fact is known, :class:`~bluedit.errors.InputError` when the folder
    holds another trace.
    """
    settings = settings or TraceSettings()
    placed, refused = _questions(model, cases)
    fingerprint = model.fingerprint()
    claim = {
        "format": _FORMAT,
        "model_fingerprint": fingerprint,
        "settings": settings.as_dict(),
        "questions": hashlib.sha256(json.dumps([asdict(one) for one in placed], default=str).encode()).hexdigest()[:32],
    }
    if cached:
        # Hashed by the names that settings had, so that earlier traces are found.
        hashed = claim | {
            "settings": renamed.present_names(settings.as_dict(), {now: old for old, now in renamed.TRACE.items()})
        }
        folder = cache_folder() / "traces" / hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:32]
    with workplace(folder, TRACE, replace=replace):
        return _trace(model, placed, refused, settings, folder, claim, progress)


def _trace(
    model: EditableModel,
    placed: Sequence[Question],
    refused: dict[str, str],
    settings: TraceSettings,
    folder: Path | None,
    claim: Mapping[str, Any],
    progress: Callable[[str, int, int | None], object],
) -> Trace:
    """The trace, from where the folder has it."""
    if folder is not None and _claimed(folder, claim):
        return Trace.load(folder)
    answers = answer_queries(model, [(one.prompt, one.object) for one in placed])
    known = [one for one in placed if all(answers[one.prompt, one.object].correct)]
    if not known:
        raise DatasetError(
            "trace",
            [
                f"the model knows none of the {len(placed) + len(refused)} facts (its greedy answer is another object), so "
                "there is nothing to trace; give facts that it was trained on",
                *(f"fact {excerpt(name)} cannot be traced: {reason}" for name, reason in list(refused.items())[:_SHOWN]),
            ],
        )
    deviation = _deviation(model, placed)
    if folder is not None:
        write_document(folder / TRACE_MARKER, {"complete": False, "claim": claim})
    journal = Journal(folder / _UNDER_WAY) if folder is not None else None
    done = list(_done(journal, settings)) if journal is not None else []
    progress("tracing", len(done), len(known))
    for question in known[len(done) :]:
        fact = trace_fact(model, question, settings, deviation)
        done.append(fact)
        if journal is not None:
            journal.append(
                fact.as_dict() | {"restored": {component: values.tolist() for component, values in fact.restored.items()}}
            )
        progress("tracing", 1, len(known))
    trace = Trace(
        settings=settings,
        model=claim["model_fingerprint"],
        depth=model.structure.depth,
        deviation=deviation,
        facts=tuple(done),
        unknown=tuple(one.id for one in placed if not all(answers[one.prompt, one.object].correct)),
        refused=refused,
    )
    if folder is not None:
        trace.save(folder, {"claim": claim})
    return trace


def _questions(model: EditableModel, cases: Sequence[Case]) -> tuple[list[Question], dict[str, str]]:
    """The cases as questions, and by id why some cannot be asked."""
    questions: list[Question] = []
    refused: dict[str, str] = {}
    for position, case in enumerate(cases):
        fact, object = case.fact, case.true_target or case.fact.target
        name = fact.id or str(position)
        text, start, end = fact.subject_span()
        try:
            ids, subject = model.text.subject_tokens(text, start, end)
            answer = model.text.target(object, text)
        except FactError as error:
            refused[name] = str(error)
            continue
        if len(ids) + len(answer) - 1 > model.context_length:
            refused[name] = f"takes {len(ids)} tokens and {len(answer)} of its object; the model takes {model.context_length}"
            continue
        questions.append(
            Question(id=name, prompt=text, subject_text=fact.subject, object=object, ids=ids, subject=subject, answer=answer[0])
        )
    return questions, refused


@torch.no_grad()
def _deviation(model: EditableModel, questions: Sequence[Question]) -> float:
    """The standard deviation of the embeddings of all subjects' tokens, over all entries."""
    ids = [token for one in questions for token in one.ids[one.subject.start : one.subject.stop]]
    embeddings = model.model.get_input_embeddings()(torch.tensor([ids], device=model.device))
    return float(embeddings.double().std())


# -- the folder ----------------------------------------------------------------------------------------------------


def _claimed(folder: Path, claim: Mapping[str, Any]) -> bool:
    """Whether the folder holds this very trace, complete.

    **Raises** :class:`~bluedit.errors.InputError` when it holds something else.
    """
    other = InputError(
        f"{folder} holds a trace of another model, of other facts, or with other settings; choose another folder with "
        "--out, or use --force to discard it"
    )
    earlier = earlier_work(folder / TRACE_MARKER, claim, read=_read, claim=lambda document: document.get("claim"), error=other)
    return earlier is not None and bool(earlier.get("complete"))


def _done(journal: Journal, settings: TraceSettings) -> Iterator[FactTrace]:
    """The facts that were traced before the trace was stopped."""
    try:
        for record in journal.records():
            yield FactTrace.of(
                record, {component: np.array(record["restored"][component]) for component in settings.components}
            )
    except DamagedFileError as error:
        raise InputError(f"{error}; remove its folder and trace again") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{journal.path} cannot be read ({error}); remove its folder and trace again") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError(f"there is no trace in {path.parent}: {path.name} is missing")
    try:
        document = read_document(path)
    except DamagedFileError as error:
        raise InputError(f"{error}; remove its folder and trace again") from error
    for place in (document, document.get("claim")):
        if isinstance(place, dict) and isinstance(settings := place.get("settings"), dict):
            place["settings"] = renamed.present_names(settings, renamed.TRACE)
    return document


def _owned(path: Path) -> list[str] | None:
    try:
        document = read_document(path / TRACE_MARKER)
    except DamagedFileError:
        return None
    return [name for name in contents(path) if _WRITTEN.fullmatch(name)] if "claim" in document else None


TRACE = OutputKind("a trace that bluedit wrote", _owned)
"""What is replaced by a trace where that is asked for."""
