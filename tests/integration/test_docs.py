"""Documentation that can be checked is checked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bluedit
from bluedit.methods import METHODS, Editor
from bluedit.reports.settings import with_table

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def test_the_command_line_reference_is_what_the_help_says() -> None:
    """To renew it: python -m typer bluedit.cli.main utils docs --name bluedit > docs/command-line.md"""
    command = [sys.executable, "-m", "typer", "bluedit.cli.main", "utils", "docs", "--name", "bluedit"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (ROOT / "docs" / "command-line.md").read_text() == printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not link.startswith("https://"):
            assert (page.parent / link).exists(), link


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_has_a_page_with_its_settings(method: Editor) -> None:
    """To renew the tables: python -m bluedit.reports.settings docs/methods"""
    page = (ROOT / "docs" / "methods" / f"{method.name}.md").read_text()
    headings = re.findall(r"^## (.+)$", page, flags=re.MULTILINE)
    assert headings == [
        "What it assumes",
        "Equation",
        "Settings",
        "When to use it",
        "What it is weak at",
        "In bluedit",
        "Source",
    ]
    table = page.partition("## Settings")[2].partition("## ")[0]
    named = dict.fromkeys(re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE))
    assert tuple(named) == method.uses
    assert page == with_table(page, method)
    assert f"({method.name}.md)" in (ROOT / "docs" / "methods" / "README.md").read_text()


def test_every_public_name_exists_and_is_listed_once() -> None:
    assert len(set(bluedit.__all__)) == len(bluedit.__all__)
    for name in bluedit.__all__:
        assert getattr(bluedit, name) is not None
    assert dir(bluedit) == sorted(bluedit.__all__)
    with pytest.raises(AttributeError, match="attribute edit_facts"):
        _ = bluedit.edit_facts
