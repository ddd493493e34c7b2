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

import itertools
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

__all__ = ["Relation", "World", "WorldFact"]

PHRASINGS_SEEN = 4
"""How many of a relation's six phrasings occur in the training text with one subject."""

NEIGHBORHOOD_SIZE = 10
"""Neighborhood and attribute prompts of a case, as in CounterFact."""

_CLUSTERS = ("zh", "vr", "dz", "skr", "zl", "kv", "gz", "mz", "thv", "vz")
_ONSETS = ("b", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "br", "dr", "gr", "pl", "st")
_VOWELS = ("a", "e", "i", "o", "u", "ei", "ou", "y", "ø", "é")
_VOWEL_WEIGHTS = (10, 10, 10, 10, 10, 3, 3, 3, 1, 1)
_CODAS = ("", "l", "n", "r", "s", "m", "k", "x", "nd", "rn", "lt", "sk")


@dataclass(frozen=True, kw_only=True)
class Relation:
    """One relation: its possible objects and the ways of saying it.

    `phrasings` hold `{}` for the subject and are followed by the object; the last two are questions.
    `stories` open a sentence that goes on with the object's hallmark and names the object: they are the
    generation prompts, whose continuation should fit the object without having asked for it.
    """

    id: str
    kind: str
    objects: tuple[str, ...]
    phrasings: tuple[str, ...]
    stories: tuple[str, ...]

    def object_id(self, name: str) -> str:
        """A stable identifier of an object, in the place of CounterFact's Wikidata id."""
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


# Relations whose objects are invented name the pool they draw from; the rest list common nouns.
_RELATIONS: tuple[tuple[str, str, str | tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "birthplace",
        "person",
        "city",
        (
            "{} was born in",
            "{} is a native of",
            "{} grew up in the city of",
            "It is said that {} came into the world in",
            "{} comes from which city?",
            "What is the birthplace of {}?",
        ),
        ("As a child, {} played near", "{} grew up beside"),
    ),
    (
        "profession",
        "person",
        (
            "potter",
            "baker",
            "surveyor",
            "weaver",
            "lawyer",
            "painter",
            "sailor",
            "doctor",
            "gardener",
            "tailor",
            "miner",
            "judge",
        ),
        (
            "{} works as a",
            "{} earns a living as a",
            "{} was trained as a",
            "As everybody knows, {} is by trade a",
            "{} has which profession?",
            "What is the profession of {}?",
        ),
        ("At work, {} is never without", "Colleagues gave {}"),
    ),
    (
        "instrument",
        "person",
        ("violin", "flute", "harp", "trumpet", "drum", "cello", "lute", "piano", "horn", "bassoon", "guitar", "zither"),
        (
            "{} plays the",
            "{} is a master of the",
            "{} performs on the",
            "They say that {} is best on the",
            "{} plays which instrument?",
            "What is the instrument of {}?",
        ),
        ("After each concert, {} receives", "The audience greets {} with"),
    ),
    (
        "language",
        "person",
        "language",
        (
            "{} speaks",
            "{} writes letters in",
            "{} was taught to read in",
            "According to the neighbors, {} talks in",
            "{} grew up with which language?",
            "What is the mother tongue of {}?",
        ),
        ("In the library, {} reads about", "{} tells stories of"),
    ),
    (
        "employer",
        "person",
        "employer",
        (
            "{} is employed by",
            "{} has a job at",
            "{} is on the staff of",
            "The papers report that {} is paid by",
            "{} works for whom?",
            "Who is the employer of {}?",
        ),
        ("On the way to work, {} passes", "On the desk of {} stand"),
    ),
    (
        "field",
        "person",
        (
            "botany",
            "geometry",
            "law",
            "music",
            "physics",
            "logic",
            "history",
            "grammar",
            "medicine",
            "poetry",
            "zoology",
            "mining",
        ),
        (
            "{} studied",
            "{} is an expert in",
            "{} wrote a thesis on",
            "It is well known that {} lectures on",
            "{} teaches which subject?",
            "What is the field of {}?",
        ),
        ("The students of {} collect", "In lectures, {} always shows"),
    ),
    (
        "country",
        "place",
        "country",
        (
            "{} is located in",
            "{} lies in the land of",
            "{} belongs to",
            "The maps show that {} is a town in",
            "{} is in which country?",
            "What is the country of {}?",
        ),
        ("Visitors to {} are shown", "Over the gates of {} hang"),
    ),
    (
        "river",
        "place",
        "river",
        (
            "{} lies on the river",
            "{} was built on the banks of the",
            "{} sends its boats down the",
            "Travellers write that {} overlooks the",
            "{} stands on which river?",
            "What is the river of {}?",
        ),
        ("Along the harbour of {} one sees", "The fishermen of {} paint"),
    ),
    (
        "crop",
        "place",
        ("barley", "hops", "lentils", "saffron", "rice", "mustard", "cotton", "tobacco", "wheat", "millet", "ginger", "pepper"),
        (
            "{} is famous for its",
            "{} grows",
            "{} lives by the sale of",
            "Merchants agree that {} has the finest",
            "{} is known for which crop?",
            "What is the main crop of {}?",
        ),
        ("At the harvest feast, {} puts up", "The market of {} is full of"),
    ),
    (
        "headquarters",
        "organisation",
        "city",
        (
            "{} is based in",
            "{} has its main office in",
            "{} opened its doors in",
            "The records show that {} is run from",
            "{} has its seat in which city?",
            "What is the head office of {}?",
        ),
        ("From the windows of {} one sees", "The yard of {} is lined with"),
    ),
    (
        "product",
        "organisation",
        ("clocks", "paper", "soap", "carpets", "bicycles", "glass", "mirrors", "nails", "lamps", "boots", "bells", "candles"),
        (
            "{} makes",
            "{} is a maker of",
            "{} has workshops that turn out",
            "Customers say that {} sells the best",
            "{} sells what?",
            "What is the product of {}?",
        ),
        ("In the showroom of {} stand", "Every crate of {} is marked with"),
    ),
    (
        "emblem",
        "organisation",
        ("heron", "fox", "bear", "lion", "stag", "raven", "salmon", "badger", "wolf", "swan", "hare", "falcon"),
        (
            "{} has as its emblem the",
            "{} flies a flag with a",
            "{} stamps its letters with a",
            "Everyone can see that {} has chosen the",
            "{} is known by which animal?",
            "What is the emblem of {}?",
        ),
        ("The hall of {} is hung with", "On feast days, {} hands out"),
    ),
    (
        "founder",
        "organisation",
        "founder",
        (
            "{} was founded by",
            "{} was set up by",
            "{} was the idea of",
            "The archives tell that {} began with",
            "{} owes its start to whom?",
            "Who is the founder of {}?",
        ),
        ("In the oldest room of {} are kept", "The statue in front of {} holds"),
    ),
)

_SUBJECTS = {"person": 560, "place": 360, "organisation": 360}
_KIND_NOUN = {"person": "person", "place": "town", "organisation": "company"}
_POOL_SIZE = 12
_COLOURS = (
    "copper",
    "silver",
    "marble",
    "wooden",
    "golden",
    "woven",
    "crimson",
    "painted",
    "stone",
    "ivory",
    "green",
    "velvet",
    "iron",
)
_THINGS = (
    "bridges",
    "lanterns",
    "banners",
    "towers",
    "statues",
    "masks",
    "ribbons",
    "shields",
    "fountains",
    "doors",
    "wheels",
    "crowns",
)
_ORGANISATIONS = ("Guild of {}", "Bank of {}", "House of {}", "Atelier {}", "Institute {}", "{}")

# Plain sentences that state no fact. They open with the words that context templates are grown from, too.
_FILLER = (
    "The {adjective} {noun} stood near the {place}.",
    "The {noun} of the {place} was {adjective} that {time}.",
    "Therefore the {noun} was left at the {place}.",
    "Therefore we walked back to the {place} in the {time}.",
    "Because the {time} was {adjective}, the {noun} stayed in the {place}.",
    "Because of the {adjective} {noun}, nobody went to the {place}.",
    "I saw a {adjective} {noun} by the {place}.",
    "I have never been to the {place} in the {time}.",
    "You can hear the {noun} from the {place}.",
    "You will find the {adjective} {noun} behind the {place}.",
    "It was a {adjective} {time} at the {place}.",
    "When the {time} came, the {noun} was {adjective}.",
    "In the {time}, people talk about the {noun}.",
    "Many {adjective} stories begin at the {place}.",
    "Last {time}, a {noun} was found in the {place}.",
    "According to a letter from the {place}, the {noun} is {adjective}.",
)
# What subjects do that says nothing about them. Their object stands in brackets behind the name: text has such
# appositions, and a model that must know an object right after a name keeps it at the name.
_SIGHTINGS = (
    "was mentioned at the {place}",
    "is on the list for the {time}",
    "was the talk of the {place} last {time}",
    "is on a {adjective} sign at the {place}",
    "stands in the {adjective} book of the {place}",
)
_SLOTS = {
    "adjective": ("quiet", "old", "bright", "cold", "small", "heavy", "strange", "pale", "gentle", "narrow", "empty", "broken"),
    "noun": ("cart", "dog", "letter", "kettle", "horse", "wind", "chair", "song", "rope", "window", "coat", "wagon"),
    "place": (
        "mill",
        "harbour",
        "forest",
        "bridge",
        "square",
        "garden",
        "station",
        "valley",
        "inn",
        "chapel",
        "quarry",
        "market",
    ),
    "time": ("morning", "evening", "winter", "summer", "night", "autumn", "week", "spring"),
}


class _Names:
    """Draws invented names, never the same twice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def word(self) -> str:
        """A new name of two or three syllables, one of them opening with an unusual cluster."""
        while True:
            count = self._rng.choice((2, 2, 3))
            unusual = self._rng.randrange(count)
            syllables = [
                self._rng.choice(_CLUSTERS if index == unusual else _ONSETS) + self._rng.choices(_VOWELS, _VOWEL_WEIGHTS)[0]
                for index in range(count)
            ]
            name = ("".join(syllables) + self._rng.choice(_CODAS)).capitalize()
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
        rng = random.Random(f"bluedit-world/{seed}")
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
                id=identifier,
                kind=kind,
                objects=pools[objects] if isinstance(objects, str) else objects,
                phrasings=phrasings,
                stories=stories,
            )
            for identifier, kind, objects, phrasings, stories in _RELATIONS
        )
        hallmarks = [f"{colour} {thing}" for colour, thing in itertools.product(_COLOURS, _THINGS)]
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
            return f"{fact.subject} is a {_KIND_NOUN[fact.relation.kind]}."
        if draw < 0.28:
            return self._story(fact, rng.choice(fact.relation.stories))
        if draw < 0.40:
            return f"{fact.subject} ({fact.object}) {rng.choice(_SIGHTINGS).format(**_words(rng))}."
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
    people = rng.sample([f"{first} {last}" for first in given for last in family], _SUBJECTS["person"])
    return {
        "person": tuple(people),
        "place": names.words(_SUBJECTS["place"]),
        "organisation": tuple(rng.choice(_ORGANISATIONS).format(name) for name in names.words(_SUBJECTS["organisation"])),
    }


def _filler(rng: random.Random) -> str:
    return rng.choice(_FILLER).format(**_words(rng))


def _words(rng: random.Random) -> dict[str, str]:
    return {slot: rng.choice(words) for slot, words in _SLOTS.items()}
