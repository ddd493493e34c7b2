"""What an export is asked before and after: cases that score it, and the patch's own facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bluedit.cli.console import Bars
    from bluedit.datasets import Case
    from bluedit.edits import Edit
    from bluedit.models import EditableModel

__all__ = ["Asked", "read_asked"]


@dataclass
class Asked:
    """Questions, and the answers so far.

    - `dataset`, `cases`: what scores come from; `verify`: whether the patch's facts are asked for.
    - `scores`: by `unedited`, `patched`, `exported`; `held`: the ids of the facts that each of them answers with its target.
    """

    dataset: str | None
    cases: Sequence[Case]
    verify: bool
    scores: dict[str, Any] = field(default_factory=dict[str, Any])
    held: dict[str, set[str]] = field(default_factory=dict[str, "set[str]"])

    @property
    def anything(self) -> bool:
        return bool(self.cases) or self.verify

    def ask(self, label: str, model: EditableModel, edit: Edit, bars: Bars) -> None:
        """Put all questions to a model as it is now."""
        from bluedit.datasets import Case
        from bluedit.evaluation import score_cases

        def counted(task: str) -> Callable[[int, int], None]:
            done_before = 0

            def report(done: int, total: int) -> None:
                nonlocal done_before
                bars(task, done - done_before, total)
                done_before = done

            return report

        if self.cases:
            self.scores[label] = score_cases(model, self.cases, progress=counted(f"scoring, {label}")).as_dict()
        if self.verify:
            facts = [Case(fact=fact) for fact in edit.facts]
            answers = score_cases(model, facts, progress=counted(f"asking for the facts, {label}"))
            self.held[label] = {name for name, outcomes in answers.cases if all(outcomes["EA"])}

    def not_held(self, edit: Edit) -> list[str] | None:
        """The ids of facts that the export does not answer with their target; None where it was not asked."""
        if "exported" not in self.held:
            return None
        return [fact.id for fact in edit.facts if fact.id not in self.held["exported"]]


def read_asked(dataset: str | None, limit: int | None, verify: bool) -> Asked:
    """The questions of `--dataset` and `--verify`, read before anything is loaded."""
    from bluedit.datasets import read_dataset

    return Asked(dataset, read_dataset(dataset, limit) if dataset else (), verify)
