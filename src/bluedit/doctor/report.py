"""What `bluedit doctor` reports: the checks of a model, each with its verdict, and all of them together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Check", "Examination", "Status"]

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Check:
    """One thing looked at. A problem stands in the way of editing; a warning says what is missing or will be slow.

    `message` names the fix where there is something to fix; `details` are the same facts for machines.
    """

    name: str
    status: Status
    message: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Examination:
    """All checks of one model, in the order they were made."""

    model: str
    checks: tuple[Check, ...]

    @property
    def editable(self) -> bool:
        """Whether nothing stands in the way."""
        return all(check.status != "problem" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """The document that `bluedit doctor --json` prints."""
        return {"model": self.model, "editable": self.editable, "checks": [asdict(check) for check in self.checks]}
