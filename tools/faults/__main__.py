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
from collections.abc import Iterable, Sequence
from pathlib import Path

from faults.plan import Copy, Fault, problem, read_faults
from faults.trial import Result, preload, run_tests

_TIMEOUT = 300.0


class _Planter:
    """Plants faults in a copy of the source, and runs the tests that should notice."""

    def __init__(self, folder: Path, timeout: float) -> None:
        self._folder, self._timeout = folder, timeout
        self._copy = Copy(folder)
        self._right: set[str] = set()
        self._wrong: set[str] = set()

    def outcome(self, fault: Fault) -> tuple[str, str]:
        """What became of a fault, and by what: the name of the test that noticed, where one did."""
        if (why := problem(fault)) is not None:
            return "broken", why
        self._copy.plant(fault)
        try:
            tests = [test for test in fault.tests if f"tests/{test.partition('::')[0]}" not in self._wrong]
            found = self._run(tests, without=sorted(self._wrong)) if tests else Result()
        finally:
            self._copy.fix([fault])
        if found.failed:
            return "caught", found.failed[0]
        if found.timed_out:
            return "no end", f"its tests were stopped after {self._timeout:g} s; nothing failed until then"
        if not found.passed:
            return "untested", f"no test of {', '.join(fault.tests)} ran"
        return "SURVIVED", f"{len(found.passed)} tests of {', '.join(fault.tests)}"

    def misled(self, names: Iterable[str]) -> set[str]:
        """Those among some tests that fail without any fault, and files of them that cannot be loaded then. They are left out
        from then on."""
        given = set(names)
        new = given - self._right - self._wrong
        for load, part in ((False, {name for name in new if "::" in name}), (True, {name for name in new if "::" not in name})):
            tests = sorted(name.removeprefix("tests/") for name in part if name.startswith("tests/"))
            found = self._run(tests, whole=True, load=load) if tests else Result()
            right = part - set(found.failed) if load else part & set(found.passed)
            self._right |= right
            self._wrong |= part - right
        return self._wrong & given

    def _run(self, tests: Sequence[str], *, without: Sequence[str] = (), whole: bool = False, load: bool = False) -> Result:
        folder, timeout = self._folder, self._timeout
        return run_tests(self._copy.source, tests, folder, without=without, whole=whole, load=load, timeout=timeout)


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
    outcomes: dict[int, tuple[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        planter, left = _Planter(Path(name), chosen.timeout), dict(numbered)
        while left:
            for number, fault in left.items():
                outcomes[number] = outcome, by = planter.outcome(fault)
                print(f"{number:4} {outcome:9} {fault.file}: {fault.name}\n{'':15}{by.removeprefix('tests/')}", flush=True)
            # A test that fails on the right source has noticed nothing: those faults are planted again, without it.
            misled = planter.misled(by for outcome, by in outcomes.values() if outcome == "caught")
            left = {number: fault for number, fault in left.items() if outcomes[number][1] in misled}
            for test in sorted(misled):
                print(f"{'':5}fails without a fault too: {test}", flush=True)
    counts = Counter(outcome for outcome, _ in outcomes.values())
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.most_common()) or "nothing to plant")
    return 0 if counts.keys() <= {"caught"} else 1


if __name__ == "__main__":
    sys.exit(main())
