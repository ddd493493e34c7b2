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
from dataclasses import replace
from pathlib import Path

from faults.plan import Copy, Fault, problem, read_faults
from faults.trial import Result, preload, run_tests

_TIMEOUT = 300.0


class _Baselines:
    """What tests give on the right source; each file of them is run once."""

    def __init__(self, copy: Copy, folder: Path, timeout: float) -> None:
        self._copy, self._folder, self._timeout = copy, folder, timeout
        self._known: dict[str, Result] = {}

    def of(self, test: str) -> Result:
        """The outcome of a file of tests, or of one test in it."""
        file = test.partition("::")[0]
        if file not in self._known:
            self._known[file] = run_tests(self._copy.source, [file], self._folder, timeout=self._timeout)
        found = self._known[file]
        passed, failed = (
            tuple(name for name in names if name.startswith(f"tests/{test}")) for names in (found.passed, found.failed)
        )
        return replace(found, passed=passed, failed=failed)


def _outcome(fault: Fault, copy: Copy, baselines: _Baselines, folder: Path, timeout: float) -> tuple[str, str]:
    """What became of a fault, and by what."""
    if (why := problem(fault)) is not None:
        return "broken", why
    tests = [test for test in fault.tests if baselines.of(test).passed]
    if not tests:
        return "untested", f"no test of {', '.join(fault.tests)} passes without the fault"
    failing = [name for test in tests for name in baselines.of(test).failed]
    copy.plant(fault)
    try:
        found = run_tests(copy.source, tests, folder, without=failing, first=True, timeout=timeout)
    finally:
        copy.mend([fault])
    if found.timed_out:
        return "caught", f"no end after {timeout:g} s"
    if found.failed:
        return "caught", found.failed[0].removeprefix("tests/")
    aside = f", {len(failing)} left out that fail anyway" if failing else ""
    return "SURVIVED", f"{len(found.passed)} tests of {', '.join(tests)}{aside}"


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
        folder = Path(name)
        copy = Copy(folder)
        baselines = _Baselines(copy, folder, chosen.timeout)
        for number, fault in numbered:
            outcome, by = _outcome(fault, copy, baselines, folder, chosen.timeout)
            counts[outcome] += 1
            print(f"{number:4} {outcome:9} {fault.file}: {fault.name}\n{'':15}{by}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()) or "nothing to plant")
    return 0 if counts.keys() <= {"caught"} else 1


if __name__ == "__main__":
    sys.exit(main())
