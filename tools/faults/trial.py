"""One run of some tests against a copy of the source, in a process of its own.

A process is forked from one that has the large libraries loaded, but nothing of bluedit: loading them takes longer than most
tests do.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.plan import ROOT

__all__ = ["Result", "preload", "run_tests"]

_LIBRARIES = ("numpy", "torch", "safetensors.torch", "tokenizers", "pydantic", "typer", "rich.progress", "transformers")
_MODELS = ("GPT2LMHeadModel", "GPTJForCausalLM", "LlamaForCausalLM", "GPTNeoXForCausalLM", "PreTrainedTokenizerFast")
_POLL = 0.05


@dataclass(frozen=True)
class Result:
    """What a run of tests gave: the names of those that passed and failed, and whether it ran out of time.

    A file that cannot be imported counts as a test that failed.
    """

    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    timed_out: bool = False
    seconds: float = 0.0


def preload() -> None:
    """Load what tests need beside bluedit."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    transformers = importlib.import_module("transformers")
    for name in _MODELS:
        getattr(transformers, name)


def run_tests(
    source: Path,
    tests: Sequence[str],
    folder: Path,
    *,
    without: Sequence[str] = (),
    whole: bool = False,
    load: bool = False,
    timeout: float,
) -> Result:
    """Run tests with the package in `source`, until one fails.

    **Arguments**

    - `tests`: relative to `tests/`; none passes where one of them is not there.
    - `folder`: for temporary files.
    - `without`: tests that are left out.
    - `whole`: run all of them, also after one has failed.
    - `load`: run none of them, and see only that their files can be loaded.
    """
    options = [*([] if whole else ["-x"]), *(["--collect-only"] if load else []), *(f"--deselect={name}" for name in without)]
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    started = time.monotonic()
    process = os.fork()
    if not process:
        try:
            _child(source, tests, folder, answer, options)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    running = True
    try:
        while time.monotonic() - started < timeout:
            if os.waitpid(process, os.WNOHANG)[0]:
                running = False
                break
            time.sleep(_POLL)
    finally:
        if running:
            # With what it started.
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
    if running:
        return Result(timed_out=True, seconds=timeout)
    seconds = time.monotonic() - started
    if not answer.is_file():
        # It broke down before a test could run, or took pytest down with it.
        return Result(failed=("the process",), seconds=seconds)
    found = json.loads(answer.read_text())
    return Result(tuple(found["passed"]), tuple(found["failed"]), seconds=seconds)


class _Watcher:
    """Collects the outcome of every test."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.passed and report.when == "call":
            self.passed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def _child(source: Path, tests: Sequence[str], folder: Path, answer: Path, more: Sequence[str]) -> None:
    os.setsid()
    os.chdir(ROOT)
    log = os.open(folder / "log.txt", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Processes that tests start get it too.
    os.environ |= {"PYTHONPATH": str(source), "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis")}
    sys.path.insert(0, str(source))

    import pytest

    watcher = _Watcher()
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", str(folder / "pytest"), "--tb=short"]
    # Of libraries that are loaded already pytest cannot rewrite the assertions, and need not.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    pytest.main([*options, *more, *(f"tests/{name}" for name in tests)], plugins=[watcher])
    place = Path(str(sys.modules["bluedit"].__file__)).resolve() if "bluedit" in sys.modules else source.resolve()
    assert place.is_relative_to(source.resolve()), f"bluedit was loaded from {place}"
    partial = answer.with_suffix(".partial")
    partial.write_text(json.dumps({"passed": watcher.passed, "failed": watcher.failed}))
    partial.replace(answer)
