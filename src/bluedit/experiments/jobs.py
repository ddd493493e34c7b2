"""Cells in several processes at a time, and how many of them the machine has room for."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import bluedit.experiments.worker as worker_module
from bluedit.experiments.matrix import Cell
from bluedit.experiments.worker import Task

__all__ = ["Message", "automatic_jobs", "cores", "run_tasks"]

_BASE = 600 * 2**20
"""Bytes that a process takes before it holds a model: Python, torch and transformers."""
_MARGIN = 1.25
"""What an estimate of memory is multiplied with, for what it forgets."""


@dataclass(frozen=True)
class Message:
    """What a process says of its task. `kind` is one of :mod:`~bluedit.experiments.worker`'s, or `killed`."""

    task: int
    kind: str
    content: Any


def run_tasks(tasks: Sequence[Task], jobs: int) -> Generator[Message]:
    """Run tasks in processes of their own, `jobs` at a time, and pass on what they say.

    Each task ends with one of the messages `done`, `failed`, `killed`. Processes that are left when the generator is closed
    are ended; what they had finished is in their files.
    """
    waiting = list(enumerate(tasks))[::-1]
    running: dict[int, _Process] = {}
    said: queue.Queue[Message] = queue.Queue()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, task = waiting.pop()
                running[number] = _Process(number, task, said)
            message = said.get()
            yield message
            if message.kind in ("done", "failed", "killed"):
                running.pop(message.task).close()
    finally:
        for process in running.values():
            process.close()


class _Process:
    """A process with a task, whose messages go into a queue."""

    def __init__(self, number: int, task: Task, said: queue.Queue[Message]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        source = str(Path(worker_module.__file__).parents[2])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        if threads := task.recipe.threads or task.options.threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._process = subprocess.Popen(  # noqa: S603 (this program itself)
            [sys.executable, "-m", worker_module.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        assert self._process.stdin
        self._process.stdin.write(task.model_dump_json() + "\n")
        self._process.stdin.flush()
        self._reader = threading.Thread(target=self._pass_on, args=(number, said), daemon=True)
        self._reader.start()

    def _pass_on(self, number: int, said: queue.Queue[Message]) -> None:
        last = ""
        assert self._process.stdout
        for line in self._process.stdout:
            ((last, content),) = json.loads(line).items()
            said.put(Message(number, last, content))
        if last not in ("done", "failed"):
            said.put(Message(number, "killed", self._ending()))

    def _ending(self) -> str:
        """How a process ended that did not say so itself."""
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; memory may have run out, use fewer --jobs" if -code == signal.SIGKILL else ""
            return f"its process was killed by {name}{hint}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with exit code {code}{f': {lines[-1]}' if lines else ''}"

    def close(self) -> None:
        """End the process, if it has not ended."""
        if self._process.poll() is None and self._reader.is_alive():
            self._process.kill()
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._errors.close()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def automatic_jobs(cells: Sequence[Cell], threads: int, device: str | None) -> int:
    """How many cells can run at a time: as many as there are cores for, and as the largest fits into the free memory.

    On a GPU one: a cell takes as much of it as there is.
    """
    import torch

    from bluedit.doctor import examine
    from bluedit.models.memory.machine import memory_of
    from bluedit.models.opening import choose_device

    if choose_device(None if device == "auto" else device).type != "cpu":
        return 1
    free, largest = memory_of(torch.device("cpu")).free, 0
    asked = {(cell.recipe.model, cell.recipe.dtype, run.method): (cell, run) for cell in cells for run in cell.recipe.runs}
    for cell, run in asked.values():
        found = examine(cell.recipe.model, run.resolve(), layers=run.layers, device="cpu", dtype=cell.recipe.dtype)
        needed = [check.details["needed"] for check in found.checks if "needed" in check.details]
        largest = max([largest, *needed])
    fitting = int(free / (_BASE + _MARGIN * largest))
    return max(1, min(cores() // threads, fitting, len(cells)))
