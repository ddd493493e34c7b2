"""SIGKILL at random moments of a sequence of ten batches into a ledger: what is left opens, and resumes to the same weights.

    PYTHONPATH=tools python -m torture.ledger --kills 30

After every kill the ledger has to open and to hold a whole number of batches; the same command, run again, has to end with
the weights of an undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from torture.fixture import Workspace, quiet_libraries
from torture.trial import Outcome, command, in_child, unsound

__all__ = ["main"]

_BATCHES, _SIZE = 10, 2


def _edit(work: Workspace, ledger: Path, method: str) -> Any:
    facts = work.many_facts

    def run() -> None:
        os.environ["BLUEDIT_CACHE"] = str(work.cache)
        out = ledger.parent / "unused"
        arguments = [*work.edit(out, "--batch-size", _SIZE, "--limit", _BATCHES * _SIZE, facts=facts, method=method)]
        place = arguments.index("--out")
        command(*arguments[:place], *arguments[place + 2 :], "--model", ledger, "--quiet")

    return run


def _weights(work: Workspace, ledger: Path) -> dict[str, torch.Tensor]:
    """The model as the head of the ledger has it."""
    from bluedit.edits import Ledger

    model = work.editable
    opened = Ledger.open(ledger)
    opened.restore(model)
    found = {name: value.detach().clone() for name, value in model.model.state_dict().items()}
    opened.restore(model, 0)
    return found


def _batches(ledger: Path) -> int:
    """How many whole batches a ledger holds.

    **Raises** `ValueError` where it holds a part of one.
    """
    from bluedit.edits import Ledger

    opened = Ledger.open(ledger)
    facts = [len(edit.facts) for edit in opened.edits()]
    if any(count != _SIZE for count in facts):
        raise ValueError(f"batches of {facts} facts")
    return len(facts)


def _finding(work: Workspace, ledger: Path, killed: Outcome, method: str, expected: dict[str, torch.Tensor]) -> tuple[int, str]:
    """How many batches were there after the kill, and what is wrong with what followed; empty where nothing is."""
    if problem := unsound(killed.stdout, killed.stderr):
        return -1, problem
    try:
        before = _batches(ledger)
    except Exception as error:
        return -1, f"the killed ledger: {type(error).__name__}: {error}"
    again = in_child(_edit(work, ledger, method))
    done = killed.signal is None and killed.code == 0
    if not done and (again.code != 0 or unsound(again.stdout, again.stderr)):
        return before, f"resuming: code {again.code}: {again.stderr[-300:]}"
    if not done and _batches(ledger) != _BATCHES:
        return before, f"resumed to {_batches(ledger)} batches"
    found = _weights(work, ledger) if not done else expected
    different = [name for name, value in expected.items() if not torch.equal(value, found[name])]
    return before, f"other weights: {different}" if different else ""


def main() -> None:
    """Kill and resume, and print what came of it; exit code 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--method", default="alphaedit", choices=["memit", "alphaedit", "rect"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    choices = random.Random(options.seed)
    wrong: list[str] = []
    held: Counter[int] = Counter()
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        root = Path(place)
        quiet_libraries(root / "cache")
        work = Workspace(root)
        work.warm()
        fresh = root / "fresh"
        made = in_child(lambda: command("log", "create", fresh, "--model", work.model, "--quiet"))
        assert made.code == 0, made.stderr
        whole = root / "whole"
        shutil.copytree(fresh, whole)
        undisturbed = in_child(_edit(work, whole, options.method))
        assert undisturbed.code == 0, undisturbed.stderr
        expected = _weights(work, whole)
        for number in range(options.kills):
            ledger = root / f"ledger-{number}"
            shutil.copytree(fresh, ledger)
            moment = choices.uniform(0.02, undisturbed.seconds)
            killed = in_child(_edit(work, ledger, options.method), kill=(moment, signal.SIGKILL))
            before, problem = _finding(work, ledger, killed, options.method, expected)
            held[before] += 1
            if problem:
                wrong.append(f"kill {number} at {moment:.2f} s: {problem}")
            shutil.rmtree(ledger)
    told = ", ".join(f"{count} with {batches}" for batches, count in sorted(held.items()))
    print(f"{options.kills} kills ({options.method}); batches in the ledger afterwards: {told}; {len(wrong)} wrong")
    for line in wrong:
        print(line)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
