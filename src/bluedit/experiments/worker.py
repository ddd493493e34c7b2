"""A cell in a process of its own: `python -m bluedit.experiments.worker`.

One line of JSON on standard input says what to do (:class:`Task`). Lines of JSON on standard output say what is happening:

    {"progress": [task, advance, total]}    {"watch": [event, run, seconds]}    {"warning": text}
    {"done": null}                          {"failed": {"message": text, "exit_code": 1, "kind": name}}

Results are in files. Standard input stays open: when it ends, the process that asked is gone, and this one ends too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict

from bluedit.errors import BlueditError
from bluedit.experiments.recipes import Recipe

__all__ = ["Options", "Task", "main", "run_cell"]


class Options(BaseModel):
    """How a model is loaded, and with how many threads is computed; the recipe's own number counts more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str | None = None
    module_map: Path | None = None
    trust_remote_code: bool = False
    threads: int | None = None


class Task(BaseModel):
    """A cell and its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    folder: Path
    options: Options = Options()


def run_cell(task: Task, tell: Callable[[str, Any], object]) -> None:
    """Run a cell; `tell` is called with the name of a message and what it says."""
    import torch

    from bluedit.editors.cautions import told_together
    from bluedit.errors import BlueditWarning
    from bluedit.experiments.runner import Experiment
    from bluedit.models import load_model

    def progress(task: str, advance: int, total: int | None) -> None:
        tell("progress", (task, advance, total))

    options = task.options
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    caught: list[Warning] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=BlueditWarning)
        warnings.showwarning = lambda message, category, *_, **__: caught.append(
            message if isinstance(message, Warning) else category(message)
        )
        model = load_model(
            task.recipe.model,
            device=options.device,
            dtype=task.recipe.dtype,
            module_map=options.module_map,
            trust_remote_code=options.trust_remote_code,
            progress=progress,
        )
        experiment = Experiment(task.recipe, model, task.folder)
        experiment.run(progress, lambda event, run, seconds: tell("watch", (event, run, seconds)))
    for line in told_together(caught):
        tell("warning", line)


def main() -> None:
    """Do the task on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    # What libraries print must not come between the messages.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    task = Task.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()

    def tell(kind: str, content: Any) -> None:
        try:
            out.write(json.dumps({kind: content}) + "\n")
        except BrokenPipeError:  # nobody listens any more
            os._exit(1)

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        run_cell(task, tell)
        tell("done", None)
    except BaseException as error:
        tell("failed", failure(error))
        if not isinstance(error, BlueditError):
            traceback.print_exc()
        sys.exit(1)


def failure(error: BaseException) -> Mapping[str, Any]:
    """What a parent is told of an error."""
    from bluedit.experiments.runner import message_of

    message = message_of(error) if isinstance(error, Exception) else f"stopped: {type(error).__name__}"
    return {"message": message, "exit_code": getattr(error, "exit_code", 1), "kind": type(error).__name__}


def _end_with(stream: TextIO) -> None:
    """End this process when the stream ends."""
    stream.read()
    os._exit(1)


if __name__ == "__main__":
    main()
