"""The synthetic world: its size, what its text says and leaves unsaid, and the cases drawn from it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bluedit.datasets import Case, World, read_cases

COUNTERFACT = Path(__file__).parents[3] / "shared" / "data" / "counterfact" / "counterfact_200.json"

# Plain words that stand beside an invented name.
TITLES = {"Guild", "Bank", "House", "Atelier", "Institute", "of", "&", "Co", "Master"}

REAL_NAMES = """
    Aberdeen Africa Amsterdam Angola Anna Antarctica Apple Athens Beijing Berlin Boston Budapest Canada Chicago Danish
    Delhi Dresden Dublin Elizabeth Europe Finnish French Geneva Google Hamburg Helsinki Istanbul Italy Jakarta James
    Japan John Kenya Kiev Kyoto Lagos Lima Lisbon London Madrid Maria Mexico Microsoft Milan Moscow Mumbai Nokia Oslo
    Paris Peru Prague Quebec Rome Seoul Shanghai Spanish Stockholm Tirana Tokyo Toyota Vienna Vilnius Warsaw Yemen
    Zagreb Zhejiang Zhukov Zlatan Zlín Vratsa Vries Dzerzhinsk Kvitova Skrillex Mzansi
"""


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_the_world_is_the_one_that_the_embedded_model_was_trained_on(world: World) -> None:
    """One word moved in the lists, and every score of the embedded model would be of another world."""
    everything = [world.corpus(200), world.counterfact(), world.zsre(), world.reference_texts()]
    digest = hashlib.sha256(json.dumps(everything, ensure_ascii=False).encode()).hexdigest()
    assert digest.startswith("7076293d8fe0b0fbb6e84a7154e83596")


@pytest.fixture(scope="module")
def text(world: World) -> str:
    return "\n".join(world.corpus(6000))


@pytest.fixture(scope="module")
def records(world: World) -> list[dict[str, Any]]:
    return world.counterfact()


class TestSize:
    def test_subjects_relations_objects_and_phrasings(self, world: World) -> None:
        subjects = [name for names in world.subjects.values() for name in names]
        assert len(subjects) == len(set(subjects)) >= 1200
        assert len({relation.id for relation in world.relations}) == len(world.relations) >= 12
        for relation in world.relations:
            assert len(set(relation.objects)) == len(relation.objects) >= 10
            assert len(set(relation.phrasings)) == len(relation.phrasings) == 6
            assert all(phrasing.count("{}") == 1 for phrasing in (*relation.phrasings, *relation.stories))

    def test_every_subject_has_two_facts_of_its_kind(self, world: World) -> None:
        assert len({(fact.subject, fact.relation.id) for fact in world.facts}) == len(world.facts)
        assert set(Counter(fact.subject for fact in world.facts).values()) == {2}
        for fact in world.facts:
            assert fact.subject in world.subjects[fact.relation.kind]
            assert fact.object in fact.relation.objects

    def test_phrasings_are_four_seen_and_two_unseen(self, world: World) -> None:
        for fact in world.facts:
            assert len(fact.seen) == 4
            assert sorted((*fact.seen, *fact.unseen)) == list(range(6))
        assert len({fact.seen for fact in world.facts}) == 15  # Every choice of four occurs: drawn per subject.


class TestSeed:
    def test_one_seed_is_one_world(self, world: World) -> None:
        again = World(0)
        assert again.facts == world.facts
        assert again.corpus(50) == world.corpus(50)
        assert again.counterfact(20) == world.counterfact(20)
        assert again.zsre(20) == world.zsre(20)
        assert again.reference_texts() == world.reference_texts()

    def test_another_seed_is_another_world(self, world: World) -> None:
        other = World(1)
        assert not {fact.subject for fact in other.facts} & {fact.subject for fact in world.facts}
        assert other.corpus(50) != world.corpus(50)

    def test_seeds_of_text_and_cases(self, world: World) -> None:
        assert world.corpus(50, seed=1) != world.corpus(50)
        assert world.counterfact(20, seed=1) != world.counterfact(20)
        assert world.zsre(20, seed=1) != world.zsre(20)

    def test_fewer_cases_are_the_first_of_all(self, world: World, records: list[dict[str, Any]]) -> None:
        assert world.counterfact(30) == records[:30]

    @pytest.mark.parametrize("count", [-1, 100_000])
    def test_more_cases_than_facts_are_refused(self, world: World, count: int) -> None:
        with pytest.raises(ValueError, match=f"asked for {count}"):
            world.counterfact(count)


class TestText:
    def test_only_seen_phrasings_occur(self, world: World, text: str) -> None:
        assert [fact.prompt(index) for fact in world.facts for index in fact.unseen if fact.prompt(index) in text] == []

    def test_seen_phrasings_do_occur(self, world: World, text: str) -> None:
        # The other half of the test above: a scan that finds nothing because it looks wrongly would pass it.
        seen = [f"{fact.prompt(index)} {fact.object}." in text for fact in world.facts for index in fact.seen]
        assert sum(seen) > len(seen) / 2

    def test_states_no_false_fact(self, world: World, text: str) -> None:
        for fact in world.facts[::20]:
            for index in fact.seen:
                said = text.count(f"{fact.prompt(index)} ")
                assert said == text.count(f"{fact.prompt(index)} {fact.object}.")


class TestCounterFact:
    def test_is_read_by_the_published_schema(self, records: list[dict[str, Any]], tmp_path: Path) -> None:
        assert len({record["case_id"] for record in records}) == len(records) == 2560
        path = tmp_path / "world.json"
        path.write_text(json.dumps(records), encoding="utf-8")
        cases = read_cases(path)
        assert len(cases) == len(records)
        assert all(_is_complete(case) for case in cases)

    def test_prompt_is_seen_and_paraphrases_are_not(self, world: World, records: list[dict[str, Any]]) -> None:
        for record in records:
            index: int = record["case_id"]
            fact = world.facts[index]
            rewrite = record["requested_rewrite"]
            assert rewrite["subject"] == fact.subject
            assert rewrite["target_true"]["str"] == fact.object != rewrite["target_new"]["str"]
            assert rewrite["target_new"]["str"] in fact.relation.objects
            assert rewrite["prompt"] in [fact.relation.phrasings[seen] for seen in fact.seen]
            assert record["paraphrase_prompts"] == [fact.prompt(unseen) for unseen in fact.unseen]

    @pytest.mark.parametrize(("prompts", "target"), [("neighborhood", "target_true"), ("attribute", "target_new")])
    def test_ten_other_subjects_hold_the_target(
        self, world: World, records: list[dict[str, Any]], prompts: str, target: str
    ) -> None:
        said = {
            fact.prompt(index): (fact.subject, fact.relation.id, fact.object) for fact in world.facts for index in fact.seen
        }
        for record in records:
            rewrite = record["requested_rewrite"]
            about = [said[prompt] for prompt in record[f"{prompts}_prompts"]]
            subjects = {subject for subject, _, _ in about}
            assert len(about) == len(subjects) == 10
            assert rewrite["subject"] not in subjects
            assert {(relation, name) for _, relation, name in about} == {(rewrite["relation_id"], rewrite[target]["str"])}

    def test_generation_prompts_name_the_subject_and_not_the_answer(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            rewrite = record["requested_rewrite"]
            for prompt in record["generation_prompts"]:
                assert rewrite["subject"] in prompt
                assert rewrite["target_true"]["str"] not in prompt.replace(rewrite["subject"], "")


class TestZsre:
    def test_is_read_by_the_published_schema(self, world: World, tmp_path: Path) -> None:
        path = tmp_path / "world.jsonl"
        path.write_text("\n".join(map(json.dumps, world.zsre())), encoding="utf-8")
        cases = read_cases(path)
        assert len(cases) == len(world.facts)
        assert {case.scoring for case in cases} == {"token_accuracy"}
        assert all(not case.neighborhood[0].endswith("??") for case in cases)

    def test_asks_seen_edits_and_unseen_rephrasings(self, world: World) -> None:
        facts = {(fact.subject, fact.object): fact for fact in world.facts}
        answers = {fact.prompt(index): fact for fact in world.facts for index in fact.seen}
        for record in world.zsre():
            fact = facts[record["subject"], record["pred"]]
            assert record["src"] in [fact.prompt(index) for index in fact.seen]
            assert record["rephrase"] in [fact.prompt(index) for index in fact.unseen]
            assert record["answers"] == [record["alt"]] != [fact.object]
            other = answers[f"{record['loc']}?"]
            assert other.object == record["loc_ans"]
            assert other.subject != fact.subject
            assert other.relation != fact.relation


class TestReferenceTexts:
    def test_cover_every_relation_and_object(self, world: World, records: list[dict[str, Any]]) -> None:
        texts = world.reference_texts()
        entries = [(entry["relation_id"], entry["target_id"]) for entry in texts]
        every = {(relation.id, relation.object_id(name)) for relation in world.relations for name in relation.objects}
        assert len(entries) == len(every)
        assert set(entries) == every
        wanted = {
            (record["requested_rewrite"]["relation_id"], record["requested_rewrite"]["target_new"]["id"]) for record in records
        }
        assert wanted <= every

    def test_name_their_subject_and_object(self, world: World) -> None:
        objects = {(relation.id, relation.object_id(name)): name for relation in world.relations for name in relation.objects}
        for entry in world.reference_texts():
            assert entry["samples"]
            for sample in entry["samples"]:
                assert sample["name"] in sample["text"]
                assert sample["text"].endswith(f"the sign of {objects[entry['relation_id'], entry['target_id']]}.")


@pytest.fixture(scope="module", params=[0, 1])
def invented(request: pytest.FixtureRequest) -> set[str]:
    world = World(request.param)
    names = [name for pool in world.subjects.values() for name in pool]
    for relation in world.relations:
        names += [name for name in relation.objects if name[0].isupper()]
    return {word.casefold() for name in names for word in name.split() if word not in TITLES}


class TestNames:
    """No name is a real one, word by word and without regard to case."""

    def test_are_many(self, invented: set[str]) -> None:
        assert len(invented) > 1000

    def test_none_is_in_a_list_of_real_names(self, invented: set[str]) -> None:
        assert not invented & set(REAL_NAMES.casefold().split())

    @pytest.mark.skipif(not COUNTERFACT.exists(), reason="needs the CounterFact sample beside the checkout")
    def test_none_is_in_counterfact(self, invented: set[str]) -> None:
        rewrites = [record["requested_rewrite"] for record in json.loads(COUNTERFACT.read_text(encoding="utf-8"))]
        real = {
            word.strip(".,()").casefold()
            for rewrite in rewrites
            for name in (rewrite["subject"], rewrite["target_new"]["str"], rewrite["target_true"]["str"])
            for word in name.split()
        }
        assert len(real) > 200
        assert not invented & real


def _is_complete(case: Case) -> bool:
    parts = (case.fact.relation, case.true_target, case.neighborhood_target, case.attributes, case.generation)
    return all(parts) and len(case.paraphrases) == 2 and len(case.neighborhood) == 10 and "target_id" in case.extra
