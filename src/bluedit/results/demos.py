"""What `bluedit demo` prints with `--json`."""

from __future__ import annotations

from typing import Any

from bluedit.results.records import ProtocolTag, Record, Scores

__all__ = ["DemoResult", "RealDemoResult"]


class Measured(Record):
    """Scores, and what the model says after some prompts."""

    scores: Scores
    completions: list[str]


class MeasuredEdit(Measured):
    """The same after an edit: the changed layers, ||D|| / ||W|| of each, and the seconds of editing."""

    layers: list[int]
    relative_norms: list[float]
    seconds: float


class Completed(Record):
    """A prompt that was completed, with the objects before and after."""

    prompt: str
    old: str | None
    new: str


class DemoResult(Record):
    """`bluedit demo --json`: the model before, with the residual distributed (`even`), and with BLUE (`boundary`)."""

    model: str
    facts: int
    method: str
    protocol: ProtocolTag
    before: Measured
    even: MeasuredEdit
    settings: dict[str, Any]
    boundary: MeasuredEdit
    completed: list[Completed]
    seconds: float


class Said(Record):
    """Scores, and what the model says, by kind of prompt."""

    scores: Scores
    said: dict[str, list[str]]


class Asked(Record):
    """The prompts of a fact by kind, and its objects before and after."""

    fact: str
    paraphrase: str
    neighbour: str
    chat: str
    old: str | None
    new: str


class Reverted(Record):
    """Whether the model is what it was: its weights, and what it says."""

    fingerprint: bool
    said: bool


class RealDemoResult(Record):
    """`bluedit demo --real --json`."""

    model: str
    facts: int
    method: str
    strategy: str
    protocol: ProtocolTag
    before: Said
    after: Said
    asked: list[Asked]
    layers: list[int]
    relative_norms: list[float]
    settings: dict[str, Any]
    editing_seconds: float
    reverted: Reverted
    seconds: float
