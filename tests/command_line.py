"""What a command did, for tests of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
