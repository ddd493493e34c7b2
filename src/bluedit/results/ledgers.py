"""What `bluedit log`, and the commands that work with the facts of patches, print with `--json`."""

from __future__ import annotations

from typing import Any

from bluedit.results.edits import EditedFact
from bluedit.results.records import Record

__all__ = ["LogResult", "PatchDiffResult", "PatchFactsResult", "VerifyResult"]


class WeightDistance(Record):
    """The changes A and B of one weight: ||A||, ||B||, ||A - B||, and the cosine between them."""

    first: float
    second: float
    distance: float
    cosine: float


class Retargeted(Record):
    """One question with two answers."""

    first: EditedFact
    second: EditedFact


class PatchDiffResult(Record):
    """`bluedit patch diff --json`.

    - `only_first`, `only_second`: facts that the other one has in no form; `both`: how many are in both.
    - `retargeted`: facts that ask the same of one subject and give it different targets.
    - `options`: by name what the patches were made with, first and second, where that differs.
    - `weights`: by name how far apart the changes are.
    """

    first: str
    second: str
    both: int
    only_first: list[EditedFact]
    only_second: list[EditedFact]
    retargeted: list[Retargeted]
    options: dict[str, tuple[Any, Any]]
    weights: dict[str, WeightDistance]


class PatchFactsResult(Record):
    """`bluedit patch drop --json`, `bluedit patch merge --json`: the new patch, its facts, and the ids that were dropped."""

    patch: str
    facts: list[EditedFact]
    dropped: list[str]
    seconds: float


class FactVerdict(Record):
    """One fact: whether its whole target is the greedy answer; else how the model continues the prompt.

    - `log_prob`: mean log-probability of a target token, in nats.
    """

    id: str
    prompt: str
    target: str
    holds: bool
    log_prob: float
    says: str | None = None


class VerifyResult(Record):
    """`bluedit patch verify --json`: every fact, and how many hold. The exit code is 1 where one does not."""

    model: str
    patch: str | None
    facts: list[FactVerdict]
    holding: int


class LogVersion(Record):
    """A version: the one it was made from, what was done, its edits in order by their digests, and how many facts they hold."""

    number: int
    parent: int | None
    operation: str
    edits: list[str]
    facts: int
    time: str
    note: str = ""


class LogMove(Record):
    """A move of the head, from version `start` to version `end`; `after`: the newest version there was then."""

    operation: str
    start: int
    end: int
    after: int
    time: str


class LogResult(Record):
    """What the commands of `bluedit log` print, but `verify`, with `--json`: the ledger as it is afterwards.

    - `head`: the version that the model has.
    - `under_way`: the version from which a sequence was begun and not finished.
    """

    ledger: str
    model: str
    dtype: str
    head: int
    versions: list[LogVersion]
    moves: list[LogMove]
    under_way: int | None = None
