"""Recipes with lists: which cells they have, what each says, and what is refused; and the time that is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bluedit.errors import RecipeError
from bluedit.experiments import Plan, read_plan, read_recipe
from bluedit.experiments.timing import Clock, duration

MATRIX = """
name = "both"
title = "Both"
models = ["gpt2-mini", { model = "/models/tiny", corpus = "text:wiki.txt", samples = 20 }]
datasets = ["world:counterfact:0:3:person", { dataset = "zsre:/data/zsre.json", facts = 7 }]
seeds = [0, 5]
facts = 40
text = "text:held-out.txt"
methods = ["memit", { method = "prune", settings = { prune_base = 1.1 } }, { method = "rect", strategy = "each-layer" }]
strategies = ["own", "boundary"]

[[protocols]]
batch_size = 20
evaluate_every = 2

[[protocols]]
protocol = "single"
facts = 3

[[runs]]
method = "ft-m"

[quick]
seeds = [0]
models = ["gpt2-mini"]
facts = 4
"""


def plan(tmp_path: Path, text: str = MATRIX, changes: Any = None, **options: Any) -> Plan:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return read_plan(path, changes, **options)


def test_every_combination_is_a_cell_with_what_its_parts_say(tmp_path: Path) -> None:
    both = plan(tmp_path)
    assert not both.flat
    assert [cell.name.removeprefix("cells/") for cell in both.cells[:8]] == [
        "gpt2-mini_world-counterfact-0-3-person_40x20_seed0",
        "gpt2-mini_world-counterfact-0-3-person_40x20_seed5",
        "gpt2-mini_world-counterfact-0-3-person_single-3_seed0",
        "gpt2-mini_world-counterfact-0-3-person_single-3_seed5",
        "gpt2-mini_zsre-zsre_7x20_seed0",
        "gpt2-mini_zsre-zsre_7x20_seed5",
        "gpt2-mini_zsre-zsre_single-3_seed0",
        "gpt2-mini_zsre-zsre_single-3_seed5",
    ]
    assert len({cell.name for cell in both.cells}) == len(both.cells) == 16
    first, last = both.cells[0].recipe, both.cells[-1].recipe
    assert (first.facts, first.batch_size, first.evaluate_every, first.kind) == (40, 20, 2, "sequential-batch")
    assert (first.corpus, first.text) == (None, "text:held-out.txt")
    assert (last.model, last.corpus, last.samples, last.seed) == ("/models/tiny", "text:wiki.txt", 20, 5)
    assert (last.kind, last.facts, last.text) == ("single", 3, None), "text is for the protocols that it is read after"
    assert first.names == ("memit-even", "memit-boundary", "prune-even", "prune-boundary", "rect-each-layer", "ft-m-single")
    assert first.runs[2].settings == first.runs[3].settings == {"prune_base": 1.1}
    assert both.cells[2].label == "gpt2-mini, world:counterfact:0:3:person, 3 facts, one at a time, seed 0"


def test_another_seed_changes_no_name(tmp_path: Path) -> None:
    names = [cell.name for cell in plan(tmp_path).cells]
    assert set(names) < {cell.name for cell in plan(tmp_path, MATRIX.replace("[0, 5]", "[0, 5, 6]")).cells}


def test_the_command_lines_values_count_more(tmp_path: Path) -> None:
    changed = plan(tmp_path, changes={"model": "other", "seed": 3, "facts": 2, "corpus": "text:x"})
    assert {(cell.recipe.model, cell.recipe.seed, cell.recipe.facts) for cell in changed.cells} == {("other", 3, 2)}
    assert {cell.recipe.corpus for cell in changed.cells} == {"text:x"}
    assert len(changed.cells) == 4
    less = plan(tmp_path, quick=True)
    assert (less.name, len(less.cells)) == ("both-quick", 4)
    some = plan(tmp_path).only(["rect"])
    assert {run.method for cell in some.cells for run in cell.recipe.runs} == {"rect"}
    with pytest.raises(RecipeError, match="Did you mean 'rect'"):
        some.only(["rectt"])


def test_a_list_of_one_is_a_flat_recipe_as_ever(tmp_path: Path) -> None:
    text = 'name = "x"\n{}\ndataset = "world:counterfact"\n[[runs]]\nmethod = "memit"\n'
    listed, plain = (plan(tmp_path, text.format(line)) for line in ('models = ["gpt2-mini"]', 'model = "gpt2-mini"'))
    assert listed.flat
    assert listed.cells[0].recipe == plain.cells[0].recipe
    claim = plain.cells[0].recipe.claim()
    assert not {"protocol", "evaluate_every", "threads", "text"} & claim.keys(), "folders were claimed without them"
    assert claim["batch_size"] is None
    with pytest.raises(RecipeError, match="is a matrix of 16 cells"):
        (tmp_path / "matrix.toml").write_text(MATRIX)
        read_recipe(tmp_path / "matrix.toml")


BASE = 'name = "x"\nmodel = "gpt2-mini"\ndataset = "world:counterfact"\n'
RUN = '[[runs]]\nmethod = "memit"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE + 'models = ["a"]\n' + RUN, "models and model are both there; models is the list for it, so remove model"),
        (BASE + "batch_size = 3\n[[protocols]]\nbatch_size = 2\n" + RUN, "protocols and batch_size are both there"),
        (BASE + 'methods = ["memit", "memitt"]\n', r"methods\[2\]: unknown method 'memitt'. Did you mean 'memit'"),
        (BASE + 'methods = ["memit"]\nstrategies = ["bleu"]\n', "unknown strategy 'bleu'"),
        (BASE + 'strategies = ["own"]\n' + RUN, "add the list methods"),
        (BASE + "seeds = []\n" + RUN, "seeds: .*at least 1 item"),
        (BASE + "[[protocols]]\nbatchsize = 3\n" + RUN, r"protocols\[1\]\.batchsize: unknown key .* Did you mean 'batch_size'"),
        (BASE + 'protocols = ["singel"]\n' + RUN, r"protocols\[1\]\.protocol: .*'single', 'batch' or 'sequential-batch'"),
        (BASE + 'protocol = "single"\nbatch_size = 2\n' + RUN, "batch_size is for a sequence of batches"),
        (BASE + "evaluate_every = 2\n" + RUN, "evaluate_every is for a sequence of batches"),
        (BASE + 'protocol = "sequential-batch"\n' + RUN, "a sequence of batches needs batch_size"),
        (BASE + 'protocol = "single"\ntext = "text:x"\n' + RUN, "held-out text is read after a sequence"),
        (BASE + "seed = 1\nmodles = []\n" + RUN, "modles: unknown key 'modles'. Did you mean 'models'"),
    ],
)
def test_malformed_lists_are_refused_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(tmp_path, text)


def test_quick_needs_its_table(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no table \[quick\]"):
        plan(tmp_path, BASE + RUN, quick=True)


def test_time_left_is_estimated_from_finished_runs_by_name_and_facts() -> None:
    now = 0.0
    facts = {("a", "memit"): 10, ("a", "rome"): 10, ("b", "memit"): 40, ("b", "rome"): 40}
    clock = Clock(facts, now=lambda: now)
    assert (clock.total, clock.over, clock.left) == (4, 0, None)
    clock.tell("done", "a", "memit", 20.0)
    assert clock.left == 2.0 * (10 + 40 + 40), "2 s a fact, of any run as long as none of the name is known"
    clock.tell("done", "a", "rome", 50.0)
    assert clock.left == 2.0 * 40 + 5.0 * 40
    clock.tell("begun", "b", "memit", 0.0)
    now = 30.0
    assert clock.left == 50 + 200
    assert Clock(facts, 2, lambda: now, dict(clock._seconds), dict(clock._begun)).left == 200, "the longest run has to end"
    clock.give_up("b")
    assert (clock.over, clock.left) == (4, 0.0)
    assert [duration(seconds) for seconds in (0.2, 75, 100, 5400, 4800)] == [
        "about 1 s", "about 75 s", "about 2 min", "about 1 h 30 min", "about 80 min"
    ]  # fmt: skip


# -- analyses ----------------------------------------------------------------------------------------------------------

ANALYSES = """
name = "analysed"
models = ["gpt2-mini", { model = "/models/tiny", corpus = "text:wiki.txt", samples = 20 }]
dataset = "world:counterfact:0"
methods = ["memit"]
seed = 3
text = "text:held-out.txt"
analyses = ["steps", { analysis = "cosine", facts = 4, layers = "0-2" }, { analysis = "cosine", note = "more" }, "tables"]
"""


def test_every_analysis_is_made_of_every_model(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(ANALYSES)
    tasks = read_plan(tmp_path / "r.toml").analyses
    assert [task.name for task in tasks] == [
        "steps_gpt2-mini", "steps_tiny", "cosine_gpt2-mini", "cosine_tiny", "cosine_gpt2-mini_more", "cosine_tiny_more",
        "tables",
    ]  # fmt: skip
    tiny = tasks[3]
    assert (tiny.model.model, tiny.model.corpus, tiny.model.samples) == ("/models/tiny", "text:wiki.txt", 20)
    assert (tiny.model.text, tiny.dataset, tiny.seed, tiny.entry.facts) == ("text:held-out.txt", "world:counterfact:0", 3, 4)
    assert tiny.entry.layers == (0, 1, 2)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('{ analysis = "cosine", fact = 3 }', r"analyses\[1\]\.fact.*facts"),
        ('{ analysis = "cosine", method = "memmit" }', "memit"),
        ('{ analysis = "cosine", settings = { lamda = 3 } }', "lambda"),
    ],
)
def test_wrong_analyses_are_refused(entry: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(ANALYSES.replace('"steps", ', f"{entry}, "))
    with pytest.raises(RecipeError, match=message):
        read_plan(tmp_path / "r.toml")
