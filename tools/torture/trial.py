"""One trial: something done in a process of its own, and what came of it.

Children are forked from a parent that has imported everything, so that one costs milliseconds. A child that crashes, hangs or
is killed takes nothing with it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from io import StringIO
from pathlib import Path
from typing import IO, Any

__all__ = ["Child", "Outcome", "Result", "Unsound", "Verdict", "command", "in_child", "loaded", "tidy", "unsound"]

LIMIT = 60.0
"""Seconds after which a trial counts as hung. The slowest takes two."""
LONGEST_MESSAGE = 4000
"""Characters of standard error that a user can be expected to read."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x0d\x0e-\x1f\x7f-\x9f]")


class Verdict(StrEnum):
    """What a trial showed.

    - `survived`: bluedit went on, with the same result as undisturbed.
    - `refused`: it said what is wrong and stopped, with nothing lost.
    - `wrong`: a traceback, damaged data in use, something lost, a hang.
    """

    SURVIVED = "survived"
    REFUSED = "refused"
    WRONG = "wrong"


@dataclass(frozen=True)
class Result:
    """A trial: of which kind, the case within it, the seed that repeats it, the verdict and why."""

    kind: str
    seed: int
    case: str
    verdict: Verdict
    detail: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Unsound(Exception):  # noqa: N818 (not an error of bluedit's: a finding)
    """A finding inside a child: output that no user should see."""


@dataclass
class Outcome:
    """How a child ended: by itself with `code`, or by `signal`; `value` is what its function returned."""

    code: int | None = None
    signal: int | None = None
    stdout: str = ""
    stderr: str = ""
    value: Any = None
    hung: bool = False
    seconds: float = 0.0


@dataclass
class Child:
    """A running child."""

    work: Callable[[], Any]
    pid: int = 0
    started: float = 0.0
    files: dict[str, IO[bytes]] = field(default_factory=dict)

    def start(self) -> Child:
        """Fork. The child runs `work` with its own standard streams and leaves its result as JSON."""
        self.files = {name: tempfile.TemporaryFile() for name in ("stdout", "stderr", "value")}  # noqa: SIM115
        sys.stdout.flush()
        sys.stderr.flush()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            self._run()
        return self

    def wait(self, limit: float = LIMIT, kill: tuple[float, int] | None = None) -> Outcome:
        """Wait for the end; `kill` is a signal to send after so many seconds."""
        pause, due = 0.0005, kill
        hung = False
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            passed = time.monotonic() - self.started
            if due is not None and passed >= due[0]:
                os.kill(self.pid, due[1])
                due = None
            if passed > limit and not hung:
                hung = True
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(pause)
            pause = min(2 * pause, 0.005)
        texts = {name: self._read(name) for name in self.files}
        for file in self.files.values():
            file.close()
        return Outcome(
            code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            stdout=texts["stdout"],
            stderr=texts["stderr"],
            value=json.loads(texts["value"]) if texts["value"] else None,
            hung=hung,
            seconds=time.monotonic() - self.started,
        )

    def _read(self, name: str) -> str:
        file = self.files[name]
        file.seek(0)
        return file.read().decode("utf-8", errors="replace")

    def _run(self) -> None:
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            null = os.open(os.devnull, os.O_RDONLY)
            for number, descriptor in enumerate((null, self.files["stdout"].fileno(), self.files["stderr"].fileno())):
                os.dup2(descriptor, number)
            # New objects: the parent's may be somebody else's, such as a test runner's.
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
            try:
                value = self.work()
                code = 0
                if value is not None:
                    self.files["value"].write(json.dumps(value).encode())
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
                code = 1
            for stream in (sys.stdout, sys.stderr, self.files["value"]):
                stream.flush()
        finally:
            os._exit(code)


def in_child(work: Callable[[], Any], *, limit: float = LIMIT, kill: tuple[float, int] | None = None) -> Outcome:
    """Do something in a child and wait for it."""
    return Child(work).start().wait(limit, kill)


def command(*arguments: Any) -> None:
    """Run `bluedit` with these arguments in this process, through the same `main` as the installed command."""
    from bluedit.cli.main import main

    sys.argv = ["bluedit", *map(str, arguments)]
    main()


def unsound(stdout: str, stderr: str) -> str:
    """What is wrong with the output of a command that failed or not; empty where nothing is."""
    if "Traceback (most recent call last)" in stderr:
        return f"traceback: {stderr.strip().splitlines()[-1][:300]}"
    if "internal error" in stderr.lower():
        return f"internal error: {tidy(stderr)}"
    if found := _CONTROL.search(stdout + stderr):
        return f"control character {found[0]!r} in the output"
    if len(stderr) > LONGEST_MESSAGE:
        return f"{len(stderr)} characters on standard error"
    return ""


def tidy(text: str, length: int = 300) -> str:
    """A text in one line that can be printed."""
    line = _CONTROL.sub("?", " ".join(text.split()))
    return line if len(line) <= length else f"{line[: length - 3]}..."


def loaded(load: Callable[[], Any]) -> Any:
    """In a child: what `load` gives, as `{"content": ...}`, or how it refused."""
    from bluedit.errors import BlueditError

    try:
        return {"content": load()}
    except BlueditError as error:
        return {"refused": str(error)}
    except Unsound as finding:
        return {"unsound": str(finding)}
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "bluedit" in frame.filename]
        frame = own[-1] if own else place
        return {
            "unsound": f"unexpected {type(error).__name__}: {tidy(str(error), 160)} at {Path(frame.filename).name}:{frame.name}"
        }


@contextmanager
def captured() -> Iterator[tuple[StringIO, StringIO]]:
    """Standard output and standard error as texts, in this process."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def succeed(*arguments: Any) -> str:
    """In a child: the standard output of a command that ends well.

    **Raises** :class:`~bluedit.errors.BlueditError` where the command refused, and :class:`Unsound` where its output shows a
    fault.
    """
    from bluedit.errors import BlueditError

    code = 0
    with captured() as (out, err):
        try:
            command(*arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    if problem := unsound(out.getvalue(), err.getvalue()):
        raise Unsound(problem)
    if code:
        raise BlueditError(err.getvalue() or out.getvalue())
    return out.getvalue()
