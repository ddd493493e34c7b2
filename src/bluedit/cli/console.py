"""What commands say, and where: results on standard output, progress and commentary on standard error.

Whatever is printed is shown as it is: data may hold square brackets, which rich takes for markup, and control characters,
which a terminal obeys.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Generator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from bluedit.cli.tables import Table
from bluedit.reports.text import UNSAFE, visible

if TYPE_CHECKING:
    from bluedit.results import Record

__all__ = ["PIPE_WIDTH", "Bars", "Lane", "Table", "bars", "emit", "hush", "load", "say", "score_table", "show", "warn"]

PIPE_WIDTH = 140
"""A table in a file or a pipe should not be folded at the width of a terminal that is not there."""


class _Console(Console):
    """Shows texts as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


_stderr = _Console(stderr=True)


def hush(quiet: bool) -> None:
    """Whether standard error is left to errors."""
    _stderr.quiet = quiet


def emit(result: Record) -> None:
    """Print one JSON document, the command's whole output."""
    # Redirected output may be in a code page that lacks the facts' letters; JSON can do without them.
    unicode = (sys.stdout.encoding or "").lower() in ("utf-8", "utf8")
    text = json.dumps(result.as_dict(), indent=2, ensure_ascii=not unicode)
    print(UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def show(renderable: Any) -> None:
    """Print a result for people: a text, or what rich can print."""
    terminal = sys.stdout.isatty()
    console = _Console(width=None if terminal else PIPE_WIDTH)
    console.print(renderable, soft_wrap=isinstance(renderable, str) and not terminal)


def say(text: str) -> None:
    """A remark on standard error."""
    _stderr.print(text, soft_wrap=True)


def warn(text: str) -> None:
    """A warning on standard error."""
    say(f"warning: {text}")


class _Rate(TextColumn):
    """How many units a second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="dim")


class _Left(TextColumn):
    """What a task says of the time that is left."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Text:
        return Text(visible(task.fields.get("left", "")), style="dim")


class _Count(MofNCompleteColumn):
    """How much is done, of how much; nothing where neither is counted."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.total is not None or task.completed else Text()


class _Name(TextColumn):
    """What is done, as it is."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Text:
        return Text(visible(task.description))


def _at_terminal() -> bool:
    # What rich takes for a terminal may be a file: FORCE_COLOR is about colours only.
    return sys.stderr.isatty() and not _stderr.quiet


def load() -> None:
    """Import what takes seconds to import, and say so to those who wait at a terminal."""
    heavy = ("bluedit.sessions", "bluedit.evaluation")
    if sys.modules.keys() >= set(heavy):
        return
    columns = (SpinnerColumn(), _Name())
    with Progress(*columns, console=_stderr, transient=True, disable=not _at_terminal()) as progress:
        progress.add_task("loading PyTorch and transformers", total=None)
        progress.refresh()  # now, and not with the first tick
        for name in heavy:
            import_module(name)


class Bars:
    """Progress bars, one below the other for work and its parts; what :func:`bluedit.edit` takes as `progress`.

    What is complete stays until something else begins, and parts go when what they are a part of advances; see
    :class:`~bluedit.progress.Progress`.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._under_way: list[TaskID] = []
        self._whole: TaskID | None = None

    def __call__(self, task: str, advance: int, total: int | None) -> None:
        found = next((place for place, one in enumerate(self._under_way) if self._task(one).description == task), None)
        if found is None or self._complete(self._under_way[found]):
            # What nobody knows the total of is over when something else begins.
            while self._under_way and (self._complete(self._under_way[-1]) or self._task(self._under_way[-1]).total is None):
                self._remove_last()
            self._under_way.append(self._progress.add_task(task, total=total, completed=advance))
            return
        while len(self._under_way) > found + 1:
            self._remove_last()
        self._progress.update(self._under_way[found], advance=advance, total=total)

    def whole(self, task: str, done: int, total: int, left: str) -> None:
        """One bar for all there is to do, next to those of its parts, with the time that is left."""
        if self._whole is None:
            self._whole = self._progress.add_task(task, total=total)
        self._progress.update(self._whole, completed=done, total=total, left=left)

    def lane(self, name: str) -> Lane:
        """One line for work that goes on beside other work."""
        return Lane(self._progress, name)

    def _task(self, number: TaskID) -> Task:
        return next(task for task in self._progress.tasks if task.id == number)

    def _complete(self, number: TaskID) -> bool:
        task = self._task(number)
        return task.total is not None and task.completed >= task.total

    def _remove_last(self) -> None:
        self._progress.remove_task(self._under_way.pop())


class Lane:
    """One line that shows the outermost of nested tasks, under a name; for several that go on side by side."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._tasks: list[tuple[str, int, int | None]] = []
        self._line: TaskID | None = None

    def __call__(self, task: str, advance: int, total: int | None) -> None:
        place = next((place for place, one in enumerate(self._tasks) if one[0] == task), None)
        if place is None:
            while self._tasks and (self._tasks[-1][2] is None or self._tasks[-1][1] >= (self._tasks[-1][2] or 0)):
                self._tasks.pop()
            self._tasks.append((task, advance, total))
        else:
            del self._tasks[place + 1 :]
            self._tasks[place] = (task, self._tasks[place][1] + advance, total)
        name, done, of = self._tasks[0]
        if self._line is None:
            self._line = self._progress.add_task("", total=of)
        self._progress.update(self._line, description=f"{self._name}: {name}", completed=done, total=of)

    def end(self) -> None:
        """Remove the line."""
        if self._line is not None:
            self._progress.remove_task(self._line)
            self._line = None


@contextlib.contextmanager
def bars(beginning: str | None = None) -> Generator[Bars]:
    """Progress bars on standard error while the block runs; libraries keep quiet, warnings follow at the end.

    `beginning` is what is done first.
    """
    load()
    from transformers.utils import logging

    from bluedit.editors.cautions import told_together
    from bluedit.errors import BlueditWarning

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    columns = (SpinnerColumn(), _Name(), BarColumn(), _Count(), _Rate(), TimeElapsedColumn(), _Left())
    caught: list[Warning] = []
    try:
        with (
            Progress(*columns, console=_stderr, transient=True, disable=not _at_terminal()) as progress,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", category=UserWarning, module="bluedit")
            warnings.filterwarnings("always", category=BlueditWarning)
            warnings.showwarning = lambda message, category, *_, **__: caught.append(
                message if isinstance(message, Warning) else category(message)
            )
            shown = Bars(progress)
            if beginning:
                shown(beginning, 0, None)
            yield shown
    finally:
        for line in told_together(caught):
            warn(line)


def score_table(title: str, rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """The `scores` of JSON results as a table, one line per label; columns that no row has are left out."""
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    table = Table(["", *names], title=title)
    for label, scores in rows.items():
        cells = ("{value:.1f} [{low:.1f}, {high:.1f}]".format(**scores[name]) if name in scores else "-" for name in names)
        table.add(label, *cells)
    return table
