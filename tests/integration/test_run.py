"""`bluedit run`: experiments are resumable at any point, and say what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bluedit.editors.closed_form import loop
from bluedit.edits import Patch
from bluedit.errors import RecipeError
from bluedit.experiments import Experiment, measuring, read_recipe, runner, sequence
from bluedit.models import EditableModel
from bluedit.sessions import session as session_module
from bluedit.storage import tensors as storage_tensors
from bluedit.storage.documents import read_document, write_document

pytestmark = pytest.mark.filterwarnings("ignore:the change of layer")

RUNS = (
    "method = 'memit'",
    "method = 'memit'\nstrategy = 'boundary'",
    "method = 'alphaedit'\nstrategy = 'boundary'\nsettings = { nullspace_scale = 'relative', nullspace_threshold = 0.5 }",
    "method = 'prune'\nsettings = { prune_base = 1.5 }",
    "method = 'ft-m'\nlayers = '1'\nsettings = { ft_num_steps = 2 }",
)


@pytest.fixture
def recipe_file(tmp_path: Path, corpus_file: Path) -> Path:
    path = tmp_path / "recipe.toml"
    shared = "settings = { v_num_grad_steps = 2, shrinkage = 0.1 }"
    runs = [
        run.replace("{ ", "{ v_num_grad_steps = 2, shrinkage = 0.1, ") if "settings" in run else f"{run}\n{shared}"
        for run in RUNS
    ]
    runs[-1] = RUNS[-1]
    layered = [run if "layers" in run else f"{run}\nlayers = '0-1'" for run in runs]
    path.write_text(
        "name = 'tiny'\nmodel = 'tiny'\ndataset = 'world:counterfact:0:0:person'\nfacts = 5\nbatch_size = 2\n"
        f"corpus = 'text:{corpus_file}'\n" + "".join(f"[[runs]]\n{run}\n" for run in layered)
    )
    return path


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def experiment(recipe_file: Path, tiny_gpt2: EditableModel) -> Callable[[Path], Experiment]:
    return lambda folder: Experiment(read_recipe(recipe_file), tiny_gpt2, folder)


@pytest.fixture(scope="module")
def remembered() -> dict[str, Any]:
    return {}


@pytest.fixture
def undisturbed(experiment: Callable[[Path], Experiment], tmp_path: Path, remembered: dict[str, Any]) -> Any:
    """The table of an experiment that nothing stops; the same for every test of this module."""
    if not remembered:
        remembered.update(without_seconds(experiment(tmp_path / "whole").run()))
    return remembered


def test_an_experiment_writes_its_table_and_leaves_the_model(
    experiment: Callable[[Path], Experiment], tmp_path: Path, tiny_gpt2: EditableModel
) -> None:
    folder = tmp_path / "out"
    document = experiment(folder).run()
    assert read_document(folder / "table.json", sealed=True, kind="table") == json.loads(json.dumps(document))
    assert [run["label"] for run in document["runs"]] == [
        "memit, even",
        "memit + BLUE",
        "alphaedit + BLUE",
        "prune, even",
        "ft-m, single",
    ]
    for run in document["runs"]:
        assert {"ES", "PS", "NS"} <= set(run["scores"])
        assert all(one["relative_norm"] > 0 and one["largest_singular_value"] > 0 for one in run["drift"].values())
        assert len(run["seconds"]["batches"]) == 3
        assert run["protocol"]["edit"]["batch_size"] == 2
        assert set(run["retention"]) == {"first", "middle", "latest"}
        patch = Patch.load(folder / run["name"] / "patch.safetensors")
        assert patch.manifest.batches == (2, 2, 1)
        assert not (folder / run["name"] / "session").exists()
        with patch.applied(tiny_gpt2):
            pass
    assert document["runs"][2]["null_space_rank"]
    (compared,) = document["blue_against_own"]
    assert (compared["method"], compared["blue"], compared["own"]) == ("memit", "memit-boundary", "memit-even")
    table = (folder / "table.md").read_text()
    assert "| memit + BLUE | " in table
    assert "BLUE against even: ES" in table


STOPS = {
    "editing a batch": (loop, "edit_batch", (3, 8)),
    "saving a session": (session_module, "write_session", (1, 5)),
    "writing a file": (storage_tensors, "atomic_file", (2, 8)),
    "scoring": (measuring, "score_cases", (3,)),
    "writing a claim": (runner, "write_object", (2,)),
    "writing a result": (sequence, "write_object", (2,)),
    "clearing up": (sequence, "discard", (1,)),
}


@pytest.mark.parametrize(("place", "count"), [(place, count) for place, (_, _, counts) in STOPS.items() for count in counts])
def test_stopped_anywhere_it_ends_with_the_same_table(
    experiment: Callable[[Path], Experiment],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: Any,
    place: str,
    count: int,
) -> None:
    owner, name, _ = STOPS[place]
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def stop(*arguments: Any, **options: Any) -> Any:
        if next(calls) == count:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    folder = tmp_path / "stopped"
    with monkeypatch.context() as stopping:
        stopping.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            experiment(folder).run()
    assert not (folder / "table.json").exists()
    assert without_seconds(experiment(folder).run()) == undisturbed


def test_finished_runs_are_not_run_again(
    experiment: Callable[[Path], Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment(tmp_path / "out").run()
    monkeypatch.setattr(runner.Experiment, "_run", lambda *_: pytest.fail("ran again"))
    experiment(tmp_path / "out").run()


def test_results_of_another_recipe_or_model_are_not_mixed(
    experiment: Callable[[Path], Experiment], tmp_path: Path, other_gpt2: EditableModel
) -> None:
    first = experiment(tmp_path / "out")
    first._claim()
    changed = first.recipe.model_copy(update={"seed": 1})
    for other in (Experiment(changed, first.model, first.folder), Experiment(first.recipe, other_gpt2, first.folder)):
        with pytest.raises(RecipeError, match="holds results of another recipe, or of another model; choose another folder"):
            other.run()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"is not an empty folder \(it holds thesis\.tex\)"):
        Experiment(first.recipe, first.model, tmp_path / "mine").run()


def test_results_of_earlier_versions_are_read_and_malformed_ones_are_named(
    experiment: Callable[[Path], Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = experiment(tmp_path / "out")
    first.recipe = first.recipe.model_copy(update={"runs": first.recipe.runs[:2]})
    table = first.run()
    monkeypatch.setattr(runner.Experiment, "_run", lambda *_: pytest.fail("ran again"))
    # At first, files had neither a hash nor a kind, and were not indented alike.
    for path in tmp_path.glob("out/**/*.json"):
        document = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in document.items() if key not in ("digest", "document")}))
    assert first.run() == table
    # A later version may say more, which is kept.
    path = tmp_path / "out" / "memit-even" / "result.json"
    result = read_document(path, kind="memit-even")
    write_document(path, {**result, "fluency": {"value": 6.1}}, kind="memit-even")
    assert first.run()["runs"][0] == {**table["runs"][0], "fluency": {"value": 6.1}}
    for name, changes, problem in (
        ("memit-even/result.json", {"scores": {"ES": {"value": "high"}}}, r"scores\.ES\.value: .*"),
        ("memit-even/result.json", {"outcomes": [{"id": "a", "ES": 1}]}, r"outcomes\.0\.ES: .*"),
        ("before.json", {"protocol": None}, "protocol: .*"),
    ):
        path = tmp_path / "out" / name
        kind = path.parent.name if path.name == "result.json" else "before"
        whole = read_document(path, kind=kind)
        write_document(path, {**whole, **changes}, kind=kind)
        said = rf"{path.name} does not hold what it should: {problem}; remove it, and it is computed again"
        with pytest.raises(RecipeError, match=said) as caught:
            first.run()
        assert "\n" not in str(caught.value)
        write_document(path, whole, kind=kind)


def test_the_command_goes_on_after_a_real_kill(recipe_file: Path, saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    """SIGKILL while batches are edited, then the same command again; compared with an undisturbed one."""
    documents = []
    for folder, kill in ((tmp_path / "killed", True), (tmp_path / "whole", False)):
        command = [
            *(sys.executable, "-m", "bluedit", "run", str(recipe_file), "--model", str(saved_tiny_gpt2), "--out", str(folder)),
            *("--only", "memit", "--only", "alphaedit", "--json"),
        ]
        if kill:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not list(folder.glob("*/session/session.json")):
                pass
            process.kill()
            process.wait()
            assert not (folder / "table.json").exists()
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        documents.append(without_seconds(json.loads(ended.stdout)))
    assert documents[0] == documents[1]
