"""`bluedit run` with lists, single facts, scores along a sequence, failures, and several processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import Run

from bluedit.editors.closed_form import loop
from bluedit.errors import NumericsError, RecipeError
from bluedit.experiments import Experiment, jobs, measuring, read_plan, read_recipe
from bluedit.experiments.campaign import Campaign
from bluedit.experiments.jobs import Message, automatic_jobs, run_tasks
from bluedit.experiments.measuring import continuations
from bluedit.experiments.worker import Options, Task
from bluedit.models import EditableModel
from bluedit.models.memory import machine
from bluedit.results import MatrixTable, Table
from bluedit.storage.documents import read_document
from bluedit.storage.resumable import Journal

pytestmark = [
    pytest.mark.filterwarnings("ignore:the change of layer"),
    pytest.mark.filterwarnings("ignore:the written weights leave"),
]

HEAD = """
name = 'tiny'
model = '{model}'
dataset = 'world:counterfact:0:0:person'
facts = 4
corpus = 'text:{corpus}'
threads = 1
{more}
"""
RUN = "[[runs]]\nmethod = '{}'\nlayers = '0-1'\nsettings = {{ v_num_grad_steps = 2, shrinkage = 0.1 }}\n"


@pytest.fixture
def recipe(tmp_path: Path, corpus_file: Path, saved_tiny_gpt2: Path) -> Any:
    """Writes a recipe with some more keys, and runs of these methods."""

    def write(more: str, *methods: str, name: str = "recipe.toml") -> Path:
        head = HEAD.format(model=saved_tiny_gpt2, corpus=corpus_file, more=more)
        (tmp_path / name).write_text(head + "".join(map(RUN.format, methods)))
        return tmp_path / name

    return write


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def records(folder: Path) -> list[dict[str, Any]]:
    return list(Journal(folder / "records.jsonl").records())


def test_single_facts_are_edited_scored_and_undone_one_by_one(
    recipe: Any, tmp_path: Path, tiny_gpt2: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fact's record is that of an experiment on it alone, and a stopped run resumes after the last fact."""
    chosen = read_recipe(recipe("protocol = 'single'", "memit", "prune"))
    original, calls = loop.edit_batch, iter(range(100))

    def stop(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    folder = tmp_path / "single"
    with monkeypatch.context() as stopping:
        stopping.setattr(loop, "edit_batch", stop)
        with pytest.raises(KeyboardInterrupt):
            Experiment(chosen, tiny_gpt2, folder).run()
    assert len(list(Journal(folder / "memit-even" / "singles.jsonl").records())) == 2
    table = Table.of(Experiment(chosen, tiny_gpt2, folder).run())
    assert not (folder / "memit-even" / "singles.jsonl").exists()
    one = chosen.model_copy(update={"protocol": "batch", "facts": 1, "runs": chosen.runs[:1]})
    Experiment(one, tiny_gpt2, tmp_path / "one").run()
    (alone,) = records(tmp_path / "one" / "memit-even")
    rows = records(folder / "memit-even")
    assert rows[0] == alone
    assert [row["batch"] for row in rows] == [1, 2, 3, 4]
    assert all(row["before"]["says"] is not None and row["after"]["says"] is not None for row in rows)
    edit = table.runs[0].protocol.edit
    assert edit is not None
    assert (edit.edits, edit.batch_size, edit.evaluated) == (4, 1, "after each edit, which is then undone")
    assert table.runs[0].scores["ES"].n == 4
    assert table.runs[0].retention == {}
    result = read_document(folder / "memit-even" / "result.json", kind="memit-even")
    assert [row["ES"] for row in result["outcomes"]] == [row["after"]["outcomes"]["ES"] for row in rows]


def test_scores_along_a_sequence_are_those_of_its_beginning(
    recipe: Any, tmp_path: Path, tiny_gpt2: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 2 of 4 batches PRUNE is scored as if the sequence ended there, and then goes on as if it had not."""
    keys = "batch_size = 1\nevaluate_every = 2"
    folder = tmp_path / "along"
    chosen = read_recipe(recipe(keys, "prune"))
    original, calls = measuring.score_cases, iter(range(100))

    def stop(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:  # the unedited model, after two batches, after the last
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as stopping:
        stopping.setattr(measuring, "score_cases", stop)
        with pytest.raises(KeyboardInterrupt):
            Experiment(chosen, tiny_gpt2, folder).run()
    table = Experiment(chosen, tiny_gpt2, folder).run()
    along = table["runs"][0]["along"]
    assert [(one["batches"], one["facts"]) for one in along] == [(2, 2), (4, 4)]
    assert along[1]["scores"] == table["runs"][0]["scores"]
    short = chosen.model_copy(update={"evaluate_every": None, "facts": 2})
    assert Experiment(short, tiny_gpt2, tmp_path / "short").run()["runs"][0]["scores"] == along[0]["scores"]
    plain = chosen.model_copy(update={"evaluate_every": None})
    whole = Experiment(plain, tiny_gpt2, tmp_path / "plain").run()["runs"][0]
    assert (whole["scores"], whole["drift"]) == (table["runs"][0]["scores"], table["runs"][0]["drift"])


def test_a_run_that_fails_is_listed_and_tried_again(
    recipe: Any, tmp_path: Path, tiny_gpt2: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = read_recipe(recipe("batch_size = 2", "memit", "rect"))
    original = loop.edit_batch

    def fail(model: Any, plan: Any, *arguments: Any, **options: Any) -> Any:
        if plan.method.name == "memit":
            raise NumericsError("its numbers overflow")
        return original(model, plan, *arguments, **options)

    folder = tmp_path / "out"
    with monkeypatch.context() as failing:
        failing.setattr(loop, "edit_batch", fail)
        table = Table.of(Experiment(chosen, tiny_gpt2, folder).run())
        alone = chosen.model_copy(update={"runs": chosen.runs[:1]})
        with pytest.raises(NumericsError, match="overflow"):
            Experiment(alone, tiny_gpt2, tmp_path / "alone").run()
    assert [(one.name, one.message, one.kind) for one in table.failed] == [
        ("memit-even", "its numbers overflow", "NumericsError")
    ]
    assert [run.name for run in table.runs] == ["rect-even"]
    again = Table.of(Experiment(chosen, tiny_gpt2, folder).run())
    assert (again.failed, [run.name for run in again.runs]) == ([], ["memit-even", "rect-even"])


def test_a_matrix_goes_on_after_a_cell_that_fails_and_grows(
    recipe: Any, tmp_path: Path, run: Run, saved_tiny_gpt2: Path
) -> None:
    """Exit code 1, results of the others, one report; one more seed runs what is new and nothing else."""
    path = recipe("", "memit")
    text = path.read_text().replace(f"model = '{saved_tiny_gpt2}'", f"models = ['/nowhere/model', '{saved_tiny_gpt2}']")
    path.write_text(text.replace("threads = 1", "threads = 1\nseeds = [0]\nprotocols = ['batch']"))
    ended = run("run", path, "--out", tmp_path / "out", "--json")
    assert ended.code == 1
    assert "model, world:counterfact:0:0:person, 4 facts at once, seed 0: failed (1 of 2 runs)" in ended.stderr
    assert re.search("failed: model, .*the model folder '/nowhere/model' does not exist", ended.stderr)
    matrix = MatrixTable.of(json.loads(ended.stdout))
    assert [cell.status for cell in matrix.cells] == ["failed", "done"]
    assert MatrixTable.of(read_document(tmp_path / "out" / "matrix.json", kind="matrix")) == matrix
    page = (tmp_path / "out" / "report.html").read_text()
    assert "does not exist" in page
    assert (tmp_path / "out" / "figures" / "scores.svg").is_file()
    done = tmp_path / "out" / matrix.cells[1].name / "memit-even" / "result.json"
    written = done.stat().st_mtime_ns
    path.write_text(path.read_text().replace("seeds = [0]", "seeds = [0, 1]").replace("'/nowhere/model', ", ""))
    assert run("run", path, "--out", tmp_path / "out", "-q").code == 0
    assert done.stat().st_mtime_ns == written
    assert len(MatrixTable.of(read_document(tmp_path / "out" / "matrix.json", kind="matrix")).cells) == 2
    other = read_plan(path, {"facts": 2})
    with pytest.raises(RecipeError, match="holds something else than the matrix other"):
        Campaign(type(other)("other", "", other.document, other.cells), tmp_path / "out").run()
    folders = [tmp_path / "out", tmp_path / "out" / matrix.cells[1].name]
    compared = run("report", *folders, "--out", tmp_path / "both.md")
    assert compared.code == 0, compared.stderr
    assert "# 2 experiments" in (tmp_path / "both.md").read_text()
    assert run("run", path, "--out", tmp_path / "out", "--force", "--facts", 1, "-q").code == 0, "all of it is bluedit's own"


def test_wrong_options_are_refused_before_anything_is_loaded(run: Run, recipe: Any, tmp_path: Path) -> None:
    path = recipe("", "memit")
    for arguments, problem in (
        (("run", path, "--jobs", "many"), "--jobs 'many' is not a number of processes"),
        (("run", path, "--jobs", "0"), "is not a number of processes"),
        (("run", path, "--quick"), r"no table \[quick\]"),
        (("report", tmp_path), "is not the folder of an experiment"),
        (("report", tmp_path, "--format", "pdf"), "unknown format 'pdf'"),
        (("report", tmp_path, "--out", tmp_path), "is a folder; name a file"),
    ):
        ended = run(*arguments)
        assert (ended.code, bool(re.search(problem, ended.stderr))) == (2, True), ended.stderr


def test_as_many_processes_as_cores_and_memory_allow(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = read_plan(recipe("seeds = [0, 1, 2]", "memit", "rect")).cells
    monkeypatch.setattr(jobs, "cores", lambda: 8)
    assert automatic_jobs(cells, 1, "cpu") == 3, "no more than there are cells"
    assert automatic_jobs(cells, 4, "cpu") == 2
    assert automatic_jobs(cells, 9, "cpu") == 1
    monkeypatch.setattr(machine, "memory_of", lambda _: machine.Memory("main memory", 2**31, 1400 * 2**20))
    assert automatic_jobs(cells, 1, "cpu") == 2, "600 MiB each, and a little for a tiny model"


def test_what_a_model_says_comes_without_the_prompt(tiny_gpt2: EditableModel) -> None:
    prompts = ["Anna lives in", "The capital of"]
    said = continuations(tiny_gpt2, prompts, tokens=3)
    assert len(said) == 2
    assert not any(text.startswith(prompt) for prompt, text in zip(prompts, said, strict=True))


def test_killed_processes_leave_what_can_be_resumed_and_their_number_changes_nothing(recipe: Any, tmp_path: Path) -> None:
    """A command with two processes is killed, its children end by themselves, and a command with one ends with the bits of an
    undisturbed one."""
    path = recipe("batch_size = 2\nseeds = [0, 1]", "memit")
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "bluedit", "run", str(path), "--out", str(folder), "--jobs", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children: list[psutil.Process] = []
    while process.poll() is None and not list(folder.glob("cells/*/*/session/session.json")):
        time.sleep(0.01)
        children = psutil.Process(process.pid).children() or children
    process.kill()
    process.wait()
    assert len(children) == 2
    assert not psutil.wait_procs(children, timeout=60)[1], "no child outlives its parent"
    tables = []
    for place in (folder, tmp_path / "whole"):
        document = Campaign(read_plan(path), place).run()
        assert isinstance(document, MatrixTable)
        assert [cell.status for cell in document.cells] == ["done", "done"]
        tables.append(without_seconds(document.as_dict()))
    assert tables[0] == tables[1]


def test_a_process_that_is_killed_is_reported_and_the_next_takes_its_place(recipe: Any, tmp_path: Path) -> None:
    """With one process at a time: the first is killed when its run begins, the second finishes in its place."""
    plan = read_plan(recipe("batch_size = 2", "memit"))
    task = Task(recipe=plan.cells[0].recipe, folder=tmp_path / "one", options=Options(threads=1))
    ends: list[Message] = []
    killed = False
    for message in run_tasks([task, task.model_copy(update={"folder": tmp_path / "two"})], 1):
        if message.kind == "watch" and not killed:
            killed = True
            (child,) = [one for one in psutil.Process().children() if "bluedit.experiments.worker" in one.cmdline()]
            os.kill(child.pid, signal.SIGKILL)
        if message.kind in ("done", "failed", "killed"):
            ends.append(message)
    assert [(end.task, end.kind) for end in ends] == [(0, "killed"), (1, "done")]
    assert ends[0].content == "its process was killed by SIGKILL; memory may have run out, use fewer --jobs"
    assert (tmp_path / "two" / "table.json").is_file()


# -- analyses ----------------------------------------------------------------------------------------------------------


def test_a_recipe_with_analyses(recipe: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = "layers = '0-1', settings = { v_num_grad_steps = 2, shrinkage = 0.1 }"
    path = recipe(f"analyses = [{{ analysis = 'cosine', facts = 2, {settings} }}, 'tables']", "memit")
    path.write_text(path.read_text() + RUN.format("memit").replace("layers", "strategy = 'boundary'\nlayers"))
    out = tmp_path / "out"
    assert run("run", path, "--out", out).code == 0
    cosine = json.loads((out / "analyses/cosine/result.json").read_text())
    assert (cosine["analysis"], cosine["layers"], len(cosine["protocol"]["cases"])) == ("cosine", [0, 1], 2)
    assert "memit" in (out / "analyses/tables/table-4.md").read_text()  # one batch
    assert not (out / "analyses/values").exists()
    page = (out / "report.html").read_text()
    assert page.count('class="figure-analysis"') == 2
    # Complete analyses are read again, not made again.
    from bluedit.analysis import running

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("made again")

    entry = running.ANALYSES["cosine"]
    monkeypatch.setitem(running.ANALYSES, "cosine", running.Analysis(never, entry.record))
    assert run("run", path, "--out", out).code == 0
    # All of it is the experiment's own, so that --force may replace it.
    assert run("run", path, "--out", out, "--force").code == 1
    refused = recipe("analyses = ['cosin']", "memit", name="wrong.toml")
    outcome = run("run", refused, "--out", tmp_path / "wrong")
    assert (outcome.code, "cosine" in outcome.stderr) == (2, True)
    assert not (tmp_path / "wrong").exists()
