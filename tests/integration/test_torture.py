"""The harness in tools/torture: it runs, it finds the faults that it is there for, and what it calls whole is whole.

A few trials only; `make torture` runs the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torture import __main__ as harness
from torture import disturb, driver, fuzz, mutate, table
from torture.bad_inputs import FILES, ROWS
from torture.fixture import Workspace
from torture.trial import Outcome, Result, Verdict, in_child, unsound

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="trials are forked")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("torture"))


# -- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mutate.JSON_DAMAGE)
def test_json_damage_follows_from_the_seed_and_leaves_its_input(name: str) -> None:
    text = json.dumps(
        {"format_version": 1, "names": ["a", "b"], "numbers": {"x": 1.5, "y": 20}, "deep": [{"z": "text 7"}]}
    ).encode()
    damage = mutate.JSON_DAMAGE[name]
    made = [damage(text, Random(seed)) for seed in range(20)]
    assert made == [damage(text, Random(seed)) for seed in range(20)]
    assert any(one != text for one in made)
    if name == "respelt":
        assert all(json.loads(one) == json.loads(text) for one in made)


@pytest.mark.parametrize("name", mutate.TENSOR_DAMAGE)
def test_tensor_damage_changes_a_tensor_file(name: str) -> None:
    content = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(6.0).reshape(2, 3) + 7}, {"manifest": '{"x": 1}'})
    made = [mutate.TENSOR_DAMAGE[name](content, Random(seed)) for seed in range(20)]
    assert made == [mutate.TENSOR_DAMAGE[name](content, Random(seed)) for seed in range(20)]
    assert any(one != content for one in made)


def test_a_flipped_data_bit_is_one_bit() -> None:
    content = save({"a": torch.arange(6.0)})
    changed = load(mutate.TENSOR_DAMAGE["flipped data bit"](content, Random(0)))["a"]
    before, after = (tensor.view(torch.int32).tolist() for tensor in (load(content)["a"], changed))
    assert [bin(one ^ other).count("1") for one, other in zip(before, after, strict=True) if one != other] == [1]


def test_metadata_texts_are_replaced_alone() -> None:
    content = save({"a": torch.arange(6.0)}, {"manifest": '{"x": 1}', "other": "y"})
    changed = mutate.with_metadata_text(content, "manifest", b'{"x": "\\u00e9"}')
    assert mutate.metadata_text(changed, "manifest") == b'{"x": "\\u00e9"}'
    assert mutate.metadata_text(changed, "other") == b"y"
    assert torch.equal(load(changed)["a"], load(content)["a"])


# -- children ------------------------------------------------------------------------------------------------------


def _fails() -> None:
    raise KeyError("no such thing")


def _waits() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("child", "check"),
    [
        (lambda: {"a": 1}, lambda outcome: outcome.value == {"a": 1} and outcome.code == 0),
        (_fails, lambda outcome: "traceback" in unsound(outcome.stdout, outcome.stderr)),
        (lambda: os.kill(os.getpid(), 9), lambda outcome: outcome.signal == 9),
        (_waits, lambda outcome: outcome.hung),
    ],
)
def test_a_child_is_seen_to_end(child: Callable[[], Any], check: Callable[[Outcome], bool]) -> None:
    outcome = in_child(child, limit=1.0 if child is _waits else 60.0)
    assert check(outcome), outcome


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07", "a\x00b", "x" * 5000, "internal error: see the log"])
def test_output_that_no_user_should_see_is_found(text: str) -> None:
    assert unsound("", text)
    assert not unsound("a table\n", "error: one line\n")


# -- verdicts ------------------------------------------------------------------------------------------------------


def _target(work: Workspace, load: Callable[[Path], Any]) -> fuzz.Target:
    source = work.root / "numbers"
    source.mkdir(exist_ok=True)
    (source / "numbers.json").write_text(json.dumps({"numbers": list(range(40))}))
    return fuzz.Target("numbers", lambda: source, load, manifests=("numbers.json",))


def test_a_reader_that_takes_any_number_is_found(work: Workspace) -> None:
    target = _target(work, lambda folder: json.loads((folder / "numbers.json").read_text()))
    results = [fuzz.fuzz("manifests", seed, {"numbers": target}) for seed in range(25)]
    wrong = [result for result in results if result.verdict is Verdict.WRONG]
    assert any("other content" in result.detail for result in wrong)
    assert any("unexpected" in result.detail for result in wrong)


@pytest.mark.parametrize(("damage", "verdict"), [("respelt", Verdict.SURVIVED), ("other whole", Verdict.REFUSED)])
def test_a_manifest_may_be_spelt_otherwise_and_not_be_another(
    work: Workspace, monkeypatch: pytest.MonkeyPatch, damage: str, verdict: Verdict
) -> None:
    monkeypatch.setattr(fuzz, "JSON_DAMAGE", {damage: mutate.JSON_DAMAGE[damage]})
    target = fuzz.targets(work)["patch folder"]
    results = [fuzz.fuzz("manifests", seed, {"patch folder": target}) for seed in range(4)]
    assert {result.verdict for result in results} == {verdict}, results


def test_a_killed_edit_leaves_nothing_half_written(work: Workspace) -> None:
    job = driver.jobs(work)["edit"]
    references: dict[str, driver.Reference] = {}
    expected = driver.reference(job, references)
    assert {"replace", "save_file"} <= set(expected.calls)
    with driver.job_folder(job) as folder:
        number = len(expected.calls) - 1 - expected.calls[::-1].index("replace")
        outcome = driver.start_job(job, folder, driver.Stop(number, "before", 9)).wait()
        assert outcome.signal == 9
        assert not driver.check_state(job, folder, expected)
        assert not (folder / "patch").exists()
        (folder / driver.FOREIGN).unlink()
        assert "gone" in driver.check_state(job, folder, expected)


def test_two_runs_of_a_job_count_as_equal(work: Workspace) -> None:
    job = driver.jobs(work)["patch apply"]
    one, other = driver.reference(job, {}), driver.reference(job, {})
    assert one.after == other.after
    assert any(name.startswith("model/") for name in one.after)


def test_a_file_size_limit_is_reported(work: Workspace) -> None:
    jobs = {"patch apply": driver.jobs(work)["patch apply"]}
    results = [disturb.disturb("disk", seed, jobs, {}) for seed in (1, 3)]
    assert {result.kind for result in results} == {"disk"}


# -- the table -----------------------------------------------------------------------------------------------------


def test_rows_name_what_there_is(work: Workspace) -> None:
    assert len(ROWS) >= 150
    named = {name for row in ROWS for name in table.named(row)}
    assert {name.removeprefix("file:") for name in named if name.startswith("file:")} <= FILES.keys()
    places = table.Places(work)
    assert {name for name in named if ":" not in name} <= places.names()


@pytest.mark.parametrize("wrong", ["no such file", "a misspelt key", "no such patch", "a misspelt command"])
def test_rows_that_hold(work: Workspace, wrong: str) -> None:
    number = next(number for number, row in enumerate(ROWS) if row.wrong == wrong)
    result = table.bad_input(number, table.Places(work))
    assert result.verdict is Verdict.REFUSED, result


def test_counts_are_printed_by_kind() -> None:
    results = [Result("disk", seed, "", Verdict.WRONG if seed == 2 else Verdict.SURVIVED) for seed in range(3)]
    counts = harness.summary(results)
    assert counts == {"disk": {"tried": 3, "survived": 2, "refused": 0, "wrong": 1}}
    assert "| **all** | **3** | **2** | **0** | **1** |" in harness.markdown(counts)
