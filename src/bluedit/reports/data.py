"""What a report is made of: experiments side by side, their failed edits, and differences between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ANALYSES", "AnalysisView", "CellView", "Difference", "FailedEdit", "ReportData", "failed_edits"]


@dataclass(frozen=True)
class FailedEdit:
    """A case whose edit did not take hold.

    - `why`: `preferred` where the model likes another object better (ES), or lacks a token of the answer (zsRE); `said` where
      it prefers the new object, and does not say it (EA).
    - `says`: how it continues the prompt now, and `said_before` did; None where no record was written.
    """

    run: str
    case: str
    batch: int | None
    prompt: str
    target: str
    true_target: str | None
    why: str
    says: str | None
    said_before: str | None
    outcomes: Mapping[str, float]


@dataclass(frozen=True)
class CellView:
    """One experiment: its folder, what it is called, what `table.json` holds, and its failed edits.

    `table` is None where it did not come to an end, and `problem` says why.
    """

    folder: str
    label: str
    table: Mapping[str, Any] | None
    failures: Sequence[FailedEdit] = ()
    cases: int = 0
    problem: str | None = None

    @property
    def runs(self) -> Sequence[Mapping[str, Any]]:
        """The entries of `table.json`."""
        return self.table["runs"] if self.table else ()


@dataclass(frozen=True)
class AnalysisView:
    """An analysis that the recipe asked for: its folder's name, what it shows, and its figure."""

    name: str
    caption: str
    svg: str


ANALYSES = {
    "steps": "Table 1: optimisation steps per layer, when every critical layer gets a residual of its own.",
    "contribution": "Figure 2: how much adding a computed or a distributed residual raises the target's probability, by layer.",
    "cosine": "Figure 3: the cosine of computed and distributed residuals, by layer.",
    "single-layer": "Figures 4 and 8: scores after editing one layer alone, with its computed and its distributed residual.",
    "gap": "Figure 5: the distance between each layer's computed residual and the last layer's.",
    "hidden-states": "Figures 7, 9 and 10: hidden states of other prompts before and after an edit (t-SNE).",
    "bounds": "Theorem 4.1 and lemma 4.2: the weight-shift error and its bound.",
    "pairs": "BLUE at all pairs of layers.",
    "tables": "Tables 2 to 5: by how many points BLUE is above each method's own strategy, with 95 % intervals.",
}
"""What the analyses show, by name."""


@dataclass(frozen=True)
class Difference:
    """A run against the one of the same name in another experiment: by how many points it is above, paired over `n` cases."""

    label: str
    one: str
    other: str
    scores: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class ReportData:
    """All that a report shows."""

    title: str
    cells: Sequence[CellView]
    recipes: Mapping[str, Mapping[str, Any]]
    """By folder the recipe as it was written."""
    versions: Mapping[str, str]
    differences: Sequence[Difference] = field(default_factory=tuple[Difference, ...])
    analyses: Sequence[AnalysisView] = field(default_factory=tuple[AnalysisView, ...])

    @property
    def finished(self) -> list[CellView]:
        """The cells with results."""
        return [cell for cell in self.cells if cell.table is not None]


def failed_edits(run: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[FailedEdit]:
    """The failed edits among the records of a run (`records.jsonl`)."""
    found: list[FailedEdit] = []
    for record in records:
        outcomes = {name: sum(values) / len(values) for name, values in record["after"]["outcomes"].items() if values}
        why = "preferred" if outcomes.get("ES", 1.0) < 1 else "said" if outcomes.get("EA", 1.0) < 1 else None
        if why:
            failed = FailedEdit(
                run=run["label"],
                case=record["id"],
                batch=record["batch"],
                prompt=record["prompt"],
                target=record["target"],
                true_target=record["true_target"],
                why=why,
                says=record["after"].get("says"),
                said_before=record["before"].get("says"),
                outcomes=outcomes,
            )
            found.append(failed)
    return found
