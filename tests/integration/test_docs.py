"""Documentation that can be checked is checked."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import bluedit
from bluedit.facts import Fact
from bluedit.methods import METHODS, Editor
from bluedit.models import EditableModel
from bluedit.reports.settings import with_table
from bluedit.statistics import Statistics

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


@pytest.mark.filterwarnings("ignore:the change of layer", "ignore:the written weights leave")
def test_the_example_of_a_method_of_ones_own_works(
    tiny_gpt2: EditableModel, moments: Callable[[int], Statistics], world_facts: tuple[Fact, ...]
) -> None:
    """The code of the page is run; what it edits is a tiny model."""
    text = (ROOT / "docs" / "methods" / "README.md").read_text()
    section = text.partition("## A method of your own\n")[2].partition("\n## ")[0]
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, flags=re.MULTILINE)]
    code = "\n".join(block for block in blocks if "[project.entry-points" not in block)
    edited: list[Editor] = []

    def edit(model: EditableModel, facts: object, *, method: Editor, corpus: str, **options: Any) -> None:
        edited.append(method)
        settings = {"v_num_grad_steps": 2} | options.get("settings", {})
        if method.name == "mine":
            settings["nullspace_threshold"] = 0.5  # random keys have no direction without energy
        patch = bluedit.edit(
            tiny_gpt2, world_facts[:2], method=method, corpus=moments(48), settings=settings, layers=[1, 2], templates=["{}"]
        )
        assert settings.items() <= patch.manifest.settings.items()

    exec(  # noqa: S102 (it is our own)
        code, {"bluedit": SimpleNamespace(edit=edit), "MEMIT": bluedit.MEMIT, "model": None, "facts": None}
    )
    assert [method.name for method in edited] == ["mine", "ridge"]


def test_every_public_name_exists_and_is_listed_once() -> None:
    assert len(set(bluedit.__all__)) == len(bluedit.__all__)
    for name in bluedit.__all__:
        assert getattr(bluedit, name) is not None
    assert dir(bluedit) == sorted(bluedit.__all__)
    with pytest.raises(AttributeError, match="attribute edit_facts"):
        _ = bluedit.edit_facts
