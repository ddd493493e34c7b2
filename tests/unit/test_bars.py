"""Progress bars that are true at every moment, and warnings told together."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from bluedit.cli import console
from bluedit.cli.console import Bars
from bluedit.editing import prepare
from bluedit.editors.cautions import LargeChangeWarning, RoundingWarning, told_together
from bluedit.editors.layers import layers_text
from bluedit.errors import BlueditWarning
from bluedit.facts import Fact
from bluedit.methods import METHODS
from bluedit.models import EditableModel
from bluedit.progress import silent, stage
from bluedit.sessions import edit_in_sequence
from bluedit.statistics import Statistics, read_corpus


class Watched:
    """Bars on a terminal of the test's own, and what was under way after every call."""

    def __init__(self) -> None:
        self.progress = Progress(console=Console(file=io.StringIO(), force_terminal=True))
        self.bars = Bars(self.progress)
        self.seen: list[list[tuple[str, float, float | None]]] = []

    def __call__(self, task: str, advance: int, total: int | None) -> None:
        self.bars(task, advance, total)
        self.seen.append(self.now())

    def now(self) -> list[tuple[str, float, float | None]]:
        return [(task.description, task.completed, task.total) for task in self.progress.tasks]


def test_a_sequence_has_a_bar_of_its_own_and_its_batches_another() -> None:
    watched = Watched()
    watched("loading", 0, None)
    watched("facts", 0, 6)
    assert watched.now() == [("facts", 0, 6)]
    for batch in range(3):
        for layer in (4, 8):
            with stage(watched, f"optimising values at layer {layer}", 2) as advance:
                assert watched.now() == [("facts", 2 * batch, 6), (f"optimising values at layer {layer}", 0, 2)]
                advance(1)
                advance(1)
            assert watched.now() == [("facts", 2 * batch, 6), (f"optimising values at layer {layer}", 2, 2)]
        watched("facts", 2, 6)
        assert watched.now() == [("facts", 2 * batch + 2, 6)]
    for tasks in watched.seen:
        assert len(tasks) <= 2
        assert all(total is None or done <= total for _, done, total in tasks)


def test_clocks_of_repeated_work_start_anew_and_that_of_the_sequence_goes_on() -> None:
    watched = Watched()
    watched("facts", 0, 4)
    clocks: list[Any] = []
    for _ in range(2):
        with stage(watched, "training", 2) as advance:
            clocks.append(watched.progress.tasks[-1].id)
            advance(2)
        assert not watched.progress.tasks[0].finished
        assert watched.progress.tasks[0].finished_time is None
        watched("facts", 2, 4)
    assert clocks[0] != clocks[1]
    assert watched.progress.tasks[0].finished


def test_work_that_needs_less_than_was_thought_is_complete_at_its_end() -> None:
    watched = Watched()
    with stage(watched, "training layer 3", 25) as advance:
        advance(4)
    assert watched.now() == [("training layer 3", 4, 4)]
    watched("scoring", 0, None)
    assert watched.now() == [("scoring", 0, None)]
    watched("scoring", 5, 20)
    assert watched.now() == [("scoring", 5, 20)]


def test_a_sequence_that_goes_on_counts_what_was_done_before() -> None:
    watched = Watched()
    watched("facts", 8, 20)
    assert watched.now() == [("facts", 8, 20)]
    assert watched.progress.tasks[0].speed is None


def test_names_of_work_are_drawn_as_they_are() -> None:
    file = io.StringIO()
    progress = Progress(console._Name(), console=Console(file=file, force_terminal=True, color_system=None))
    Bars(progress)("loading [/red]\x1b]0;x\x07", 0, None)
    with progress:
        progress.refresh()
    assert r"loading [/red]\x1b]0;x\x07" in file.getvalue()


@pytest.mark.filterwarnings("ignore:the change of layer")
@pytest.mark.parametrize(("method", "layers"), [("memit", (1, 2)), ("memit-seq", (1, 2)), ("ft-m", (1,))])
def test_editing_in_sequence_is_true_at_every_moment(
    own_gpt2: EditableModel, world_facts: tuple[Fact, ...], corpus_file: Any, tmp_path: Any, method: str, layers: Any
) -> None:
    watched = Watched()
    settings = {"ft_num_steps": 3} if method == "ft-m" else {"v_num_grad_steps": 2, "shrinkage": 0.1}
    statistics = Statistics(read_corpus(f"text:{corpus_file}"), folder=tmp_path)
    setup = prepare(own_gpt2, method=METHODS[method], layers=layers, settings=settings, corpus=statistics, templates=["{}"])
    edit_in_sequence(own_gpt2, setup, world_facts[:5], 2, None, watched)
    done = [next(one for one in tasks if one[0] == "facts") for tasks in watched.seen]
    assert [count for _, count, _ in done] == sorted(count for _, count, _ in done)
    assert {count for _, count, _ in done} == {0, 2, 4, 5}
    assert {total for _, _, total in done} == {5}
    for tasks in watched.seen:
        assert 1 <= len(tasks) <= 2
        assert all(total is None or count <= total for _, count, total in tasks)
    assert any(len(tasks) == 2 and tasks[1][1:] == (0, 1 if method != "ft-m" else 3) for tasks in watched.seen)


def test_one_batch_has_no_bar_of_a_sequence(own_gpt2: EditableModel, world_facts: tuple[Fact, ...]) -> None:
    watched = Watched()
    setup = prepare(own_gpt2, method=METHODS["ft-m"], layers=(1,), settings={"ft_num_steps": 1}, templates=["{}"])
    edit_in_sequence(own_gpt2, setup, world_facts[:2], 2, None, watched)
    assert {task[0] for tasks in watched.seen for task in tasks} == {"training layer 1"}


def test_silence_is_silent() -> None:
    with stage(silent, "anything", 3) as advance:
        advance(1)


# -- warnings --------------------------------------------------------------------------------------------------------


def large(layer: int, amount: float, origin: str = "memit, even") -> LargeChangeWarning:
    return LargeChangeWarning(layer=layer, amount=amount, origin=origin, advice="raise shrinkage", condition=1e4)


def test_warnings_of_one_cause_are_one_line() -> None:
    found: list[Warning] = [
        *(large(layer, 4.13 + layer / 2.3) for layer in range(6)),
        large(5, 7.0, "memit, boundary"),
        UserWarning("something else"),
        UserWarning("something else"),
        RoundingWarning(layer=4, amount=0.12, origin="memit, even", dtype="bfloat16"),
        RoundingWarning(layer=8, amount=0.31, origin="memit, even", dtype="bfloat16"),
    ]
    assert told_together(found) == [
        "memit, even: the changes of layers 0-5 are 4.1 to 6.3 times as large as the weights they change; raise shrinkage",
        "memit, boundary: the change of layer 5 is 7.0 times as large as the weight it changes; raise shrinkage",
        "something else",
        "memit, even: rounding to bfloat16 moves the changes of layers 4 and 8 by 12 to 31% of their size; apply the patch to "
        "the model in float32 (--dtype float32) to keep all of it",
    ]
    assert told_together([large(3, 1.2), large(3, 1.3)]) == [
        "memit, even: the change of layer 3 is 1.2 to 1.3 times as large as the weight it changes; raise shrinkage"
    ]


def test_a_warning_says_all_by_itself() -> None:
    assert isinstance(large(0, 2.0), BlueditWarning)
    assert str(large(3, 2.04)) == (
        "the change of layer 3 is 2.0 times as large as the weight it changes (condition number of the second moment: "
        "1.0e+04); raise shrinkage"
    )


def test_warnings_come_at_the_end_also_when_the_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), console.bars() as bars:
        for layer in range(2):
            warnings.warn(large(layer, 2.0), stacklevel=1)
        bars("work", 0, None)
        assert capsys.readouterr().err == ""
        raise KeyError
    assert capsys.readouterr().err == (
        "warning: memit, even: the changes of layers 0 and 1 are 2.0 times as large as the weights they change; raise "
        "shrinkage\n"
    )


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([3], "layer 3"),
        ([0, 5], "layers 0 and 5"),
        ([5, 4], "layers 4 and 5"),
        (range(6), "layers 0-5"),
        ([0, 1, 2, 3, 6, 8], "layers 0-3, 6 and 8"),
        ([1, 1, 2, 4, 5, 6], "layers 1, 2 and 4-6"),
    ],
)
def test_layers_in_words(layers: Any, text: str) -> None:
    assert layers_text(layers) == text
