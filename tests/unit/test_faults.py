"""The list of faults to plant is about the source and the tests as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.plan import ROOT, Copy, Fault, problem, read_faults

FAULTS = read_faults()


def test_every_fault_can_be_planted() -> None:
    assert [(fault.name, why) for fault in FAULTS if (why := problem(fault)) is not None] == []
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len(FAULTS) >= 40


def test_every_fault_names_tests_that_there_are() -> None:
    for fault in FAULTS:
        assert fault.tests, fault.name
        for test in fault.tests:
            file, _, function = test.partition("::")
            assert f"def {function.partition('[')[0]}(" in (ROOT / "tests" / file).read_text(encoding="utf-8") or not function


@pytest.mark.parametrize(
    ("text", "instead", "why"),
    [
        ("nowhere in it", "x", "occurs 0 times"),
        ("twice", "x", "occurs 2 times"),
        ("once", "once", "changes nothing"),
        ("once", "never", None),
    ],
)
def test_a_fault_that_cannot_be_planted_says_why(tmp_path: Path, text: str, instead: str, why: str | None) -> None:
    (tmp_path / "one.py").write_text("once, twice, twice")
    found = problem(Fault("a fault", "one.py", text, instead, ()), tmp_path)
    assert found is None if why is None else why in str(found)
    assert "no file" in str(problem(Fault("a fault", "two.py", text, instead, ()), tmp_path))


def test_a_planted_fault_is_taken_out_again(tmp_path: Path) -> None:
    fault, copy = FAULTS[0], Copy(tmp_path)
    original, planted = ROOT / "src/bluedit" / fault.file, copy.source / "bluedit" / fault.file
    copy.plant(fault)
    assert planted.read_text() == original.read_text().replace(fault.text, fault.instead) != original.read_text()
    copy.fix([fault])
    assert planted.read_bytes() == original.read_bytes()
