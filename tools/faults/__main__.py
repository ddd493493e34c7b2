"""Plant faults one after the other, and say which of them the tests notice.

    PYTHONPATH=tools python -m faults                 # all
    PYTHONPATH=tools python -m faults --only 3 17     # these
    PYTHONPATH=tools python -m faults --list          # plant nothing
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from faults.plan import Copy, Fault, problem, read_faults
from faults.trial import Result, preload, run_tests

_TIMEOUT = 300.0


class _Planter:
    """Plants faults in a copy of the source, and runs the tests that should notice."""

    def __init__(self, folder: Path, timeout: float) -> None:
        self._folder, self._timeout = folder, timeout
        self._copy = Copy(folder)
        self._right: dict[str, bool] = {}

    def outcome(self, fault: Fault) -> tuple[str, str]:
        """What became of a fault, and by what. A test that fails without the fault as well has noticed nothing."""
        if (why := problem(fault)) is not None:
            return "broken", why
        aside: list[str] = []
        while True:
            self._copy.plant(fault)
            try:
                tests = [test for test in fault.tests if f"tests/{test.partition('::')[0]}" not in aside]
                found = self._run(tests, without=aside) if tests else Result()
            finally:
                self._copy.mend([fault])
            if found.timed_out:
                return "caught", f"no end after {self._timeout:g} s"
            if not found.failed:
                break
            if self._passes(found.failed[0]):
                return "caught", found.failed[0].removeprefix("tests/")
            aside.append(found.failed[0])
        note = f"; these fail anyway: {', '.join(aside)}" if aside else ""
        if not found.passed:
            return "untested", f"no test of {', '.join(fault.tests)} ran{note}"
        return "SURVIVED", f"{len(found.passed)} tests of {', '.join(fault.tests)}{note}"

    def _passes(self, name: str) -> bool:
        """Whether a test passes, or a file of tests can be read, without any fault."""
        if name not in self._right:
            self._right[name] = not self._run([name.removeprefix("tests/")], collect="::" not in name).failed
        return self._right[name]

    def _run(self, tests: Sequence[str], *, without: Sequence[str] = (), collect: bool = False) -> Result:
        return run_tests(self._copy.source, tests, self._folder, without=without, collect=collect, timeout=self._timeout)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 1 where a fault survived, or could not be tried."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what the faults are")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="these faults only, by their numbers")
    parser.add_argument("--matching", metavar="TEXT", help="only those with this in their name, file or tests")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT, metavar="SECONDS", help="for the tests of one fault")
    chosen = parser.parse_args(arguments)
    numbered = list(enumerate(read_faults(), start=1))
    if chosen.only:
        numbered = [(number, fault) for number, fault in numbered if number in chosen.only]
    if chosen.matching:
        numbered = [
            (number, fault) for number, fault in numbered if chosen.matching in " ".join((fault.name, fault.file, *fault.tests))
        ]
    if chosen.list:
        for number, fault in numbered:
            print(f"{number:4} {fault.file}: {fault.name}")
        return 0
    preload()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        planter = _Planter(Path(name), chosen.timeout)
        for number, fault in numbered:
            outcome, by = planter.outcome(fault)
            counts[outcome] += 1
            print(f"{number:4} {outcome:9} {fault.file}: {fault.name}\n{'':15}{by}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()) or "nothing to plant")
    return 0 if counts.keys() <= {"caught"} else 1


if __name__ == "__main__":
    sys.exit(main())
