"""What a command did, for tests of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from bluedit.results import Record

FAST = ("--layers", "1,2", "--set", "v_num_grad_steps=2", "--set", "shrinkage=0.1", "--set", "lambda=5")


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as the one JSON document that it has to be."""
        assert self.code == 0, self.stderr
        document = json.loads(self.stdout)
        assert isinstance(document, dict)
        return document


Run = Callable[..., Outcome]


def undocumented(value: Any, place: str = "") -> list[str]:
    """The keys of a record, and of those in it, that no record lists."""
    if isinstance(value, Record):
        extra = () if "__pydantic_extra__" in type(value).__annotations__ else value.model_extra or ()
        inner = {name: getattr(value, name) for name in type(value).model_fields}
        return [f"{place}.{name}" for name in extra] + undocumented(inner, place)
    if isinstance(value, dict):
        return [one for name, item in cast("dict[str, Any]", value).items() for one in undocumented(item, f"{place}.{name}")]
    return [one for item in value for one in undocumented(item, f"{place}[]")] if isinstance(value, list) else []
