"""The benchmarks of consequences as cases: MQuAKE, RippleEdits, KnowEdit, UnKEBench; large, malformed and named data sets."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bluedit.datasets import Case, FollowUp, Question, fingerprint, read_cases, read_dataset
from bluedit.datasets.containers import open_rows
from bluedit.errors import DatasetError
from bluedit.facts import Fact, check_facts

FIXTURES = Path(__file__).parents[1] / "fixtures" / "datasets"
FILES = {
    "mquake": "mquake.json",
    "ripple-edits": "ripple_edits.json",
    "knowedit": "knowedit.json",
    "knowedit-wikibio": "knowedit_wikibio.json",
    "unke": "unke.jsonl",
}


@pytest.fixture(params=FILES.items(), ids=list(FILES))
def published(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A format and its fixture of three records."""
    format, name = request.param
    return format, FIXTURES / name


def records(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def test_every_format_is_recognised_by_its_keys(published: tuple[str, Path], tmp_path: Path) -> None:
    format, path = published
    cases = read_cases(path)
    assert len(cases) == 3
    assert cases == read_cases(path, format=format) == read_dataset(f"{format}:{path}")
    assert all(case.follow_ups for case in cases)
    assert len(check_facts(fact for case in cases for fact in case.facts)) >= 3
    lines = tmp_path / "records.jsonl"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records(path)))
    assert read_cases(lines) == cases


def test_mquake_edits_several_hops_and_asks_for_the_whole_chain() -> None:
    _, case, _ = read_cases(FIXTURES / "mquake.json")
    vell, ida = (("Vell",),), (("Ida Rom",),)
    assert case == Case(
        fact=Fact("{} was written by", "The Long Rain", "Ida Rom", "2", "P50"),
        true_target="Jon Fell",
        paraphrases=("Who wrote The Long Rain?",),
        further=(Fact("{} was born in the city of", "Ida Rom", "Vell", "2/1", "P19"),),
        follow_ups=(
            FollowUp(
                name="multi_hop",
                questions=(
                    Question("Where was the author of The Long Rain born?", vell),
                    Question("In which city was the writer of The Long Rain born?", vell),
                    Question("What is the birthplace of the author of The Long Rain?", vell),
                ),
                need="any",
                scoring="start",
            ),
            FollowUp(name="edit_wise", questions=(Question("Who wrote The Long Rain?", ida),), scoring="start"),
            FollowUp(name="edit_wise", questions=(Question("Where was Ida Rom born?", vell),), scoring="start"),
            FollowUp(
                name="instance_wise",
                questions=(Question("Who wrote The Long Rain?", ida), Question("Where was Ida Rom born?", vell)),
                scoring="start",
            ),
        ),
    )
    first = read_cases(FIXTURES / "mquake.json", limit=1)[0]
    assert first.follow_ups[0].questions[0].answers == (("Tavra", "Tavra City"),)
    assert first.follow_ups[1].questions[0].answers == (("Tavria", "Republic of Tavria"),), "aliases are those of the hop"


def test_ripple_edits_are_taken_apart() -> None:
    """The published sentences name subject and target without saying which is which."""
    cases = read_cases(FIXTURES / "ripple_edits.json")
    assert [(case.fact.prompt, case.fact.subject, case.fact.target, case.true_target) for case in cases] == [
        ("The name of the country of citizenship of {} is", "Ann Low", "Tavria", "Ostland"),
        ("The names of the siblings of {} are", "Jon Fell", "Mia Fell", None),
        ("{} is followed by", "The Long Rain", "The Short Snow", "The Wind"),
    ]
    groups = [[(test.name, test.need, len(test.conditions)) for test in case.follow_ups] for case in cases]
    assert groups == [
        [("Compositionality_I", "any", 1)] * 2 + [("Subject_Aliasing", "any", 0), ("Relation_Specificity", "any", 1)],
        [("Logical_Generalization", "all", 0), ("Logical_Generalization", "any", 0), ("Forgetfulness", "any", 0)],
        [("Compositionality_II", "any", 0)],
    ]
    assert cases[0].follow_ups[2].questions[0].answers == (("Tavria",),), "a single letter names nothing"
    assert cases[1].follow_ups[2].questions[0].answers == (("Tom Fell",), ("Ute Fell", "Ute"))


@pytest.mark.parametrize(
    ("relation", "sentence", "parts"),
    [
        ("PLACE_OF_BIRTH", "The place of birth of Ann Low is Vell.", ("The place of birth of", "Ann Low", "Vell")),
        ("CAPITAL", "The name of the capital city of Isle of Man is Douglas.", ("capital city of", "Isle of Man", "Douglas")),
        ("LEAGUE", "The name of the league which FC Vell plays in is Liga 1.", ("league which", "FC Vell", "Liga 1")),
        ("CURRENCY", "The name of the currency in Tavria is crown.", ("currency in", "Tavria", "crown")),
        ("NUMBER_OF_CHILDREN", "The number of children Ann Low has is 3.", ("number of children", "Ann Low", "3")),
        ("AWARD_RECEIVED", "The name of the award Ann Low won is Oscar.", ("the award", "Ann Low", "Oscar")),
        ("FOLLOWS", "The Wind follows The Long Rain.", ("", "The Wind", "The Long Rain")),
        ("COUNTRY", "The name of the country which Vell is associated with is Tavria.", ("country which", "Vell", "Tavria")),
    ],
)
def test_sentences_of_every_form_are_taken_apart(
    relation: str, sentence: str, parts: tuple[str, str, str], tmp_path: Path
) -> None:
    record = records(FIXTURES / "ripple_edits.json")[1] | {"edit": {"prompt": sentence, "relation": relation}}
    path = tmp_path / "ripple.json"
    path.write_text(json.dumps([record]))
    (case,) = read_cases(path)
    assert case.fact.prompt.partition("{}")[0].strip().endswith(parts[0])
    assert (case.fact.subject, case.fact.target) == parts[1:]
    assert f"{case.fact.text} {case.fact.target}." == sentence


def test_knowedit_accepts_every_name_of_an_answer() -> None:
    recent, counterfact, zsre = read_cases(FIXTURES / "knowedit.json")
    assert [(test.name, test.scoring, test.questions[0].answers) for test in recent.follow_ups] == [
        ("portability_Logical_Generalization", "tokens", (("no", "incorrect"),)),
        ("portability_Reasoning", "tokens", (("Kai Weg", "Kai P. Weg"),)),
        ("locality_Relation_Specificity", "kept", (("Al Tam",),)),
        ("locality_Relation_Specificity", "kept", (("physics",),)),
    ]
    assert (recent.true_target, counterfact.true_target, zsre.true_target) == (None, "mayor of Dorn", "Aspid")
    assert zsre.paraphrases == ("What family are Epasp?",)
    assert {case.scoring for case in (recent, counterfact, zsre)} == {"token_accuracy"}
    bio = read_cases(FIXTURES / "knowedit_wikibio.json")[0].fact
    assert (bio.subject, bio.target) == ("john ray", "He studied in Vell.")
    assert bio.prompt == "This is a passage about john ray. {} was a physician."


def test_unke_edits_what_the_question_ends_in() -> None:
    first, _, last = read_cases(FIXTURES / "unke.jsonl")
    assert first.fact == Fact("{}", "What does Jon Fell do?", first.fact.target, "0")
    assert [(test.name, test.questions[0].prompt) for test in first.follow_ups] == [
        ("original", "What does Jon Fell do?"),
        ("paraphrase", "What is Jon Fell's work?"),
        ("sub_question", "What are the books about?"),
        ("sub_question", "Where does he live?"),
    ]
    assert [test.name for test in last.follow_ups] == ["original", "paraphrase"]


# -- malformed records -----------------------------------------------------------------------------------------------


def changed(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    record = copy.deepcopy(record)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner: Any = record
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return record


@pytest.mark.parametrize(
    ("format", "key", "value", "problem"),
    [
        ("mquake", "requested_rewrite", [], "`requested_rewrite` is empty; give it some text"),
        ("mquake", "requested_rewrite.0.prompt", "It is in", "the subject 'Old Mill' is not in the prompt 'It is in'"),
        ("mquake", "new_single_hops.1.answer", ..., "`new_single_hops[1].answer` is missing; add it"),
        ("mquake", "questions", "Who?", '`questions` is "Who?"; make it a list of texts'),
        ("ripple-edits", "edit", "x", '`edit` is "x"; make it an object with keys'),
        ("ripple-edits", "edit.prompt", "Ann Low", "the sentence 'Ann Low' does not show its subject and target; add"),
        ("ripple-edits", "Subject_Aliasing.0.test_condition", "XOR", "`Subject_Aliasing[0].test_condition` cannot be used: "),
        ("ripple-edits", "Subject_Aliasing.0.test_queries.0.answers", [], "`Subject_Aliasing[0].test_queries[0].answers` is"),
        ("knowedit", "target_new", 5, "`target_new` is 5; make it text"),
        ("knowedit", "locality", [], "`locality` is []; make it an object with keys"),
        ("knowedit", "portability.Reasoning.0.ground_truth", [[]], "`portability.Reasoning[0].ground_truth` is empty; give"),
        ("knowedit-wikibio", "concept", "nobody", "the subject 'nobody' is not in the prompt"),
        ("unke", "answer", " ", "`answer` is empty; give it some text"),
        ("unke", "sub_answer", ["Rain."], "has 2 sub_question and 1 sub_answer; give every question its answer"),
    ],
)
def test_a_malformed_record_is_told_with_its_place(format: str, key: str, value: Any, problem: str, tmp_path: Path) -> None:
    first, *rest = records(FIXTURES / FILES[format])
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([*rest, changed(first, key, value)]))
    with pytest.raises(DatasetError) as caught:
        read_dataset(f"{format}:{path}")
    assert caught.value.source == str(path)
    assert caught.value.problems[0].startswith(f"record 3: {problem}")
    skipped: list[str] = []
    assert len(read_dataset(f"{format}:{path}", skipped=skipped)) == 2
    assert len(skipped) == 1
    assert skipped[0].startswith(f"record 3: {problem}")


def test_records_are_left_out_only_when_that_is_asked_for(tmp_path: Path) -> None:
    good = {"prompt": "{} is in", "subject": "Chad", "target": "Asia"}
    path = tmp_path / "facts.jsonl"
    path.write_text(
        "\n".join([json.dumps(good), "{", json.dumps({**good, "target": 4}), json.dumps({**good, "subject": "Mali"})])
    )
    with pytest.raises(DatasetError) as caught:
        read_cases(path)
    assert len(caught.value.problems) == 2
    skipped: list[str] = []
    cases = read_cases(path, skipped=skipped)
    assert [case.fact.subject for case in cases] == ["Chad", "Mali"]
    assert [one.partition(":")[0] for one in skipped] == ["row 2 (line 2)", "row 3 (line 3)"]
    assert read_cases(path, limit=1, skipped=(none := [])) == cases[:1]
    assert not none
    path.write_text(json.dumps({**good, "target": 4}))
    with pytest.raises(DatasetError, match="holds no record that can be used"):
        read_cases(path, skipped=[])


# -- large files, fingerprints ---------------------------------------------------------------------------------------


def test_json_lines_are_read_as_they_are_needed(tmp_path: Path) -> None:
    """What stands behind the records that are asked for is not even text."""
    path = tmp_path / "large.jsonl"
    row = json.dumps({"prompt": "{} is in", "subject": "Chad", "target": "Asia", "note": "x"})
    lines = [row.replace("Chad", f"Chad{number}").replace(', "note": "x"', "") for number in range(5000)]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    assert [case.fact.id for case in read_cases(path, limit=3)] == ["0", "1", "2"]
    assert len(read_cases(path, limit=5000)) == 5000
    with pytest.raises(DatasetError, match="line 5001: is not UTF-8 text"):
        read_cases(path)
    container, rows = open_rows(str(path))
    assert container == "jsonl"
    assert next(rows).place == "row 1 (line 1)"


def test_a_fingerprint_is_that_of_the_records_used(published: tuple[str, Path], tmp_path: Path) -> None:
    format, path = published
    cases = read_cases(path)
    assert fingerprint(cases) == fingerprint(read_dataset(f"{format}:{path}"))
    lines = tmp_path / "elsewhere.jsonl"
    lines.write_text("".join(json.dumps(record, indent=None) + "\n\n" for record in records(path)))
    assert fingerprint(read_cases(lines)) == fingerprint(cases), "whatever file they come in"
    different = [fingerprint(cases[:2]), fingerprint(cases[::-1]), fingerprint(cases)]
    assert len(set(different)) == 3
    assert all(len(one) == 32 for one in different)


# -- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as the hub holds it: files of two splits, and one beside them."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "unke"
    folder.mkdir()
    shutil.copy(FIXTURES / "unke.jsonl", folder / "test.jsonl")
    (folder / "train.jsonl").write_text((FIXTURES / "unke.jsonl").read_text(encoding="utf-8").splitlines()[0] + "\n")
    (folder / "more").mkdir()
    return folder


@pytest.mark.filterwarnings("ignore")
def test_data_sets_of_the_hub_are_read_by_name(folder: Path) -> None:
    expected = read_cases(FIXTURES / "unke.jsonl")
    assert read_dataset(f"hub:{folder}") == expected, "the split test comes first"
    assert read_dataset(f"hub:{folder}", 2) == read_dataset(f"unke:hub:{folder}", 2) == expected[:2]
    assert read_dataset(f"hub:{folder}::train") == expected[:1]
    assert read_dataset(f"hub:{folder}:train.jsonl") == expected[:1]
    for spec, problem in [
        (f"hub:{folder}::dev", "has no split 'dev'; it has"),
        (f"hub:{folder}-that-is-not:a:b:c", "names no data set; write hub:NAME"),
        ("hub:", "names no data set; write hub:NAME"),
        (f"hub:{folder}:nothing.json", "cannot be read: "),
    ]:
        with pytest.raises(DatasetError) as caught:
            read_dataset(spec)
        assert caught.value.problems[0].startswith(problem)


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"needs the package datasets; pip install 'bluedit\[hub\]'"):
        read_dataset("hub:some/thing")
