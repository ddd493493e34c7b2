"""`bluedit evaluate` by every protocol, beside the unedited model, with records; and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Run, undocumented

from bluedit.datasets import fingerprint, read_cases
from bluedit.edits import Patch
from bluedit.models import EditableModel
from bluedit.results.evaluation import EvaluatedCase, EvaluateResult

FIXTURES = Path(__file__).parents[1] / "fixtures" / "datasets"


@pytest.fixture
def facts(write_jsonl: Callable[..., Path], world_records: list[dict[str, Any]]) -> Path:
    """Two CounterFact records of the world, with two neighbours and generation prompts each."""
    return write_jsonl([{**record, "neighborhood_prompts": record["neighborhood_prompts"][:2]} for record in world_records[:2]])


@pytest.fixture
def patch(tiny_gpt2: EditableModel, make_patch: Callable[..., Patch], tmp_path: Path) -> Path:
    return make_patch(tiny_gpt2, scale=0.5).save(tmp_path / "patch")


def test_every_protocol_beside_the_unedited_model(
    run: Run, saved_tiny_gpt2: Path, facts: Path, patch: Path, corpus_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    records = tmp_path / "cases.jsonl"
    document = run(
        "evaluate", "--model", saved_tiny_gpt2, "--dataset", facts, "--patch", patch, "--protocol", "all", "--generate",
        "--references", "world:0", "--text", corpus_file, "--text-tokens", 300, "--records", records, "--json",
    ).document  # fmt: skip
    result = EvaluateResult.of(document)
    assert not undocumented(result)
    assert [one.name for one in result.measures] == ["standard", "wild-question", "wild-instruction", "generation"]
    assert result.scores == result.measures[0].scores
    for one in result.measures:
        assert one.before is not None
        assert {name for name in one.scores if name not in one.before} <= {"locality"}
        assert one.protocol.dataset_fingerprint == fingerprint(read_cases(facts))
        assert one.protocol.edit is not None
    standard, question, _, texts = result.measures
    assert standard.scores["locality"].n == question.scores["locality"].n == texts.scores["consistency"].n == 2
    assert question.protocol.generation is not None
    assert (question.protocol.generation.max_new_tokens, question.protocol.generation.stops) == (50, [".", "\n"])
    assert texts.protocol.generation is not None
    assert texts.protocol.generation.top_k == 5
    assert result.text is not None
    assert result.text.kl is not None
    assert result.text.kl.value > 0
    lines = [EvaluatedCase.of(json.loads(line)) for line in records.read_text().splitlines()]
    assert [line.id for line in lines] == result.protocol.cases
    for line in lines:
        assert not undocumented(line)
        assert line.before is not None
        assert set(line.before) == set(line.after) == {one.name for one in result.measures}
        generated = line.after["wild-question"].generated
        assert generated is not None
        assert [text.kind for text in generated].count("neighborhood") == 2
        assert {text.stopped for text in generated} <= {"end", "text", "length"}
    again = run("evaluate", "--model", saved_tiny_gpt2, "--dataset", facts, "--records", records, "--json")
    assert (again.code, again.stdout) == (2, "")
    assert "--force" in again.stderr


def test_data_sets_with_follow_ups_for_people(run: Run, saved_tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "examples.txt").write_text("Q: Where is Rome?\nA: Italy")
    outcome = run(
        "evaluate", "--model", saved_tiny_gpt2, "--dataset", f"mquake:{FIXTURES / 'mquake.json'}", "--limit", 2,
        "--examples", tmp_path / "examples.txt",
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert "2 cases, follow-ups, percent [95 % interval]" in outcome.stdout
    for name in (" ES ", " multi_hop ", " edit_wise ", " instance_wise "):
        assert name in outcome.stdout


def test_malformed_records_are_left_out_only_when_asked_for(run: Run, saved_tiny_gpt2: Path, facts: Path) -> None:
    lines = facts.read_text().splitlines()
    facts.write_text("\n".join([lines[0], '{"case_id": 7}', lines[1]]))
    common = ("evaluate", "--model", saved_tiny_gpt2, "--dataset", f"counterfact:{facts}")
    refused = run(*common)
    assert (refused.code, refused.stdout) == (2, "")
    assert "row 2 (line 2): `requested_rewrite` is missing; add it" in refused.stderr
    document = run(*common, "--skip-malformed", "--json").document
    assert document["skipped"] == ["row 2 (line 2): `requested_rewrite` is missing; add it"]
    assert document["protocol"]["skipped"] == 1
    assert document["scores"]["ES"]["n"] == 2
    told = run(*common, "--skip-malformed")
    assert "2 cases (1 left out)" in told.stdout
    assert "1 records cannot be used" in told.stderr


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("--protocol", "wilder"), "Did you mean 'wild'"),
        (("--references", "world:0"), "add --generate"),
        (("--dataset", "world:zsre", "--limit", 1, "--generate"), "leave out --generate"),
        (("--generate", "--references", "none.json"), "none.json: cannot be read"),
        (("--text", "none.txt"), "does not exist"),
        (("--records", "/"), "exists already"),
    ],
)
def test_bad_input_is_refused(
    run: Run, saved_tiny_gpt2: Path, facts: Path, arguments: tuple[object, ...], fragment: str
) -> None:
    dataset = () if "--dataset" in arguments else ("--dataset", facts)
    outcome = run("evaluate", "--model", saved_tiny_gpt2, *dataset, *arguments)
    assert (outcome.code, outcome.stdout) == (2, "")
    assert fragment in outcome.stderr
