"""Every error bluedit raises on purpose, and the base of its warnings.

:class:`InputError` is for what the caller can fix (exit code 2 on the command line; also a `ValueError`). With exit code 1
go :class:`NumericsError`, for computations that cannot give a trustworthy result, and :class:`ResourceError`, for memory.
Each message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = [
    "BlueditError",
    "BlueditWarning",
    "DamagedFileError",
    "DatasetError",
    "FactError",
    "InputError",
    "LedgerError",
    "ModelError",
    "NotPassedError",
    "NumericsError",
    "PatchError",
    "RecipeError",
    "ResourceError",
    "SessionError",
    "SettingsError",
    "StatisticsError",
    "did_you_mean",
    "excerpt",
    "first_line",
    "shortened",
]


_SHOWN = 20
"""Problems of one file that a message tells; all are in `problems`."""


class BlueditError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line ends with."""

    exit_code = 1


class InputError(BlueditError, ValueError):
    """Something the caller supplied cannot be used."""

    exit_code = 2


class FactError(InputError):
    """A fact, or a set of facts, that cannot be edited as given."""


class DatasetError(InputError):
    """A file of facts or cases that cannot be read; carries one line per problem."""

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        name, more = shortened(source), len(self.problems) - _SHOWN
        lines = [f"{name}: {problem}" for problem in self.problems[:_SHOWN]]
        super().__init__("\n".join([*lines, f"{name}: and {more:,} more problems"] if more > 0 else lines))


class DamagedFileError(InputError):
    """A file of bluedit's own that cannot be read, or does not hold what was written to it.

    `source` is the file, `problem` what is wrong with it: `is missing`.
    """

    def __init__(self, source: Path, problem: str) -> None:
        self.source = source
        self.problem = problem
        super().__init__(f"{source} {problem}")


class ModelError(InputError):
    """A checkpoint that cannot be loaded or edited."""


class SettingsError(InputError):
    """An unknown method, strategy or setting, or a value out of range."""


class StatisticsError(InputError):
    """Second moments that are missing or belong to another model."""


class PatchError(InputError):
    """A patch that cannot be read, or does not fit the model it is applied to."""


class LedgerError(InputError):
    """A ledger that cannot be read, belongs to another model, or has no such version."""


class RecipeError(InputError):
    """A recipe that is missing or malformed, or whose results lie where another's should go."""


class SessionError(InputError):
    """Something a session cannot do in its state, or a saved session that cannot be resumed."""


class ResourceError(BlueditError, MemoryError):
    """Memory that does not suffice even for the smallest piece of the work."""


class NotPassedError(BlueditError):
    """An edit that was made and did more damage than was allowed."""


class NumericsError(BlueditError, ArithmeticError):
    """A linear system or an optimisation without a trustworthy result."""


class BlueditWarning(UserWarning):
    """Something worth knowing about a result that is given all the same.

    - `layer`: the layer it is about.
    - `amount`: how much of it there is, in the unit of the kind of warning.
    - `origin`: what the result is made with: the method and its strategy, "memit, even".
    - `advice`: what to do about it.
    """

    def __init__(self, message: str, *, layer: int, amount: float, origin: str, advice: str) -> None:
        super().__init__(message)
        self.layer = layer
        self.amount = amount
        self.origin = origin
        self.advice = advice

    @classmethod
    def together(cls, several: Sequence[BlueditWarning]) -> str:
        """What several warnings of this kind say in one sentence, the advice left out."""
        return "; ".join(dict.fromkeys(map(str, several)))


def did_you_mean(name: str, known: Iterable[str], *, what: str) -> str:
    """The message of a failed look-up: what was asked for, the nearest known name, and all of them."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name[:200].lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {excerpt(nearest[0])}?" if nearest else ""
    return f"unknown {what} {excerpt(name)}.{hint} Known: {shortened(', '.join(names), 2000)}."


def shortened(text: str, limit: int = 300) -> str:
    """A text as it is where it is short, else its two ends."""
    half = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"


def excerpt(value: object, limit: int = 80) -> str:
    """A value of the user's as a message shows it: in quotes, and where it is long its two ends and its length.

    Nobody can find what is wrong in a message of 200,000 characters.
    """
    if not isinstance(value, str):
        return shortened(repr(value), limit)
    return repr(value) if len(value) <= limit else f"{shortened(value, limit)!r} ({len(value):,} characters)"


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    text = f"KeyError: {error}" if type(error) is KeyError else str(error).strip()
    first, *more = text.splitlines() or [type(error).__name__]
    return shortened(f"{first} {more[0].strip()}" if more and first.endswith(":") else first, 1000)
