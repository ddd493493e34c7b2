"""`bluedit run` on held-out text, and with values that runs share: the same bits as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bluedit.editing import Plan, plan_edit
from bluedit.editors.closed_form import loop
from bluedit.editors.closed_form.optimizer import Values
from bluedit.edits import Patch
from bluedit.errors import RecipeError
from bluedit.experiments import Experiment, read_recipe
from bluedit.experiments.sharing import SharedValues, edited_layers
from bluedit.models import EditableModel
from bluedit.reports.tables import columns, markdown

pytestmark = pytest.mark.filterwarnings("ignore:the change of layer")

RECIPE = """
name = 'tiny'
model = 'tiny'
dataset = 'world:counterfact:0:0:person'
facts = 4
batch_size = 2
corpus = 'text:{corpus}'
samples = 250
"""
SETTINGS = "layers = '0-1'\nsettings = { v_num_grad_steps = 3, shrinkage = 0.1, lambda = 10 }"
RUNS = ("memit", "rect", "memit+boundary", "rect+boundary", "prune+boundary")


def recipe(tmp_path: Path, corpus: Path, more: str = "", runs: tuple[str, ...] = RUNS) -> Path:
    path = tmp_path / "recipe.toml"
    parts = [RECIPE.format(corpus=corpus), more]
    for run in runs:
        method, _, strategy = run.partition("+")
        parts.append(f"[[runs]]\nmethod = '{method}'\n" + (f"strategy = '{strategy}'\n" if strategy else "") + SETTINGS)
    path.write_text("\n".join(parts))
    return path


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that values are optimised at, one entry a time."""
    layers: list[int] = []
    original = loop.optimise_values

    def counting(*arguments: Any, **options: Any) -> Values:
        layers.append(arguments[2])
        return original(*arguments, **options)

    monkeypatch.setattr(loop, "optimise_values", counting)
    return layers


def test_shared_values_give_the_same_bits(
    tmp_path: Path,
    corpus_file: Path,
    tiny_gpt2: EditableModel,
    optimised: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = read_recipe(recipe(tmp_path, corpus_file))
    Experiment(chosen, tiny_gpt2, tmp_path / "shared").run()
    shared = len(optimised)
    assert not (tmp_path / "shared" / "values").exists()
    with monkeypatch.context() as patch:
        patch.setattr(SharedValues, "recall", lambda *_: None)
        patch.setattr(SharedValues, "keep", lambda *_: None)
        Experiment(chosen, tiny_gpt2, tmp_path / "alone").run()
    assert len(optimised) - shared == 2 * (2 * 1 + 3 * 2)
    # The first batch at layer 1 and at layer 0, at layer 1 with BLUE once for MEMIT, RECT and PRUNE; in the second batch
    # MEMIT's and PRUNE's state is the same until the sequence ends, and RECT's is another: 2 for each, twice with BLUE.
    assert shared == 3 + 2 + 2 * 2
    for name in chosen.names:
        one, other = (Patch.load(tmp_path / folder / name / "patch.safetensors") for folder in ("shared", "alone"))
        for weight, change in one.changes.items():
            assert torch.equal(change.dense(), other.changes[weight].dense()), name
        assert one.manifest.optimisation == other.manifest.optimisation


def test_values_are_found_after_a_stop_and_damage_is_no_harm(
    tmp_path: Path, corpus_file: Path, tiny_gpt2: EditableModel, optimised: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = read_recipe(recipe(tmp_path, corpus_file, runs=("memit+boundary",)))
    folder = tmp_path / "out"
    original = loop.fact_keys
    calls = iter(range(100))

    def stop(*arguments: Any, **options: Any) -> torch.Tensor:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fact_keys", stop)
        with pytest.raises(KeyboardInterrupt):
            Experiment(chosen, tiny_gpt2, folder).run()
    assert optimised == [0, 1]
    kept = sorted((folder / "values").iterdir())
    assert len(kept) == 2
    kept[0].write_bytes(kept[0].read_bytes()[:-3])
    Experiment(chosen, tiny_gpt2, folder).run()
    assert len(optimised) == 2 + 1 + 2  # one of the first batch's two again, and those of the second batch
    assert not (folder / "values").exists()


def test_a_key_tells_states_facts_and_settings_apart(tmp_path: Path, tiny_gpt2: EditableModel, corpus_file: Path) -> None:
    from bluedit.datasets import read_dataset

    facts = [case.fact for case in read_dataset("world:counterfact:0:0:person", 3)]

    def plan(**options: Any) -> Plan:
        given = {"layers": (0, 1), "method": "memit", "templates": ("{}",), "corpus": f"text:{corpus_file}", "facts": facts}
        given |= options
        return plan_edit(tiny_gpt2, given.pop("facts"), **given)

    shared = SharedValues(tmp_path / "values", tiny_gpt2.fingerprint(), edited_layers([plan(), plan(layers=(2,))]))
    assert shared.layers == (0, 1, 2)
    values = Values(1, torch.ones(32, 3), torch.zeros(32, 3), (1, 2, 3), (0.5, 0.25, 0.1))
    shared.keep(tiny_gpt2, plan(), 1, values, 2.5)
    found = shared.recall(tiny_gpt2, plan(), 1)
    assert found is not None
    assert found[1] == 2.5
    assert torch.equal(found[0].targets_DN, values.targets_DN)
    assert (found[0].evaluations, found[0].losses) == (values.evaluations, values.losses)
    # What makes no difference to values: lambda, the method's prior and constraint, strategy.
    for same in (plan(settings={"lambda": 3}), plan(method="rect"), plan(strategy="boundary"), plan(method="alphaedit")):
        assert shared.recall(tiny_gpt2, same, 1) is not None
    others = (plan(facts=facts[:2]), plan(settings={"v_lr": 0.3}), plan(templates=("{}", "So. {}")), plan(method="pmet"))
    for other in others:
        assert shared.recall(tiny_gpt2, other, 1) is None
    assert shared.recall(tiny_gpt2, plan(), 0) is None
    with tiny_gpt2.restoring([2]):
        with torch.no_grad():
            tiny_gpt2.weight(2).add_(1e-3)
        assert shared.recall(tiny_gpt2, plan(), 1) is None
    shared.remove()
    assert not shared.folder.exists()


def test_held_out_text_is_a_part_of_the_results(tmp_path: Path, corpus_file: Path, tiny_gpt2: EditableModel) -> None:
    more = f"text = 'text:{corpus_file}'\ntext_skip = 250\ntext_tokens = 200"
    chosen = read_recipe(recipe(tmp_path, corpus_file, more, runs=("memit", "memit+boundary")))
    document = Experiment(chosen, tiny_gpt2, tmp_path / "out").run()
    assert document["before"]["text"]["kl"]["value"] == pytest.approx(0, abs=1e-6)
    for run in document["runs"]:
        text = run["text"]
        assert text["tokens"] == 200
        assert text["kl"]["value"] > 0
        assert text["perplexity_before"] == document["before"]["text"]["perplexity"]
    assert columns(document)[5:8] == ("perplexity", "KL", "top-1")
    assert "top-1" in markdown(document)
    # Finished runs are kept, and what they hold is read again.
    assert Experiment(chosen, tiny_gpt2, tmp_path / "out").run() == document


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("text = 'text:{corpus}'", "set samples"),
        ("text = 'text:{corpus}'\ntext_skip = 249", "set samples"),
        ("text_tokens = 100", "name it"),
    ],
)
def test_text_that_the_corpus_uses_is_refused(
    tmp_path: Path, corpus_file: Path, tiny_gpt2: EditableModel, more: str, problem: str
) -> None:
    chosen = read_recipe(recipe(tmp_path, corpus_file, more.format(corpus=corpus_file), runs=("memit",)))
    with pytest.raises(RecipeError, match=problem):
        Experiment(chosen, tiny_gpt2, tmp_path / "out").run()
