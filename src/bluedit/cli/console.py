"""What commands say, and where: results on standard output, progress and commentary on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Generator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

__all__ = ["Bars", "bars", "emit", "say", "score_table", "show"]

_stderr = Console(stderr=True, highlight=False)
_stdout = Console(highlight=False)


def emit(document: Mapping[str, Any]) -> None:
    """Print one JSON document, the command's whole output."""
    # Redirected output may be in a code page that lacks the facts' letters; JSON can do without them.
    unicode = (sys.stdout.encoding or "").lower() in ("utf-8", "utf8")
    print(json.dumps(document, indent=2, ensure_ascii=not unicode))


def show(renderable: Any) -> None:
    """Print a result for people."""
    _stdout.print(renderable)


def say(text: str) -> None:
    """A remark on standard error."""
    _stderr.print(text, markup=False, soft_wrap=True)


class Bars:
    """Progress bars by task name; an instance is what :func:`bluedit.edit` takes as `progress`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, task: str, advance: int, total: int | None) -> None:
        if task not in self._tasks:
            self._tasks[task] = self._progress.add_task(task, total=total)
        self._progress.advance(self._tasks[task], advance)


class _Rate(TextColumn):
    """How many units a second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="dim")


@contextlib.contextmanager
def bars() -> Generator[Bars]:
    """Progress bars on standard error while the block runs; libraries keep quiet, warnings become remarks."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=_stderr, transient=True, disable=not _stderr.is_terminal) as progress,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module="bluedit")
        warnings.showwarning = lambda message, *_, **__: progress.console.print(f"warning: {message}", markup=False)
        yield Bars(progress)


def score_table(title: str, rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """The `scores` of JSON results as a table, one line per label; columns that no row has are left out."""
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for label, scores in rows.items():
        cells = ("{value:.1f} [{low:.1f}, {high:.1f}]".format(**scores[name]) if name in scores else "-" for name in names)
        table.add_row(label, *cells)
    return table


if not sys.stdout.isatty():
    # A table in a file or a pipe should not be folded at the width of a terminal that is not there.
    _stdout = Console(highlight=False, width=140)
