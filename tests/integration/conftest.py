"""Commands run in the test's process, through the same `main` as the installed command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import FAST, Outcome, Run, undocumented

from bluedit.cli import console
from bluedit.cli.main import main
from bluedit.results import Record


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `bluedit` with these arguments in this process. What it prints as JSON has documented keys only."""
    original = console.emit

    def emit(result: Record) -> None:
        assert not undocumented(result)
        original(result)

    monkeypatch.setattr(console, "emit", emit)

    def run(*arguments: Any) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["bluedit", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """The bare prompt alone: no text has to be generated."""
    path = tmp_path / "templates.json"
    path.write_text('["{}"]')
    return path


@pytest.fixture
def facts(world_records: list[dict[str, Any]], tmp_path: Path) -> Path:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(world_records))
    return path


@pytest.fixture
def edit(run: Run, saved_tiny_gpt2: Path, corpus_file: Path, templates: Path) -> Run:
    """Runs `bluedit edit` on the tiny model, quickly."""

    def edit(*arguments: Any) -> Outcome:
        common = ("--model", saved_tiny_gpt2, "--corpus", f"text:{corpus_file}", "--templates", templates, *FAST)
        return run("edit", *common, *arguments)

    return edit
