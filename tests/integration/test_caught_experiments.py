"""What an experiment writes down of its runs, with made-up scores; and which values its runs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bluedit.datasets import read_dataset
from bluedit.editing import plan_edit
from bluedit.editors.closed_form.optimizer import Values
from bluedit.edits import applied_patches
from bluedit.evaluation.scoring import tally
from bluedit.experiments import Experiment, measuring, read_recipe
from bluedit.experiments.sharing import SharedValues, edited_layers
from bluedit.facts import Fact
from bluedit.models import EditableModel

pytestmark = [
    pytest.mark.filterwarnings("ignore:the change of layer"),
    pytest.mark.filterwarnings("ignore:the written weights leave"),
]

RUN = """
[[runs]]
method = 'memit'
strategy = '{strategy}'
note = '{note}'
layers = '1-2'
settings = {{ v_num_grad_steps = 2, early_stop_loss = 0, shrinkage = 0.1 }}
"""
RUNS = (("even", "one"), ("boundary", "one"), ("boundary", "two"))
RIGHT = (0, 1, 3, 2)
"""Of three cases so many are right: unedited, and after each run."""


def test_a_comparison_is_of_runs_with_one_note_and_blue_comes_first(
    tmp_path: Path, corpus_file: Path, tiny_gpt2: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under note `one` BLUE has 3 of 3 right and the other 1 of 3: 200/3 points above. Note `two` has nothing beside it."""
    path = tmp_path / "recipe.toml"
    head = "name = 'tiny'\nmodel = 'tiny'\ndataset = 'world:counterfact:0:0:person'\nfacts = 3\nbatch_size = 2\n"
    runs = "".join(RUN.format(strategy=strategy, note=note) for strategy, note in RUNS)
    path.write_text(f"{head}corpus = 'text:{corpus_file}'\n{runs}")
    applied: list[int] = []

    def score(model: Any, cases: Any, **_: Any) -> Any:
        right = RIGHT[len(applied)]
        applied.append(len(applied_patches(model)))
        return tally([(case.fact.id, {"ES": (float(place < right),)}) for place, case in enumerate(cases)])

    monkeypatch.setattr(measuring, "score_cases", score)
    table = Experiment(read_recipe(path), tiny_gpt2, tmp_path / "out").run()
    assert applied == [0, 2, 2, 2], "runs are scored with both of their batches in the model"
    (pair,) = table["blue_against_own"]
    assert (pair["note"], pair["strategy"], pair["difference"]["ES"]["value"]) == ("one", "even", 66.67)
    assert [run["scores"]["ES"]["value"] for run in table["runs"]] == [33.33, 100, 66.67]
    for run in table["runs"]:
        # Every fact's loss is evaluated twice, at each layer that is aimed at.
        aimed = ("1", "2") if run["strategy"] == "boundary" else ("2",)
        assert run["mean_evaluations"] == dict.fromkeys(aimed, 2)
        edit = run["protocol"]["edit"]
        assert (edit["edits"], edit["batch_size"], edit["layers"]) == (3, 2, [1, 2])


def test_values_are_shared_by_runs_that_ask_for_the_same(tmp_path: Path, tiny_gpt2: EditableModel, moments: Any) -> None:
    facts = [case.fact for case in read_dataset("world:counterfact:0:0:person", 2)]

    def plan(facts: list[Fact] = facts, **options: Any) -> Any:
        given: dict[str, Any] = {"layers": (0, 1), "method": "memit", "templates": ("{}",)}
        return plan_edit(tiny_gpt2, facts, corpus=moments(tiny_gpt2.structure.d_ff), **given | options)

    shared = SharedValues(tmp_path / "values", "the base", edited_layers([plan()]))
    shared.keep(tiny_gpt2, plan(), 1, Values(1, torch.ones(32, 2), torch.zeros(32, 2), (1, 2), (0.5, 0.25)), 2.5)
    assert shared.recall(tiny_gpt2, plan(), 1) is not None
    assert shared.recall(tiny_gpt2, plan(method="rect"), 1) is not None
    assert shared.recall(tiny_gpt2, plan(settings={"lambda": 3}), 1) is not None
    first, second = facts
    for others in ([Fact(first.prompt, first.subject, second.target + "s"), second], [second, first], [first]):
        assert shared.recall(tiny_gpt2, plan(others), 1) is None
    for options in ({"templates": ("{}", "So. {}")}, {"settings": {"v_lr": 0.3}}, {"method": "pmet"}):
        assert shared.recall(tiny_gpt2, plan(**options), 1) is None
    assert shared.recall(tiny_gpt2, plan(), 0) is None
    with tiny_gpt2.restoring([1]):
        with torch.no_grad():
            tiny_gpt2.weight(1).add_(1e-3)
        assert shared.recall(tiny_gpt2, plan(), 1) is None
