"""How long the rest of an experiment will take, from the runs that are finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Clock", "duration"]

Key = tuple[str, str]
"""A cell and one of its runs, by name."""


@dataclass
class Clock:
    """Counts runs, and estimates the seconds that the others take.

    A run is taken to need as much per fact as the mean of the finished runs of its name (the same method and strategy,
    elsewhere in the matrix), or of all finished runs where there is none of its name.

    - `facts`: by cell and run, how many facts it edits: the weight that it is given.
    - `jobs`: how many runs are under way at a time.
    - `now`: gives seconds.
    """

    facts: Mapping[Key, int]
    jobs: int = 1
    now: Callable[[], float] = time.monotonic
    _seconds: dict[Key, float] = field(default_factory=dict[Key, float])
    _begun: dict[Key, float] = field(default_factory=dict[Key, float])
    _failed: set[Key] = field(default_factory=set[Key])

    def tell(self, event: str, cell: str, run: str, seconds: float) -> None:
        """What a :data:`~bluedit.experiments.runner.Watch` is told of a cell's run."""
        key = (cell, run)
        if event == "begun":
            self._begun[key] = self.now()
        elif event == "failed":
            self._failed.add(key)
        else:
            self._seconds[key] = seconds

    def give_up(self, cell: str) -> None:
        """A cell failed as a whole: none of its other runs is still to come."""
        self._failed |= {key for key in self.facts if key[0] == cell and key not in self._seconds}

    @property
    def total(self) -> int:
        """All runs."""
        return len(self.facts)

    @property
    def over(self) -> int:
        """Runs that are done or failed."""
        return len(self._seconds.keys() | self._failed)

    @property
    def left(self) -> float | None:
        """Seconds until all is done; None as long as no run is finished."""
        if not self._seconds:
            return None
        open_runs = [key for key in self.facts if key not in self._seconds and key not in self._failed]
        expected = [max(0.0, self._estimate(key) - self._under_way(key)) for key in open_runs]
        return max(sum(expected) / self.jobs, max(expected, default=0.0)) if expected else 0.0

    def _under_way(self, key: Key) -> float:
        return self.now() - self._begun[key] if key in self._begun else 0.0

    def _estimate(self, key: Key) -> float:
        alike = [one for one in self._seconds if one[1] == key[1]] or list(self._seconds)
        facts = sum(self.facts[one] for one in alike)
        return self.facts[key] * sum(self._seconds[one] for one in alike) / max(1, facts)


def duration(seconds: float) -> str:
    """Seconds for people: `about 1 h 20 min`."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {minutes // 60} h {minutes % 60} min"
