"""Facts: where the subject is found in a prompt, and which facts cannot be edited together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bluedit.errors import FactError, InputError, SettingsError
from bluedit.facts import Fact, check_facts, check_on_conflict, conflicts

PARIS = Fact("The twin city of {} is", "Istanbul", "Paris", relation="P190")
ROME = Fact("{} is twinned with", "Istanbul", "Rome", relation="P190")


class TestSubject:
    @pytest.mark.parametrize(
        ("prompt", "subject", "stored"),
        [
            pytest.param("{} is located in", "Angola", "{} is located in", id="placeholder"),
            pytest.param("Angola is located in", "Angola", "{} is located in", id="at the start"),
            pytest.param("The continent of Angola", "Angola", "The continent of {}", id="at the end"),
            pytest.param("Angola", "Angola", "{}", id="alone"),
            pytest.param("Rome, I mean Rome, is in", "Rome", "Rome, I mean {}, is in", id="repeated"),
            pytest.param("Ann met Annie who", "Ann", "{} met Annie who", id="whole word over a later part of one"),
            pytest.param("The Annie of", "Ann", "The {}ie of", id="part of a word where there is no other"),
            pytest.param("Côte d'Ivoire is in", "Côte d'Ivoire", "{} is in", id="accents"),
            pytest.param("東京は日本の", "東京", "{}は日本の", id="no spaces between words"),
            pytest.param(
                "Who plays C++ (2nd)? C++ (2nd) does", "C++ (2nd)", "Who plays C++ (2nd)? {} does", id="metacharacters"
            ),
            pytest.param("The cost of a.b and axb is", "a.b", "The cost of {} and axb is", id="a dot is only a dot"),
            pytest.param(r"The folder \d is", r"\d", "The folder {} is", id="backslash"),
        ],
    )
    def test_is_found_in_the_prompt(self, prompt: str, subject: str, stored: str) -> None:
        fact = Fact(prompt, subject, "x")
        assert fact.prompt == stored
        assert fact.text == prompt.replace("{}", subject)

    def test_not_in_the_prompt_is_refused_with_the_fix(self) -> None:
        with pytest.raises(FactError, match=r"'Angola' is not in the prompt 'Zambia is in'; put \{\} where"):
            Fact("Zambia is in", "Angola", "Asia")

    @pytest.mark.parametrize("part", ["prompt", "subject", "target"])
    @pytest.mark.parametrize("blank", ["", " \n"])
    def test_empty_parts_are_refused_by_name(self, part: str, blank: str) -> None:
        parts = {"prompt": "{} is in", "subject": "Angola", "target": "Asia", part: blank}
        with pytest.raises(FactError, match=f"the {part} is empty"):
            Fact(**parts)

    def test_target_loses_the_space_around_it(self) -> None:
        assert Fact("{} is in", "Angola", " Asia ").target == "Asia"

    def test_error_is_an_input_error(self) -> None:
        assert issubclass(FactError, InputError)
        assert issubclass(FactError, ValueError)


class TestSubjectSpan:
    @pytest.mark.parametrize(
        ("prompt", "subject", "template", "start"),
        [
            ("{} is in", "Angola", "{}", 0),
            ("The continent of {}", "Angola", "{}", 17),
            ("Angola is in", "Angola", "The cart. {}", 10),
            ("{} is in", "Angola", "Before. {} After.", 8),
            ("{} and again {} is", "Rome", "{}", 15),
            ("{} and again {} is", "Rome", "So. {}", 19),
            ("Ø and {} is", "Łódź ☃", "{}", 6),
        ],
    )
    def test_points_at_the_last_occurrence(self, prompt: str, subject: str, template: str, start: int) -> None:
        fact = Fact(prompt, subject, "x")
        text, first, end = fact.subject_span(template)
        assert text == template.replace("{}", fact.text)
        assert first == start
        assert text[first:end] == subject
        assert subject not in text[end:]

    def test_two_placeholders_are_both_filled(self) -> None:
        assert Fact("{} and {} are", "Rome", "x").text == "Rome and Rome are"


class TestFromValue:
    def test_mapping_and_fact_are_the_same(self) -> None:
        fact = Fact("{} is in", "Angola", "Asia", id="7", relation="P30")
        assert Fact.from_value(fact) is fact
        value = {"prompt": "{} is in", "subject": "Angola", "target": "Asia", "id": "7", "relation": "P30"}
        assert Fact.from_value(value) == fact

    def test_missing_keys_are_named(self) -> None:
        with pytest.raises(FactError, match=r"lacks subject, target$"):
            Fact.from_value({"prompt": "{} is in"})

    def test_unknown_keys_are_named_with_the_known(self) -> None:
        with pytest.raises(FactError, match=r"no answer, topic; it takes prompt, subject, target, id, relation"):
            Fact.from_value({"prompt": "{} is in", "subject": "Angola", "topic": 1, "answer": "Asia"})


ASIA = Fact("{} is in", "Angola", "Asia")
EUROPE = Fact("{} is in", "Angola", "Europe")


class TestConflicts:
    def test_same_prompt_with_two_targets(self) -> None:
        assert conflicts([ASIA, EUROPE]) == [(0, 1)]

    def test_prompts_are_the_same_however_the_subject_is_written(self) -> None:
        assert conflicts([ASIA, Fact("Angola is in", "Angola", "Europe")]) == [(0, 1)]

    def test_same_relation_in_other_words(self) -> None:
        one = Fact("{} is in", "Angola", "Asia", relation="P30")
        other = Fact("The continent of {} is", "Angola", "Europe", relation="P30")
        assert conflicts([one, other]) == [(0, 1)]

    def test_same_prompt_where_only_one_names_its_relation(self) -> None:
        assert conflicts([Fact("{} is in", "Angola", "Asia", relation="P30"), EUROPE]) == [(0, 1)]

    def test_every_later_row_is_reported_once_against_the_first(self) -> None:
        facts = [ASIA, ASIA, EUROPE, Fact("{} is in", "Zambia", "Asia"), Fact("{} is in", "Angola", "Oceania")]
        assert conflicts(facts) == [(0, 2), (0, 4)]

    @pytest.mark.parametrize(
        "other",
        [
            pytest.param(ASIA, id="repetition"),
            pytest.param(Fact("{} is in", "Zambia", "Europe"), id="another subject"),
            pytest.param(Fact("The capital of {} is", "Angola", "Luanda"), id="another question"),
        ],
    )
    def test_none(self, other: Fact) -> None:
        assert conflicts([ASIA, other]) == []


class TestCheckFacts:
    def test_numbers_facts_and_keeps_given_ids(self) -> None:
        facts: list[Fact | dict[str, Any]] = [
            ASIA,
            Fact("{} is in", "Zambia", "Asia", id="z"),
            {"prompt": "{} is in", "subject": "Chad", "target": "Asia"},
        ]
        checked = check_facts(facts)
        assert [fact.id for fact in checked] == ["0", "z", "2"]
        assert [fact.subject for fact in checked] == ["Angola", "Zambia", "Chad"]

    def test_repetitions_are_dropped(self) -> None:
        checked = check_facts([ASIA, Fact("Angola is in", "Angola", "Asia "), Fact("{} is in", "Chad", "Asia")])
        assert [(fact.subject, fact.id) for fact in checked] == [("Angola", "0"), ("Chad", "2")]

    def test_contradictions_are_refused_with_ids_targets_and_the_fix(self) -> None:
        with pytest.raises(FactError, match=r"facts 0 and 2 give 'Angola' two targets .*'Asia' and 'Europe'; keep one"):
            check_facts([ASIA, ASIA, EUROPE])

    def test_a_contradiction_by_relation_says_so_and_how_both_are_kept(self) -> None:
        with pytest.raises(FactError) as caught:
            check_facts([PARIS, ROME])
        for part in (
            "The twin city of Istanbul is",
            "Istanbul is twinned with",
            "relation 'P190'",
            "--on-conflict last",
            "keep",
        ):
            assert part in str(caught.value)

    @pytest.mark.parametrize(
        ("facts", "kept"),
        [
            ([PARIS, ROME], ["Rome"]),
            ([ROME, PARIS], ["Paris"]),
            ([PARIS, ASIA, ROME], ["Asia", "Rome"]),
            # What was said again was said later.
            ([ASIA, EUROPE, ASIA], ["Asia"]),
            # The first fact contradicts only one that has lost itself.
            ([PARIS, ROME, replace(ROME, prompt="{} is twinned with", target="Paris")], ["Paris", "Paris"]),
        ],
    )
    def test_the_later_of_two_that_contradict_each_other_stays(self, facts: list[Fact], kept: list[str]) -> None:
        checked = check_facts(facts, on_conflict="last")
        assert [fact.target for fact in checked] == kept
        assert conflicts(checked) == []

    def test_both_of_two_that_contradict_each_other_are_kept(self) -> None:
        checked = check_facts([PARIS, ROME, PARIS], on_conflict="keep")
        assert [(fact.target, fact.id) for fact in checked] == [("Paris", "0"), ("Rome", "1")]

    def test_another_way_with_conflicts_is_refused(self) -> None:
        assert check_on_conflict("last") == "last"
        with pytest.raises(SettingsError, match="unknown on_conflict 'first'"):
            check_on_conflict("first")

    def test_messages_stay_short_whatever_the_facts_are(self) -> None:
        long = "x" * 200_000
        with pytest.raises(FactError) as caught:
            Fact("Angola is in", long, "Asia")
        assert len(str(caught.value)) < 500
        with pytest.raises(FactError) as caught:
            check_facts([Fact(f"{{}} {number}", long, target) for number in range(100) for target in (long, "y" + long)])
        assert len(str(caught.value)) < 10_000
        assert "and 90 more such pairs" in str(caught.value)

    def test_no_facts(self) -> None:
        assert check_facts([]) == ()
