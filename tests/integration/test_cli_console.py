"""What commands print, whatever is in the data and however wide the terminal: tables, hostile names, last handlers."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Outcome, Run
from rich.cells import cell_len
from rich.console import Console

from bluedit import editing
from bluedit.cli import console
from bluedit.cli.demo import sizes_of_changes
from bluedit.cli.main import main
from bluedit.datasets import World
from bluedit.editors.cautions import LargeChangeWarning
from bluedit.facts import Fact
from bluedit.models import EditableModel

HOSTILE = "[/red]\x1b]0;owned\x07\u202e"
SHOWN = r"[/red]\x1b]0;owned\x07\u202e"


# -- tables ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remembered() -> dict[str, list[Any]]:
    """What each command showed, so that it runs once for all widths."""
    return {}


@pytest.fixture
def known(tiny_gpt2: EditableModel, world: World, tmp_path: Path) -> Path:
    """A fact that the tiny model knows: what it happens to say is made the object."""
    for record in world.counterfact(200):
        rewrite = record["requested_rewrite"]
        fact = Fact(rewrite["prompt"], rewrite["subject"], "x")
        with torch.no_grad():
            said = int(tiny_gpt2.model(input_ids=torch.tensor([tiny_gpt2.text.prompt(fact.text)])).logits[0, -1].argmax())
        object = str(tiny_gpt2.tokenizer.decode([said])).strip()
        if object and tiny_gpt2.text.target(object) == (said,) and not fact.prompt.endswith("{}"):
            path = tmp_path / "known.json"
            path.write_text(json.dumps([{"known_id": 0, "subject": fact.subject, "attribute": object, "prompt": fact.text}]))
            return path
    raise AssertionError("the tiny model says nothing that can be an object")


@pytest.fixture
def commands(
    run: Run, edit: Run, facts: Path, known: Path, templates: Path, saved_tiny_gpt2: Path, corpus_file: Path, tmp_path: Path
) -> dict[str, Callable[[], Outcome]]:
    """Every command that shows a table, quickly."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"name = 'r'\nmodel = '{saved_tiny_gpt2}'\ndataset = 'world:counterfact:0:0:person'\nfacts = 2\n"
        "[[runs]]\nmethod = 'ft-m'\nlayers = '1'\nsettings = { ft_num_steps = 1 }\n"
        "[[runs]]\nmethod = 'ft-l'\nlayers = '1'\nsettings = { ft_num_steps = 1 }\n"
    )
    model = ("--model", saved_tiny_gpt2)
    quick = ("--set", "v_num_grad_steps=12", "--set", "clamp_norm_factor=1.5", "--count", 10, "--limit", 12, "--trials", 2)
    return {
        "models": lambda: run("models"),
        "methods": lambda: run("methods"),
        "doctor": lambda: run("doctor", saved_tiny_gpt2, "--layers", "1,2"),
        "evaluate": lambda: run("evaluate", *model, "--dataset", facts),
        "edit": lambda: edit("--facts", facts, "--out", tmp_path / "patch"),
        "edit, null space": lambda: run(
            *("edit", *model, "--corpus", f"text:{corpus_file}", "--templates", templates, "--layers", "1,2", "--facts", facts),
            *("--out", tmp_path / "patch", "--method", "alphaedit", "--set", "v_num_grad_steps=2", "--set", "L2=2"),
            *("--set", "nullspace_threshold=0.5", "--set", "nullspace_scale=relative"),
        ),
        "stats": lambda: run("stats", *model, "--layers", "0-2", "--corpus", f"text:{corpus_file}"),
        "trace": lambda: run("trace", *model, "--facts", known, "--samples", 2),
        "run": lambda: run("run", recipe, "--out", tmp_path / "results"),
        "tune": lambda: run("tune", "--model", "gpt2-mini", "--facts", "world:counterfact:0:5:person", *quick),
        "demo": lambda: run("demo", "--facts", 2),
    }


NAMES = ["models", "methods", "doctor", "evaluate", "edit", "edit, null space", "stats", "trace", "run", "tune", "demo"]


def _lines(renderable: Any, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, markup=False, emoji=False, highlight=False).print(renderable)
    return file.getvalue().splitlines()


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split("[│┃]", line)]


@pytest.mark.parametrize("width", [60, 80, 120, 140])
@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_every_table_is_whole(
    commands: dict[str, Callable[[], Outcome]],
    remembered: dict[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    width: int,
) -> None:
    if name not in remembered:
        shown: list[Any] = []
        if name in ("trace", "stats"):  # what they keep, or find there, would change what others print, or they
            monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(console, "show", shown.append)
        outcome = commands[name]()
        assert outcome.code == 0, outcome.stderr
        remembered[name] = shown
    tables = 0
    for renderable in remembered[name]:
        wide, narrow = _lines(renderable, 1000), _lines(renderable, width)
        assert max(map(cell_len, narrow)) <= width
        assert not any("…" in line for line in narrow)
        # Where there is room every row is a line: its cells are what has to be there.
        cells = [cell for line in wide if line.startswith("│") for cell in _cells(line)]
        tables += any(line.startswith("┡") for line in wide)
        for cell in cells:
            if re.fullmatch(r"[*>]?[-+\d][-+\d.,e%\[\]() of]*", cell):
                assert any(f" {cell} " in f" {line.replace('│', ' ')} " for line in narrow), cell
            for number in re.findall(r"(?<![\w/.])[-+]?\d[\d.,]*(?:e[-+]\d+)?", cell):
                assert any(number in line for line in narrow), (number, cell)
        for label in [cells[place + 1] for place, cell in enumerate(cells[:-1]) if not cell][:1]:
            assert label[:10] in "".join(narrow)
    assert tables >= 1


# -- data that a terminal would obey ---------------------------------------------------------------------------------


@pytest.fixture
def hostile_facts(world_records: list[dict[str, Any]], write_jsonl: Callable[..., Path]) -> Path:
    rows = [
        {
            "id": f"{HOSTILE}{number}",
            "prompt": record["requested_rewrite"]["prompt"],
            "subject": record["requested_rewrite"]["subject"],
            "target": record["requested_rewrite"]["target_new"]["str"],
        }
        for number, record in enumerate(world_records[:3])
    ]
    return write_jsonl(rows)


def _assert_plain(outcome: Outcome) -> None:
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", outcome.stdout + outcome.stderr)
    assert "Traceback" not in outcome.stderr
    assert "internal error" not in outcome.stderr


def test_names_of_facts_and_models_are_printed_as_they_are(
    edit: Run, run: Run, hostile_facts: Path, saved_tiny_gpt2: Path, tmp_path: Path
) -> None:
    folder, patch = tmp_path / f"model {HOSTILE}".replace("/", "_"), tmp_path / f"patch {HOSTILE}".replace("/", "_")
    shutil.copytree(saved_tiny_gpt2, folder)
    shown = str(tmp_path / f"model {SHOWN}".replace("/red", "_red")).rsplit("/", 1)[1]
    edited = edit("--facts", hostile_facts, "--out", patch, "--model", folder)
    looked = run("patch", "show", patch)
    scored = run("evaluate", "--model", folder, "--dataset", hostile_facts, "--patch", patch)
    examined = run("doctor", folder, "--layers", "1,2")
    applied = run("patch", "apply", patch, "--model", folder, "--out", tmp_path / HOSTILE.replace("/", "_"))
    for outcome in (edited, looked, scored, examined, applied):
        assert outcome.code == 0, outcome.stderr
        _assert_plain(outcome)
    for outcome in (edited, looked):
        for number in range(3):
            assert f"{SHOWN}{number}" in outcome.stdout
    for outcome in (edited, looked, scored, examined):
        assert shown in re.sub(r"\s*\n[│ ]*", "", outcome.stdout) or shown in outcome.stdout
    assert r"[_red]\x1b]0;owned\x07\u202e" in applied.stderr


def test_control_characters_of_a_manifest_do_not_reach_the_terminal(edit: Run, run: Run, facts: Path, tmp_path: Path) -> None:
    assert edit("--facts", facts, "--out", tmp_path / "patch").code == 0
    (manifest,) = (path for path in (tmp_path / "patch").iterdir() if path.suffix == ".json")
    document = json.loads(manifest.read_text())
    document["model"] = f"model {HOSTILE}"
    document["facts"][0]["target"] = HOSTILE
    manifest.write_text(json.dumps(document))
    outcome = run("patch", "show", tmp_path / "patch")
    _assert_plain(outcome)
    printed = run("patch", "show", tmp_path / "patch", "--json")
    _assert_plain(printed)
    if outcome.code == 0:
        assert f"model {SHOWN}" in outcome.stdout
        assert printed.document["facts"][0]["target"] == HOSTILE


def test_errors_name_hostile_paths_as_they_are(run: Run, tmp_path: Path) -> None:
    for arguments in (
        ("patch", "show", tmp_path / HOSTILE),
        ("evaluate", "--model", "gpt2-mini", "--dataset", tmp_path / HOSTILE),
        ("doctor", HOSTILE),
        ("demo", "--model", HOSTILE),
    ):
        outcome = run(*arguments)
        assert outcome.code == 2
        _assert_plain(outcome)
        assert SHOWN in outcome.stdout + outcome.stderr or repr(HOSTILE)[1:-1] in outcome.stderr


# -- the last handlers -----------------------------------------------------------------------------------------------


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RecursionError("maximum recursion depth exceeded"), "RecursionError: maximum recursion depth exceeded"),
        (OverflowError(), "OverflowError"),
        (MemoryError(), "MemoryError"),
        (KeyError(HOSTILE), f"KeyError: {HOSTILE!r}"),
        (ValueError("long " * 1000), "ValueError: long long"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "UnicodeEncodeError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_nobody_foresaw_is_one_line_and_a_log(
    edit: Run, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bluedit.editors.closed_form.loop.fact_keys", _raise(error))
    outcome = edit("--facts", facts, "--out", tmp_path / "patch")
    assert (outcome.code, outcome.stdout) == (1, "")
    _assert_plain_but_internal(outcome)
    (line,) = outcome.stderr.splitlines()
    assert line.startswith(f"error: internal error: {said}")
    assert len(line) < 1000
    (log,) = (tmp_path / "cache" / "logs").iterdir()
    assert line.endswith(f"please report it, with the log {log}")
    text = log.read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in text
    assert "in least_squares" in text
    assert "command: bluedit edit --model" in text
    for name in ("bluedit 0.", "platform: ", "torch ", "transformers "):
        assert name in text
    assert not (tmp_path / "patch").exists()


def _assert_plain_but_internal(outcome: Outcome) -> None:
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", outcome.stderr)
    assert "Traceback" not in outcome.stderr


def test_without_a_place_for_the_log_the_line_alone_has_to_do(
    edit: Run, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("bluedit.storage.files.cache_folder", lambda: tmp_path / "file")
    monkeypatch.setattr("bluedit.editors.closed_form.loop.fact_keys", _raise(ZeroDivisionError("division by zero")))
    outcome = edit("--facts", facts, "--out", tmp_path / "patch")
    assert outcome.code == 1
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("error: internal error: ZeroDivisionError: division by zero. ")
    assert "please report this line" in line


def test_a_real_recursion_ends_in_one_line(edit: Run, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deeper(*arguments: Any, **options: Any) -> Any:
        return deeper(*arguments, **options)

    monkeypatch.setenv("BLUEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bluedit.editors.closed_form.loop.fact_keys", deeper)
    outcome = edit("--facts", facts, "--out", tmp_path / "patch")
    assert outcome.code == 1
    assert len(outcome.stderr.splitlines()) == 1
    assert "internal error: RecursionError" in outcome.stderr


def test_sigterm_cleans_up_as_ctrl_c_does(edit: Run, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(_: Any, path: Any, *__: Any, **___: Any) -> Any:
        Path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)

    before, handler = sorted(tmp_path.iterdir()), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("bluedit.edits.base.save_file", half)
    outcome = edit("--facts", facts, "--out", tmp_path / "patch", "--json")
    assert (outcome.code, outcome.stdout) == (143, "")
    assert outcome.stderr.endswith("error: stopped by SIGTERM; nothing was left half written\n")
    assert sorted(tmp_path.iterdir()) == before
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_second_sigterm_does_not_disturb_the_cleaning_up(
    edit: Run, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaned: list[str] = []

    def stop(*_: Any, **__: Any) -> Any:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append("all of it")

    monkeypatch.setattr("bluedit.editors.closed_form.loop.fact_keys", stop)
    assert edit("--facts", facts, "--out", tmp_path / "patch").code == 143
    assert cleaned == ["all of it"]


def test_ctrl_c_before_a_command_runs_is_a_message_too(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bluedit.cli.main.app", _raise(KeyboardInterrupt()))
    assert run("models").code == 130


# -- what is seen while waiting --------------------------------------------------------------------------------------

_WATCHED = """
import io, sys

class Stream(io.StringIO):
    def isatty(self):
        return {terminal}
    def write(self, text):
        seen.append((text, "torch" in sys.modules))
        return len(text)

seen, stderr = [], sys.stderr
sys.stderr = Stream()
sys.argv = ["bluedit", *{arguments!r}]
from bluedit.cli.main import main
try:
    main()
finally:
    sys.stderr = stderr
    before = "".join(text for text, loaded in seen if not loaded)
    after = "".join(text for text, loaded in seen if loaded)
    print("BEFORE", repr(before), file=stderr)
    print("AFTER", repr(after), file=stderr)
"""


@pytest.mark.parametrize("terminal", [True, False])
def test_something_is_seen_before_heavy_imports(saved_tiny_gpt2: Path, facts: Path, terminal: bool) -> None:
    """At a terminal; elsewhere nothing is written at all."""
    arguments = ("evaluate", "--model", str(saved_tiny_gpt2), "--dataset", str(facts))
    script = _WATCHED.format(terminal=terminal, arguments=arguments)
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm"} if terminal else {"FORCE_COLOR": "1"}
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stderr
    before, after = process.stderr.splitlines()[-2:]
    if terminal:
        assert "loading PyTorch and transformers" in before
        assert "scoring" in after
    else:
        assert (before, after) == ("BEFORE ''", "AFTER ''")


def test_output_in_another_code_page_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="latin-1") as file:
        monkeypatch.setattr("sys.stdout", file)
        monkeypatch.setattr("sys.argv", ["bluedit", "models"])
        monkeypatch.setattr("bluedit.editors.presets.PRESETS", ())
        monkeypatch.setattr(console, "say", lambda _: console.show("北京 é"))
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0
    assert r"\u5317\u4eac é" in (tmp_path / "out").read_text(encoding="latin-1")


# -- the demo --------------------------------------------------------------------------------------------------------


def test_the_demo_says_in_one_sentence_what_large_changes_mean() -> None:
    document = {"facts": 100, "even": {"relative_norms": [1.2, 3.9]}, "boundary": {"relative_norms": [5.1, 6.14]}}
    assert sizes_of_changes(document) == (
        "the changes are large (up to 3.9 times the size of the weight, with BLUE up to 6.1 times), because 100 facts are many "
        "for so small a model; NS says how well other facts survive that"
    )
    assert sizes_of_changes(document | {"even": {"relative_norms": [0.2]}, "boundary": {"relative_norms": [0.9]}}) is None


def test_the_demo_does_not_warn_of_its_own_settings(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a change that outgrows its weight."""

    def edit(*arguments: Any, **options: Any) -> Any:
        advice = "raise lambda"
        warnings.warn(
            LargeChangeWarning(layer=0, amount=2.0, origin="memit, even", advice=advice, condition=None), stacklevel=1
        )
        return original(*arguments, **options)

    original = editing.edit
    monkeypatch.setattr(editing, "edit", edit)
    outcome = run("demo", "--facts", 1)
    assert outcome.code == 0, outcome.stderr
    assert "warning" not in outcome.stderr
    assert "What the model says" in outcome.stdout
