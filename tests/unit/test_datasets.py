"""Files of facts: what each schema becomes, and what is said about files that cannot be used."""

from __future__ import annotations

import copy
import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bluedit.datasets
from bluedit.datasets import Case, FollowUp, Question, read_cases, read_dataset
from bluedit.datasets.registry import SCHEMAS
from bluedit.errors import DatasetError, InputError
from bluedit.facts import Fact, conflicts

SHARED = Path(__file__).parents[3] / "shared" / "data"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes text, bytes, or records in the container that the file's suffix names."""

    def write(name: str, content: str | bytes | list[Any]) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            content = _encode(content, path.suffix)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def _encode(records: list[Any], suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(records)
    if suffix == ".jsonl":
        return "".join(f"{json.dumps(record)}\n" for record in records)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for record in records for key in record)))
    writer.writeheader()
    writer.writerows(
        {key: json.dumps(item) if isinstance(item, list) else item for key, item in record.items()} for record in records
    )
    return text.getvalue()


def _problems(path: Path | str, **options: Any) -> tuple[str, ...]:
    with pytest.raises(DatasetError) as caught:
        read_cases(path, **options)
    assert caught.value.source == str(path)
    assert str(caught.value).splitlines()[0].startswith(f"{path}: ")
    return caught.value.problems


COUNTERFACT: dict[str, Any] = {
    "case_id": 20952,
    "pararel_idx": 5151,
    "requested_rewrite": {
        "prompt": "{} is located in",
        "relation_id": "P30",
        "target_new": {"str": "Antarctica", "id": "Q51"},
        "target_true": {"str": "Africa", "id": "Q15"},
        "subject": "Angola",
    },
    "paraphrase_prompts": ["A plaque. Angola belongs to", "Angola is a part of"],
    "neighborhood_prompts": ["Ghana is in", "Algeria is in"],
    "attribute_prompts": ["Vostok Station, in"],
    "generation_prompts": ["People around Angola speak", "One can get to Angola by"],
}

FLAT: dict[str, Any] = {
    "case_id": 1602,
    "prompt": "Norman Lamont was employed in",
    "target_new": "Dortmund",
    "subject": "Norman Lamont",
    "ground_truth": "London",
    "rephrase_prompt": "Norman Lamont's favorite lunchtime work meals include",
    "locality_prompt": "Kevin Brennan was employed in",
    "locality_ground_truth": "Bonn",
}

ZSRE: dict[str, Any] = {
    "subject": "Balenciaga",
    "src": "What company is Balenciaga part of?",
    "pred": "Balenciaga Group",
    "rephrase": "Which company is Balenciaga's parent company?",
    "alt": "Braganza",
    "answers": ["Kering", "Kering SA"],
    "loc": "nq question: what river is associated with the city of rome",
    "loc_ans": "Tiber",
    "cond": "Balenciaga Group >> Braganza || What company is Balenciaga part of?",
}

EDIT: dict[str, Any] = {
    "prompt": "{} is located in",
    "subject": "Angola",
    "target": "Antarctica",
    "target_true": "Africa",
    "paraphrases": ["Angola is a part of", "The continent of {} is"],
    "neighborhood": ["Ghana is in"],
    "id": "a-1",
    "relation": "continent",
}

PLAIN: dict[str, Any] = {"prompt": "{} is located in", "subject": "Angola", "target": "Antarctica"}

EVERY_SCHEMA = {"counterfact": COUNTERFACT, "counterfact-flat": FLAT, "zsre": ZSRE, "edits": EDIT}


def _with(record: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the record with the value at the dotted path; without the key when the value is `...`."""
    changed = copy.deepcopy(record)
    *parents, last = path.split(".")
    inner = changed
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return changed


def test_exports() -> None:
    expected = ["Case", "FollowUp", "Question", "World", "fingerprint", "read_cases", "read_dataset", "read_known"]
    assert bluedit.datasets.__all__ == expected
    assert all(hasattr(bluedit.datasets, name) for name in bluedit.datasets.__all__)


# -- each schema ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", EVERY_SCHEMA)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_schema_is_recognised_in_either_container(write: Write, format: str, suffix: str) -> None:
    path = write(f"cases{suffix}", [EVERY_SCHEMA[format]])
    assert read_cases(path) == read_cases(path, format=format)
    assert read_dataset(f"{format}:{path}") == read_cases(str(path))


class TestCounterFact:
    def test_case(self, write: Write) -> None:
        assert read_cases(write("cases.json", [COUNTERFACT])) == [
            Case(
                fact=Fact("{} is located in", "Angola", "Antarctica", id="20952", relation="P30"),
                true_target="Africa",
                paraphrases=("A plaque. Angola belongs to", "Angola is a part of"),
                neighborhood=("Ghana is in", "Algeria is in"),
                neighborhood_target="Africa",
                attributes=("Vostok Station, in",),
                generation=("People around Angola speak", "One can get to Angola by"),
                scoring="probability",
                extra={"target_id": "Q51"},
            )
        ]

    def test_prompts_may_be_absent(self, write: Write) -> None:
        record = {key: COUNTERFACT[key] for key in ("case_id", "requested_rewrite")}
        (case,) = read_cases(write("cases.json", [record]))
        assert case.paraphrases == case.neighborhood == case.attributes == case.generation == ()

    @pytest.mark.parametrize(
        ("key", "value", "problem"),
        [
            ("case_id", ..., "`case_id` is missing; add it"),
            ("case_id", True, "`case_id` is true; make it text"),
            ("requested_rewrite", "x", '`requested_rewrite` is "x"; make it an object with keys'),
            ("requested_rewrite.subject", ..., "`requested_rewrite.subject` is missing; add it"),
            ("requested_rewrite.target_new.str", " ", "`requested_rewrite.target_new.str` is empty; give it some text"),
            (
                "requested_rewrite.target_true",
                "Africa",
                '`requested_rewrite.target_true` is "Africa"; make it an object',
            ),
            (
                "requested_rewrite.prompt",
                "It is in",
                "the subject 'Angola' is not in the prompt 'It is in'; put {} where",
            ),
            ("paraphrase_prompts", "x", '`paraphrase_prompts` is "x"; make it a list of texts'),
            ("neighborhood_prompts", ["x", 3], "`neighborhood_prompts[1]` is 3; make it text"),
        ],
    )
    def test_bad_record(self, write: Write, key: str, value: Any, problem: str) -> None:
        (said,) = _problems(write("cases.json", [COUNTERFACT, _with(COUNTERFACT, key, value)]))
        assert said.startswith(f"record 2: {problem}")

    def test_contradicting_records_are_read_because_they_are_edited_one_by_one(self, write: Write) -> None:
        other = _with(COUNTERFACT, "requested_rewrite.target_new.str", "Asia")
        assert [case.fact.target for case in read_cases(write("cases.json", [COUNTERFACT, other]))] == [
            "Antarctica",
            "Asia",
        ]


class TestFlatCounterFact:
    def test_case(self, write: Write) -> None:
        assert read_cases(write("cases.json", [FLAT])) == [
            Case(
                fact=Fact("{} was employed in", "Norman Lamont", "Dortmund", id="1602"),
                true_target="London",
                neighborhood=("Kevin Brennan was employed in",),
                neighborhood_target="Bonn",
                generation=("Norman Lamont's favorite lunchtime work meals include",),
            )
        ]

    def test_rephrase_prompt_is_no_paraphrase(self, write: Write) -> None:
        (case,) = read_cases(write("cases.json", [FLAT]))
        assert case.paraphrases == ()

    def test_subject_that_is_not_in_the_prompt_is_reported(self, write: Write) -> None:
        odd = _with(FLAT, "prompt", "Lamont was employed in")
        (said,) = _problems(write("cases.jsonl", [FLAT, odd, FLAT]))
        assert said.startswith("row 2 (line 2): the subject 'Norman Lamont' is not in the prompt 'Lamont was employed in'; ")

    def test_csv(self, write: Write) -> None:
        assert read_cases(write("cases.csv", [FLAT])) == read_cases(write("cases.json", [FLAT]))


class TestZsre:
    def test_case(self, write: Write) -> None:
        first, second = read_cases(write("cases.json", [ZSRE, _with(ZSRE, "subject", "company")]))
        assert first == Case(
            fact=Fact("What company is {} part of?", "Balenciaga", "Kering", id="0"),
            paraphrases=("Which company is Balenciaga's parent company?",),
            neighborhood=("nq question: what river is associated with the city of rome?",),
            neighborhood_target="Tiber",
            scoring="token_accuracy",
        )
        assert second.fact == Fact("What {} is Balenciaga part of?", "company", "Kering", id="1")

    def test_question_mark_is_not_doubled(self, write: Write) -> None:
        (case,) = read_cases(write("cases.json", [_with(ZSRE, "loc", "which river?")]))
        assert case.neighborhood == ("which river?",)

    def test_portability_is_kept_only_where_it_was_written_for_the_target(self, write: Write) -> None:
        asked = {**ZSRE, "portability": {"New Question": "Who founded it?", "New Answer": "Pinault"}}
        other, same = read_cases(write("cases.json", [asked, {**asked, "alt": "Kering"}]))
        assert other.follow_ups == ()
        question = Question("Who founded it?", (("Pinault",),))
        assert same.follow_ups == (FollowUp(name="portability", questions=(question,), scoring="tokens"),)

    @pytest.mark.parametrize(
        ("key", "value", "problem"),
        [
            ("answers", [], "`answers` is empty; give it some text"),
            ("answers", "Kering", '`answers` is "Kering"; make it a list of texts'),
            ("loc_ans", None, "`loc_ans` is missing; add it"),
            ("portability", {"New Question": "Who?"}, "`portability.New Answer` is missing; add it"),
            ("src", "What is it part of?", "the subject 'Balenciaga' is not in the prompt"),
        ],
    )
    def test_bad_record(self, write: Write, key: str, value: Any, problem: str) -> None:
        (said,) = _problems(write("cases.json", [_with(ZSRE, key, value), ZSRE]), format="zsre")
        assert said.startswith(f"record 1: {problem}")


class TestEdits:
    CASE = Case(
        fact=Fact("{} is located in", "Angola", "Antarctica", id="a-1", relation="continent"),
        true_target="Africa",
        paraphrases=("Angola is a part of", "The continent of Angola is"),
        neighborhood=("Ghana is in",),
        neighborhood_target="Africa",
    )

    @pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
    def test_case(self, write: Write, suffix: str) -> None:
        assert read_cases(write(f"edits{suffix}", [EDIT])) == [self.CASE]

    @pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
    def test_three_columns_are_enough(self, write: Write, suffix: str) -> None:
        rows = [PLAIN, {"prompt": "Chad is in", "subject": "Chad", "target": "Asia"}]
        assert read_cases(write(f"edits{suffix}", rows)) == [
            Case(fact=Fact("{} is located in", "Angola", "Antarctica", id="0")),
            Case(fact=Fact("{} is in", "Chad", "Asia", id="1")),
        ]

    @pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
    def test_one_text_stands_for_a_list_of_one(self, write: Write, suffix: str) -> None:
        (case,) = read_cases(write(f"edits{suffix}", [{**EDIT, "paraphrases": "Angola, in", "neighborhood": "Chad, in"}]))
        assert (case.paraphrases, case.neighborhood) == (("Angola, in",), ("Chad, in",))

    @pytest.mark.parametrize(
        ("cell", "paraphrases"),
        [
            ("Angola, in | Angola lies in|", ("Angola, in", "Angola lies in")),
            ('["Angola | in", "Angola lies in"]', ("Angola | in", "Angola lies in")),
            ("[Music] Angola, in", ("[Music] Angola, in",)),
            ("[]", ()),
            (" ", ()),
        ],
    )
    def test_list_cells(self, write: Write, cell: str, paraphrases: tuple[str, ...]) -> None:
        (case,) = read_cases(write("edits.csv", [{**PLAIN, "paraphrases": cell}]))
        assert case.paraphrases == paraphrases

    def test_bar_separates_in_csv_only(self, write: Write) -> None:
        (case,) = read_cases(write("edits.json", [{**PLAIN, "paraphrases": "Angola | in"}]))
        assert case.paraphrases == ("Angola | in",)

    def test_null_is_absent_and_a_number_may_be_an_id(self, write: Write) -> None:
        (case,) = read_cases(write("edits.json", [{**PLAIN, "target_true": None, "paraphrases": None, "id": 7}]))
        assert case == Case(fact=Fact("{} is located in", "Angola", "Antarctica", id="7"))

    def test_space_around_texts_is_dropped(self, write: Write) -> None:
        (case,) = read_cases(write("edits.csv", " prompt, subject, target\n{} is located in , Angola, Antarctica\n"))
        assert case == Case(fact=Fact("{} is located in", "Angola", "Antarctica", id="0"))

    def test_csv_row_may_span_lines_and_leave_cells_out(self, write: Write) -> None:
        rows = 'prompt,subject,target,target_true\r\n"It is said:\n{} is in",Angola,Asia\r\n\r\n{} was,Chad,,\r\n'
        assert _problems(write("edits.csv", rows)) == ("row 2 (line 5): `target` is missing; add it",)
        (case,) = read_cases(write("edits.csv", rows), limit=1)
        assert case.fact.text == "It is said:\nAngola is in"

    def test_repetitions_are_kept(self, write: Write) -> None:
        assert len(read_cases(write("edits.json", [PLAIN, PLAIN]))) == 2

    def test_line_separators_inside_a_json_string_do_not_end_a_row(self, write: Write) -> None:
        row = json.dumps({**PLAIN, "prompt": "So:\u2028{} is in"}, ensure_ascii=False)
        (case,) = read_cases(write("edits.jsonl", row))
        assert case.fact.prompt == "So:\u2028{} is in"

    @pytest.mark.parametrize(
        ("key", "value", "problem"),
        [
            ("target", ..., "`target` is missing; add it"),
            ("target", None, "`target` is missing; add it"),
            ("target", " ", "`target` is empty; give it some text"),
            ("target", 1969, "`target` is 1969; make it text"),
            ("target", float("nan"), "`target` is NaN; make it text"),
            ("target", ["Asia"], '`target` is ["Asia"]; make it text'),
            ("target", "\ud800", "`target` cannot be used: "),
            ("target_true", float("nan"), "`target_true` is NaN; make it text"),
            ("id", 1.5, "`id` is 1.5; make it text"),
            ("subject", "Chad", "the subject 'Chad' is not in the prompt 'Angola is in'; put {} where"),
            ("paraphrases", 7, "`paraphrases` is 7; make it a list of texts"),
            ("paraphrases", ["x", ""], "`paraphrases[1]` is empty; give it some text"),
            ("neighborhood", {"a": 1}, '`neighborhood` is {"a": 1}; make it a list of texts'),
            ("target_tru", "x", "unknown column 'target_tru'. Did you mean 'target_true'? Known: "),
        ],
    )
    def test_bad_row(self, write: Write, key: str, value: Any, problem: str) -> None:
        good = {"prompt": "Angola is in", "subject": "Angola", "target": "Asia"}
        text = f"\n{json.dumps(good)}\n  \n{json.dumps(_with(good, key, value))}\n"
        (said,) = _problems(write("edits.jsonl", text))
        assert said.startswith(f"row 2 (line 4): {problem}")

    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            ("{} is in,Angola,", "row 2 (line 3): `target` is missing; add it"),
            (
                "{} is in,Angola,Asia,[x]",
                "row 2 (line 3): `paraphrases` is not a JSON list: Expecting value at column 2; ",
            ),
            ('{} is in,Angola,Asia,"[""x"", 4]"', "row 2 (line 3): `paraphrases[1]` is 4; make it text"),
            ("{} is in,Angola, the,Asia,x", "row 2 (line 3): has 5 cells under 4 columns; put quotes around"),
            ('"{}" is in,Angola,Asia', "line 3: is not CSV: "),
            ('"{} is in,Angola,Asia', "line 3: is not CSV: "),
        ],
    )
    def test_bad_csv_row(self, write: Write, row: str, problem: str) -> None:
        (said,) = _problems(write("edits.csv", f"prompt,subject,target,paraphrases\n{{}} was in,Angola,Asia\n{row}\n"))
        assert said.startswith(problem)

    def test_csv_header_names_a_column_twice(self, write: Write) -> None:
        (said,) = _problems(write("edits.csv", "prompt,subject,target,target\n{},a,b,c\n"))
        assert said == "line 1: names target twice; keep one column of each"

    def test_every_bad_row_is_reported_at_once(self, write: Write) -> None:
        rows = [
            json.dumps(_with(PLAIN, "target", ...)),
            "{nonsense",
            "[1]",
            json.dumps(PLAIN),
            json.dumps({**PLAIN, "target": 5, "subjct": "x"}),
            json.dumps(_with(PLAIN, "target", ...)),
            json.dumps({**PLAIN, "target": "Asia"}),
        ]
        said = _problems(write("edits.jsonl", "\n".join(rows)))
        assert [problem.split(";")[0].split(". ")[0] for problem in said] == [
            "row 1 (line 1), row 6 (line 6): `target` is missing",
            "row 2 (line 2): is not JSON: Expecting property name enclosed in double quotes at column 2",
            "row 3 (line 3): is [1]",
            "row 5 (line 5): `target` is 5",
            "row 5 (line 5): unknown column 'subjct'",
            "row 7 (line 7): gives 'Angola' the target 'Asia' where row 4 (line 4) gives it 'Antarctica'",
        ]

    @pytest.mark.parametrize(
        "other",
        [
            {**PLAIN, "target": "Asia"},
            {**PLAIN, "target": "Asia", "prompt": "Angola is located in"},
            {**EDIT, "target": "Asia", "prompt": "The continent of {} is"},
        ],
    )
    def test_contradicting_rows_are_refused(self, write: Write, other: dict[str, Any]) -> None:
        (said,) = _problems(write("edits.json", [EDIT, {**PLAIN, "subject": "Chad"}, other]))
        assert said.startswith("record 3: gives 'Angola' the target 'Asia' where record 1 gives it 'Antarctica'")
        assert "; keep one of the two, or use --on-conflict last" in said
        assert ("'Angola is located in'" in said) == ("relation 'continent'" in said) == (other.get("relation") == "continent")

    def test_contradicting_rows_are_read_where_it_is_said_which_counts(self, write: Write) -> None:
        path = write("edits.json", [EDIT, {**PLAIN, "subject": "Chad"}, {**EDIT, "target": "Asia"}])
        assert [case.fact.target for case in read_cases(path, on_conflict="last")] == [PLAIN["target"], "Asia"]
        assert [case.fact.target for case in read_dataset(f"edits:{path}", on_conflict="keep")] == [
            EDIT["target"],
            PLAIN["target"],
            "Asia",
        ]

    @pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
    def test_columns_may_be_separated_by_what_a_spreadsheet_writes(self, write: Write, separator: str) -> None:
        rows = [["prompt", "subject", "target", "note"], ["Angola, as said, is in", "Angola", "Asia", ""]][:2]
        text = "".join(separator.join(f'"{cell}"' for cell in row[:3]) + "\n" for row in rows)
        (case,) = read_cases(write("edits.csv", text))
        assert case.fact == Fact("{}, as said, is in", "Angola", "Asia", "0")

    def test_a_semicolon_in_a_text_separates_nothing(self, write: Write) -> None:
        (case,) = read_cases(write("edits.csv", "prompt,subject,target\nIn short; Angola is in,Angola,Asia; or so\n"))
        assert case.fact.target == "Asia; or so"

    def test_columns_that_fit_no_schema_name_what_separates_them(self, write: Write) -> None:
        (said,) = _problems(write("edits.csv", "prompt;subject;goal\nAngola is in;Angola;Asia\n"))
        assert "separated by a semicolon" in said
        assert "found prompt, subject, goal; expected for `edits`: prompt, subject, target" in said

    def test_messages_stay_short_whatever_the_rows_are(self, write: Write) -> None:
        long = "x" * 200_000
        with pytest.raises(DatasetError) as caught:
            read_cases(write("long.json", [{**PLAIN, "subject": long}, {**PLAIN, "target": [long]}, {**PLAIN, "target": " "}]))
        assert len(str(caught.value)) < 2000
        with pytest.raises(DatasetError) as caught:
            read_cases(write("many.json", [{**PLAIN, "prompt": f"number {number}"} for number in range(1000)]))
        assert len(caught.value.problems) == 1000
        assert "and 980 more problems" in str(caught.value)
        with pytest.raises(DatasetError) as caught:
            read_cases(write("same.json", [{**PLAIN, "target": ""} for _ in range(1000)]))
        assert "and 980 more" in str(caught.value)
        with pytest.raises(DatasetError) as caught:
            read_cases(write("keys.json", [{long: 1}]))
        assert len(str(caught.value)) < 1000


# -- whole files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.json", "", "is empty; it should hold one record per edit"),
        ("blank.jsonl", "\n \n", "is empty; it should hold one record per edit"),
        ("bom.csv", b"\xef\xbb\xbf", "is empty; it should hold one record per edit"),
        ("none.json", "[]", "holds no records; it should hold one per edit"),
        ("header.csv", "prompt,subject,target\n", "holds no records; it should hold one per edit"),
        ("one.json", json.dumps(PLAIN), "line 1: does not open a list; put `[` and `]` around the records"),
        (
            "broken.json",
            '[{"prompt": "x"},\n{"prompt" "y"}]',
            "line 2: is not JSON: Expecting ':' delimiter at column 11;",
        ),
        ("lines.json", '{"a": 1}\n{"a": 2}', "line 2: is not JSON: Extra data at column 1; name the file .jsonl"),
        ("deep.json", "[" * 100_000, "line 1: is not JSON: Lists or objects are nested more than 100 deep"),
        ("digits.json", f"[{'9' * 5000}]", "line 1: is not JSON: A number too long to be read"),
        ("broken.jsonl", '{"prompt":', "row 1 (line 1): is not JSON: Expecting value at column 11; write one record"),
        ("scalars.json", "[5]", "record 1: is 5; make it an object with keys"),
        (
            "latin.csv",
            "prompt,subject,target\n{},a,b\n{},c,é\n".encode("latin-1"),
            "line 3: is not UTF-8 text; save the",
        ),
        ("utf16.json", "[]".encode("utf-16"), "line 1: is not UTF-8 text; save the file in that encoding"),
        (
            "other.json",
            '[{"question": "x", "answer": "y"}]',
            f"looks like none of {', '.join(SCHEMAS)}: found the keys answer, question; "
            "expected for `edits`: prompt, subject, target.",
        ),
        (
            "typo.csv",
            "promt,subject,target\n{},a,b\n",
            f"looks like none of {', '.join(SCHEMAS)}: found the keys promt, subject, target; "
            "expected for `edits`: prompt, subject, target. Is 'promt' meant to be 'prompt'?",
        ),
    ],
)
def test_bad_file(write: Write, name: str, content: str | bytes, problem: str) -> None:
    (said,) = _problems(write(name, content))
    assert said.startswith(problem)


def test_unrecognised_and_malformed_rows_are_both_reported(write: Write) -> None:
    said = _problems(write("edits.jsonl", '{"a": 1}\n{'))
    assert [problem.split(":")[0] for problem in said] == [
        "row 2 (line 2)",
        f"looks like none of {', '.join(SCHEMAS)}",
    ]


def test_records_without_keys_are_asked_for_those_of_edits(write: Write) -> None:
    assert _problems(write("edits.json", "[{}]")) == (
        "record 1: `prompt` is missing; add it",
        "record 1: `subject` is missing; add it",
        "record 1: `target` is missing; add it",
    )


def test_missing_file(tmp_path: Path) -> None:
    assert _problems(tmp_path / "none.json") == ("there is no such file; check the path",)


def test_folder(tmp_path: Path) -> None:
    assert _problems(tmp_path) == ("is a folder; name a file in it",)


def test_unreadable_file(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    path = write("edits.json", [PLAIN])
    monkeypatch.setattr(Path, "open", refuse)
    assert _problems(path) == ("cannot be read: Permission denied",)


def test_error_is_an_input_error_with_one_line_per_problem(write: Write) -> None:
    path = write("edits.json", [{**PLAIN, "target": 1, "prompt": 2}])
    with pytest.raises(InputError) as caught:
        read_cases(path)
    assert str(caught.value).splitlines() == [
        f"{path}: record 1: `prompt` is 2; make it text",
        f"{path}: record 1: `target` is 1; make it text",
    ]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_byte_order_mark_is_passed_over(write: Write, suffix: str) -> None:
    path = write(f"edits{suffix}", b"\xef\xbb\xbf" + _encode([EDIT], suffix).encode())
    assert read_cases(path) == [TestEdits.CASE]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
@pytest.mark.parametrize("name", ["edits", "edits.txt"])
def test_container_is_told_by_the_content_where_the_suffix_says_nothing(write: Write, name: str, suffix: str) -> None:
    assert read_cases(write(name, f"\n{_encode([EDIT], suffix)}")) == [TestEdits.CASE]


def test_suffix_in_capitals(write: Write) -> None:
    assert read_cases(write("EDITS.NDJSON", json.dumps(EDIT))) == [TestEdits.CASE]


def test_unknown_format(write: Write) -> None:
    (said,) = _problems(write("edits.json", [EDIT]), format="counterfacts")
    assert said.startswith("unknown format 'counterfacts'. Did you mean 'counterfact'? Known: ")


def test_format_overrules_recognition(write: Write) -> None:
    assert "record 1: `case_id` is missing; add it" in _problems(write("edits.json", [EDIT]), format="counterfact-flat")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_limit_reads_the_first_rows_and_leaves_the_rest_alone(write: Write, suffix: str) -> None:
    path = write(f"edits{suffix}", [{**PLAIN, "subject": name} for name in "ABC"] + [{"prompt": "nothing else"}])
    assert [case.fact.subject for case in read_cases(path, limit=2)] == ["A", "B"]
    assert [case.fact.subject for case in read_cases(path, limit=3)] == ["A", "B", "C"]
    assert len(_problems(path, limit=4)) == 2


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one_is_refused(write: Write, limit: int) -> None:
    assert _problems(write("edits.json", [EDIT]), limit=limit) == (f"the limit is {limit}; ask for at least one case",)


# -- any rows ------------------------------------------------------------------------------------------------------

TEXTS = (
    st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="{}") | st.sampled_from('\n|,"[]'), min_size=1)
    .map(str.strip)
    .filter(bool)
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"prompt": TEXTS.map(lambda text: f"{{}} {text}"), "subject": TEXTS, "target": TEXTS},
        optional={
            "target_true": TEXTS,
            "paraphrases": st.lists(TEXTS, max_size=3),
            "neighborhood": st.lists(TEXTS, max_size=3),
            "id": TEXTS,
            "relation": TEXTS,
        },
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda row: str(row["subject"]),
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_edits_read_back_equal_from_every_container(rows: list[dict[str, Any]]) -> None:
    expected = [
        Case(
            fact=Fact(row["prompt"], row["subject"], row["target"], row.get("id", str(position)), row.get("relation")),
            true_target=row.get("target_true"),
            paraphrases=tuple(row.get("paraphrases", ())),
            neighborhood=tuple(row.get("neighborhood", ())),
            neighborhood_target=row.get("target_true"),
        )
        for position, row in enumerate(rows)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for suffix in (".json", ".jsonl", ".csv"):
            path = Path(folder) / f"edits{suffix}"
            path.write_bytes(_encode(rows, suffix).encode())
            assert read_cases(path) == expected


# -- names of data sets --------------------------------------------------------------------------------------------


class TestReadDataset:
    def test_file_alone(self, write: Write) -> None:
        path = str(write("edits.csv", [PLAIN, {**PLAIN, "subject": "Chad"}]))
        assert read_dataset(path) == read_cases(path)
        assert len(read_dataset(path, 1)) == len(read_dataset(f"edits:{path}", 1)) == 1

    def test_existing_file_with_a_colon_in_its_name_wins(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write("zsre:edits.json", [EDIT])
        write("edits.json", [ZSRE])
        monkeypatch.chdir(path.parent)
        assert read_dataset("zsre:edits.json") == [TestEdits.CASE]

    @pytest.mark.parametrize(
        ("spec", "problem"),
        [
            ("counterfakt:x.json", "unknown data set 'counterfakt'. Did you mean 'counterfact'? Known: counterfact, "),
            ("zsre:", "no file is named; write zsre:FILE"),
            ("zsre:none.json", "there is no such file"),
            (r"C:\edits.json", "there is no such file"),
            ("folder/a:b.json", "there is no such file"),
            ("none.json", "there is no such file"),
            ("world:", "unknown schema of the world ''"),
            ("world:counterfacts", "unknown schema of the world 'counterfacts'. Did you mean 'counterfact'?"),
            ("world:zsre:one", "the seed 'one' is not a whole number; write world:zsre:0"),
        ],
    )
    def test_unknown(self, spec: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DatasetError) as caught:
            read_dataset(spec)
        assert caught.value.problems[0].startswith(problem)

    def test_world_counterfact(self) -> None:
        cases = read_dataset("world:counterfact", 5)
        assert len(cases) == 5
        assert all(len(case.neighborhood) == 10 and len(case.paraphrases) == 2 for case in cases)
        assert cases == read_dataset("world:counterfact:0")[:5]
        assert cases != read_dataset("world:counterfact:1", 5)

    def test_world_zsre(self) -> None:
        cases = read_dataset("world:zsre:7", 3)
        assert [case.scoring for case in cases] == ["token_accuracy"] * 3
        assert [case.fact.id for case in cases] == ["0", "1", "2"]

    def test_limit_below_one_is_refused(self) -> None:
        with pytest.raises(DatasetError, match="ask for at least one case"):
            read_dataset("world:zsre", 0)


# -- published files -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published samples beside the checkout")
class TestPublished:
    def test_counterfact(self) -> None:
        cases = read_cases(SHARED / "counterfact" / "counterfact_200.json")
        assert len(cases) == 200
        assert all(len(case.paraphrases) == 2 and len(case.neighborhood) == 10 for case in cases)
        assert all(case.fact.relation and case.neighborhood_target == case.true_target for case in cases)

    def test_flat_counterfact(self) -> None:
        path = SHARED / "counterfact" / "counterfact_flat_1000.json"
        cases = read_cases(path)
        assert len(cases) == len(json.loads(path.read_text(encoding="utf-8"))) == 1000
        assert all(len(case.generation) == len(case.neighborhood) == 1 and not case.paraphrases for case in cases)
        assert len(conflicts([case.fact for case in cases])) == 4

    def test_zsre(self) -> None:
        cases = read_cases(SHARED / "zsre" / "zsre_eval_300.json")
        assert len(cases) == 300
        assert all(case.neighborhood[0].endswith("?") and case.paraphrases and case.fact.target for case in cases)

    def test_tracing_prompts_are_no_cases(self) -> None:
        (said,) = _problems(SHARED / "tracing" / "known_1000.json")
        assert said.startswith("looks like none of")
