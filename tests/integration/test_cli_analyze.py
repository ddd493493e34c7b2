"""`bluedit analyze` from end to end, on the embedded model: every command, its files, its figure, and a second run of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, Run

from bluedit.analysis.running import ANALYSES

pytestmark = pytest.mark.filterwarnings("ignore:the change of layer", "ignore:the written weights leave")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The values that all commands of this module share."""
    return tmp_path_factory.mktemp("values")


@pytest.fixture
def analyze(run: Run, templates: Path, corpus_file: Path, values: Path) -> Run:
    """Runs `bluedit analyze` on the embedded model, quickly."""

    def analyze(name: str, *arguments: Any) -> Outcome:
        return run(
            "analyze", name, "--model", "gpt2-mini", "--dataset", "world:counterfact", "--facts", 2, "--layers", "0,5",
            "--templates", templates, "--corpus", f"text:{corpus_file}", "--samples", 100, "--values", values,
            "--set", "v_num_grad_steps=3", "--set", "shrinkage=0.1", *arguments,
        )  # fmt: skip

    return analyze


OWN: dict[str, tuple[Any, ...]] = {
    "bounds": ("--batch-size", 1),
    "hidden-states": ("--prompts", 12),
    "pairs": ("--text-tokens", 60),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_writes_its_result_and_its_figure(analyze: Run, name: str, tmp_path: Path, corpus_file: Path) -> None:
    if name == "hidden-states":
        pytest.importorskip("sklearn")
    own = (*OWN.get(name, ()), *(("--text", f"text:{corpus_file}") if name == "pairs" else ()))
    out = tmp_path / "out"
    document = analyze(name, *own, "--out", out, "--json").document
    assert (document["analysis"], document["layers"], len(document["protocol"]["cases"])) == (name, [0, 5], 2)
    assert {path.name for path in out.iterdir()} == {
        "analysis.json",
        "result.json",
        f"{name}.pdf",
        f"{name}.png",
        f"{name}.svg",
    }
    pdf = (out / f"{name}.pdf").read_bytes()
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    stored = json.loads((out / "result.json").read_text())
    assert {key: stored[key] for key in document} == document
    # A complete analysis is read, drawn again to the same bytes, and told to people.
    again = analyze(name, *own, "--out", out)
    assert again.code == 0, again.stderr
    assert "world:counterfact, 2 facts, memit" in again.stdout
    assert (out / f"{name}.pdf").read_bytes() == pdf
    assert json.loads((out / "result.json").read_text()) == stored


def test_the_wider_the_distance_the_smaller_the_share(analyze: Run) -> None:
    document = analyze("contribution", "--json").document
    assert [one["share"] for one in document["by_layer"]] == [0.5, 1.0]
    assert document["by_layer"][1]["difference"]["value"] == 0


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("gap", ("--method", "rome", "--layers", "0"), "distributes no residual"),
        ("gap", ("--method", "memti"), "Did you mean 'memit'?"),
        ("gap", ("--layers", "0,77"), "layer 77 is not in this model"),
        ("gap", ("--dataset", "nowhere.json"), "there is no such file"),
        ("hidden-states", ("--facts", "1", "--prompts", "3"), "prompts"),
    ],
)
def test_what_users_can_mend(analyze: Run, name: str, arguments: tuple[Any, ...], said: str) -> None:
    outcome = analyze(name, *arguments)
    assert outcome.code == 2
    assert said in re.sub(r"\s+", " ", outcome.stderr)


def test_a_folder_of_another_analysis_is_left_alone(analyze: Run, tmp_path: Path) -> None:
    assert analyze("cosine", "--out", tmp_path / "out").code == 0
    other = analyze("gap", "--out", tmp_path / "out")
    assert other.code == 2
    assert "holds another analysis" in other.stderr
    assert analyze("gap", "--out", tmp_path / "out", "--force").code == 0


def test_tables_of_an_experiment(run: Run, saved_tiny_gpt2: Path, corpus_file: Path, tmp_path: Path) -> None:
    settings = "layers = '0-1'\nsettings = { v_num_grad_steps = 2, shrinkage = 0.1 }\n"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"name = 'tiny'\nmodel = '{saved_tiny_gpt2}'\ndataset = 'world:counterfact:0:0:person'\nfacts = 2\nbatch_size = 1\n"
        f"corpus = 'text:{corpus_file}'\n[[runs]]\nmethod = 'memit'\n{settings}"
        f"[[runs]]\nmethod = 'memit'\nstrategy = 'boundary'\n{settings}"
    )
    assert run("run", recipe, "--out", tmp_path / "experiment").code == 0
    out = tmp_path / "tables"
    document = run("analyze", "tables", tmp_path / "experiment", "--out", out, "--json").document
    assert [table["number"] for table in document["tables"]] == [2, 3]
    (row,) = document["tables"][0]["rows"]
    for name, gain in row["gain"].items():
        assert gain["value"] == pytest.approx(row["blue"][name]["value"] - row["own"][name]["value"], abs=0.02)
    assert document["tables"][0]["tally"]["cells"] == 3
    files = {
        "analysis.json",
        "result.json",
        "gains.pdf",
        "gains.png",
        "gains.svg",
        "table-2.md",
        "table-2.tex",
        "table-3.md",
        "table-3.tex",
    }
    assert {path.name for path in out.iterdir()} == files
    assert "BLUE better in" in run("analyze", "tables", tmp_path / "experiment").stdout
    missing = run("analyze", "tables", tmp_path)
    assert missing.code == 2
    assert "holds no finished experiment" in missing.stderr
