"""The synthetic world: invented people, towns and organisations, and everything said about them.

A language model trained on this world's text knows facts that exist nowhere else, so an edit of one of them
can be scored exactly: what it should change, what it must leave alone, and which phrasings are truly new.

*Concept.* A world is a set of facts `(subject, relation, object)`. Every relation has six phrasings; each
subject is written about with only four of them, drawn for that subject. The other two never occur with it, so an
answer to them is generalisation, not recall. Most phrasings name the subject before they say what is asked, as most
prompts of CounterFact do: what a model knows of a subject has to be there before the question is.

*Mechanism.* Everything is drawn from one seed. Names are assembled from syllables that always hold a consonant
cluster no common language starts a syllable with, so no real person or place is named. Documents are produced
by :meth:`World.document` from a caller's random generator: training can therefore be resumed at any step.

*Schemas.* :meth:`World.counterfact` and :meth:`World.zsre` give editing cases in the published CounterFact and
zsRE (MEND) schemas, and :meth:`World.reference_texts` the texts that consistency is measured against, in the
schema of ROME's `attribute_snippets.json`.
"""

from __future__ import annotations

import functools
import itertools
import random
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

__all__ = ["Relation", "World", "WorldFact"]

PHRASINGS_SEEN = 4
"""How many of a relation's six phrasings occur in the training text with one subject."""

NEIGHBORHOOD_SIZE = 10
"""Neighborhood and attribute prompts of a case, as in CounterFact."""

_POOL_SIZE = 12


@dataclass(frozen=True, kw_only=True)
class _WordLists:
    """The lists of `world_words.toml`, whose order is part of the world."""

    names: dict[str, list[Any]]
    kinds: dict[str, dict[str, Any]]
    hallmarks: dict[str, list[str]]
    text: dict[str, Any]
    relations: list[dict[str, Any]]


@functools.cache
def _word_lists() -> _WordLists:
    """Read when the first world is made; constants, so one copy serves every world."""
    return _WordLists(**tomllib.loads(files(__package__ or "").joinpath("world_words.toml").read_text(encoding="utf-8")))


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One relation: its possible objects and the ways of saying it.

    `phrasings` hold `{}` for the subject and are followed by the object; the last two are questions.
    `stories` open a sentence that continues with the object's hallmark and names the object: they are the
    generation prompts, whose continuation should fit the object without having asked for it.
    """

    id: str
    kind: str
    objects: tuple[str, ...]
    phrasings: tuple[str, ...]
    stories: tuple[str, ...]

    def object_id(self, name: str) -> str:
        """A stable identifier of an object, in place of CounterFact's Wikidata id."""
        return f"{self.id}-{self.objects.index(name)}"


@dataclass(frozen=True)
class WorldFact:
    """`subject` stands in `relation` to `object`; `seen` are the phrasings that training text uses."""

    subject: str
    relation: Relation
    object: str
    seen: tuple[int, ...]

    @property
    def unseen(self) -> tuple[int, ...]:
        """The phrasings that never occur with this subject."""
        return tuple(index for index in range(len(self.relation.phrasings)) if index not in self.seen)

    @property
    def subject_first(self) -> tuple[int, ...]:
        """The seen phrasings that open with the subject; at least two, since four of the six do."""
        return tuple(index for index in self.seen if self.relation.phrasings[index].startswith("{}"))

    def prompt(self, phrasing: int) -> str:
        """The phrasing with the subject in it, up to where the object is due."""
        return self.relation.phrasings[phrasing].format(self.subject)


class _Names:
    """Draws invented names, never the same twice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._parts = _word_lists().names
        self._used: set[str] = set()

    def word(self) -> str:
        """A new name of two or three syllables, one of them opening with an unusual cluster."""
        parts = self._parts
        while True:
            count = self._rng.choice((2, 2, 3))
            unusual = self._rng.randrange(count)
            syllables = [
                self._rng.choice(parts["clusters"] if index == unusual else parts["onsets"])
                + self._rng.choices(parts["vowels"], parts["vowel_weights"])[0]
                for index in range(count)
            ]
            name = ("".join(syllables) + self._rng.choice(parts["codas"])).capitalize()
            if name not in self._used:
                self._used.add(name)
                return name

    def words(self, count: int) -> tuple[str, ...]:
        return tuple(self.word() for _ in range(count))


class World:
    """A seeded world of 1,280 subjects and 2,560 facts in 13 relations with 12 objects each.

    **Arguments**

    - `seed`: determines every name, fact and phrasing. Worlds with one seed are equal in every process and on
      every machine (only :class:`random.Random` is used).

    **Attributes**

    - `relations`: the relations, in a fixed order.
    - `facts`: every fact; each subject has two, of different relations.
    - `hallmarks`: per (relation id, object) the thing that goes with the object in stories.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        rng, words = random.Random(f"bluedit-world/{seed}"), _word_lists()
        names = _Names(rng)
        pools = {
            "city": names.words(_POOL_SIZE),
            "country": names.words(_POOL_SIZE),
            "river": names.words(_POOL_SIZE),
            "language": tuple(f"{name}ish" for name in names.words(_POOL_SIZE)),
            "employer": tuple(f"{name} & Co" for name in names.words(_POOL_SIZE)),
            "founder": tuple(f"Master {name}" for name in names.words(_POOL_SIZE)),
        }
        self.relations = tuple(
            Relation(
                id=row["id"],
                kind=row["kind"],
                objects=pools[row["objects"]] if isinstance(row["objects"], str) else tuple(row["objects"]),
                phrasings=tuple(row["phrasings"]),
                stories=tuple(row["stories"]),
            )
            for row in words.relations
        )
        hallmarks = [
            f"{colour} {thing}" for colour, thing in itertools.product(words.hallmarks["colours"], words.hallmarks["things"])
        ]
        rng.shuffle(hallmarks)
        pairs = [(relation.id, name) for relation in self.relations for name in relation.objects]
        self.hallmarks: dict[tuple[str, str], str] = dict(zip(pairs, hallmarks, strict=True))
        self.subjects = _draw_subjects(rng, names)
        self.facts = self._draw_facts(rng)
        self._holders: defaultdict[tuple[str, str], list[WorldFact]] = defaultdict(list)
        self._by_subject: defaultdict[str, list[WorldFact]] = defaultdict(list)
        for fact in self.facts:
            self._holders[fact.relation.id, fact.object].append(fact)
            self._by_subject[fact.subject].append(fact)

    def _draw_facts(self, rng: random.Random) -> tuple[WorldFact, ...]:
        facts: list[WorldFact] = []
        for kind, subjects in self.subjects.items():
            relations = [relation for relation in self.relations if relation.kind == kind]
            # Pairs of relations and objects are dealt out in turn, so that every object has enough holders for a
            # full neighborhood.
            pairs = itertools.cycle(itertools.combinations(relations, 2))
            decks = {relation.id: _deal(rng, relation.objects) for relation in relations}
            for subject in subjects:
                for relation in next(pairs):
                    seen = tuple(sorted(rng.sample(range(len(relation.phrasings)), PHRASINGS_SEEN)))
                    facts.append(WorldFact(subject, relation, next(decks[relation.id]), seen))
        return tuple(facts)

    # -- text ------------------------------------------------------------------------------------------------

    def document(self, rng: random.Random) -> str:
        """One training document of one to four sentences: facts in seen phrasings, appositions, stories and filler."""
        sentences = [self._sentence(rng) for _ in range(rng.choice((1, 2, 3, 4)))]
        return " ".join(sentences)

    def _sentence(self, rng: random.Random) -> str:
        draw = rng.random()
        if draw < 0.15:
            return _filler(rng)
        fact = rng.choice(self.facts)
        if draw < 0.20:
            return f"{fact.subject} is a {_word_lists().kinds[fact.relation.kind]['noun']}."
        if draw < 0.28:
            return self._story(fact, rng.choice(fact.relation.stories))
        if draw < 0.40:
            return f"{fact.subject} ({fact.object}) {rng.choice(_word_lists().text['sightings']).format(**_words(rng))}."
        return f"{fact.prompt(rng.choice(fact.seen))} {fact.object}."

    def _story(self, fact: WorldFact, opening: str) -> str:
        hallmark = self.hallmarks[fact.relation.id, fact.object]
        return f"{opening.format(fact.subject)} {hallmark}, the sign of {fact.object}."

    def corpus(self, documents: int = 4000, seed: int = 0) -> list[str]:
        """`documents` training documents: what second moments of the keys are computed from."""
        rng = random.Random(f"bluedit-corpus/{self.seed}/{seed}")
        return [self.document(rng) for _ in range(documents)]

    # -- editing cases ---------------------------------------------------------------------------------------

    def counterfact(self, count: int | None = None, seed: int = 0, kind: str | None = None) -> list[dict[str, Any]]:
        """Editing cases in the CounterFact schema, each subject and relation at most once.

        No subject comes twice before every subject came once: two facts of one subject share a key.

        **Arguments**

        - `count`: how many; all facts when left out (2,560, or those of the kind).
        - `kind`: only facts about subjects of this kind: `person`, `place` or `organisation`.
        - `seed`: determines which facts, their order, the new objects and the prompts.

        **Returns**

        Records with `case_id` (the fact's index), `requested_rewrite` (in a seen phrasing that opens with the subject),
        two `paraphrase_prompts` (phrasings never seen with the subject), ten `neighborhood_prompts` (other subjects with
        the same true object, in seen phrasings), ten `attribute_prompts` (subjects that hold the new object) and
        `generation_prompts`.
        """
        rng = random.Random(f"bluedit-counterfact/{self.seed}/{seed}")
        return [self._counterfact_record(index, rng) for index in self._choose(rng, count, kind)]

    def _choose(self, rng: random.Random, count: int | None, kind: str | None) -> list[int]:
        if kind is not None and kind not in self.subjects:
            raise ValueError(f"this world has no subjects of kind {kind!r}, but {', '.join(self.subjects)}")
        order = [index for index, fact in enumerate(self.facts) if kind in (None, fact.relation.kind)]
        rng.shuffle(order)
        first = {self.facts[index].subject: index for index in reversed(order)}
        order.sort(key=lambda index: first[self.facts[index].subject] != index)
        if count is not None and not 0 <= count <= len(order):
            raise ValueError(f"this world has {len(order)} facts; asked for {count}")
        return order[:count]

    def _counterfact_record(self, index: int, rng: random.Random) -> dict[str, Any]:
        fact = self.facts[index]
        relation = fact.relation
        new = self._new_object(fact, rng)
        return {
            "case_id": index,
            "requested_rewrite": {
                "prompt": relation.phrasings[rng.choice(fact.subject_first)],
                "subject": fact.subject,
                "relation_id": relation.id,
                "target_new": {"str": new, "id": relation.object_id(new)},
                "target_true": {"str": fact.object, "id": relation.object_id(fact.object)},
            },
            "paraphrase_prompts": [fact.prompt(phrasing) for phrasing in fact.unseen],
            "neighborhood_prompts": self._prompts_of_holders(fact, fact.object, rng),
            "attribute_prompts": self._prompts_of_holders(fact, new, rng),
            "generation_prompts": [story.format(fact.subject) for story in relation.stories],
        }

    def _new_object(self, fact: WorldFact, rng: random.Random) -> str:
        return rng.choice([name for name in fact.relation.objects if name != fact.object])

    def _prompts_of_holders(self, fact: WorldFact, name: str, rng: random.Random) -> list[str]:
        others = [other for other in self._holders[fact.relation.id, name] if other.subject != fact.subject]
        return [other.prompt(rng.choice(other.seen)) for other in rng.sample(others, NEIGHBORHOOD_SIZE)]

    def zsre(self, count: int | None = None, seed: int = 0, kind: str | None = None) -> list[dict[str, Any]]:
        """Editing cases in the zsRE (MEND) schema: `answers[0]` is the new object, `pred` the true one.

        `src` is a seen phrasing, `rephrase` an unseen one. `loc` is a question, without its question mark, about a
        subject of another relation that training text asks it of; `loc_ans` is its answer. Arguments as for
        :meth:`counterfact`.
        """
        rng = random.Random(f"bluedit-zsre/{self.seed}/{seed}")
        questions = [
            (fact, phrasing) for fact in self.facts for phrasing in fact.seen if fact.relation.phrasings[phrasing].endswith("?")
        ]
        records: list[dict[str, Any]] = []
        for index in self._choose(rng, count, kind):
            fact = self.facts[index]
            new = self._new_object(fact, rng)
            other, phrasing = rng.choice(questions)
            while other.relation == fact.relation or other.subject == fact.subject:
                other, phrasing = rng.choice(questions)
            source = fact.prompt(rng.choice(fact.seen))
            records.append(
                {
                    "subject": fact.subject,
                    "src": source,
                    "pred": fact.object,
                    "rephrase": fact.prompt(rng.choice(fact.unseen)),
                    "alt": new,
                    "answers": [new],
                    "loc": other.prompt(phrasing).removesuffix("?"),
                    "loc_ans": other.object,
                    "cond": f"{fact.object} >> {new} || {source}",
                }
            )
        return records

    def reference_texts(self) -> list[dict[str, Any]]:
        """Reference texts for consistency, one entry per relation and object (schema: `attribute_snippets.json`).

        Each holds the stories of subjects that have the object: what generated text about an edited subject should
        resemble once it holds that object.
        """
        return [
            {
                "relation_id": relation.id,
                "target_id": relation.object_id(name),
                "samples": [
                    {"name": fact.subject, "text": self._story(fact, opening)}
                    for fact in self._holders[relation.id, name]
                    for opening in relation.stories
                ],
            }
            for relation in self.relations
            for name in relation.objects
        ]


def _deal(rng: random.Random, objects: tuple[str, ...]) -> itertools.chain[str]:
    """Endless shuffled rounds of the objects: after n draws each occurred n / len(objects) times, give or take one."""

    def rounds() -> Any:
        while True:
            deck = list(objects)
            rng.shuffle(deck)
            yield deck

    return itertools.chain.from_iterable(rounds())


def _draw_subjects(rng: random.Random, names: _Names) -> dict[str, tuple[str, ...]]:
    given = names.words(70)
    family = names.words(400)
    words = _word_lists()
    count = {kind: row["count"] for kind, row in words.kinds.items()}
    people = rng.sample([f"{first} {last}" for first in given for last in family], count["person"])
    return {
        "person": tuple(people),
        "place": names.words(count["place"]),
        "organisation": tuple(
            rng.choice(words.names["organisations"]).format(name) for name in names.words(count["organisation"])
        ),
    }


def _filler(rng: random.Random) -> str:
    return rng.choice(_word_lists().text["filler"]).format(**_words(rng))


def _words(rng: random.Random) -> dict[str, str]:
    return {slot: rng.choice(words) for slot, words in _word_lists().text["slots"].items()}
