"""What a record of the benchmarks of consequences has to hold: MQuAKE, RippleEdits, KnowEdit, UnKEBench."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field

from bluedit.datasets.cases import Case, FollowUp, Question
from bluedit.datasets.schemas import Identifier, Part, Schema, Text, Texts
from bluedit.errors import FactError, excerpt
from bluedit.facts import Fact

__all__ = ["KnowEditBioRecord", "KnowEditRecord", "MquakeRecord", "RippleRecord", "UnkeRecord"]


# -- MQuAKE ----------------------------------------------------------------------------------------------------------


class _Object(Part):
    text: Text = Field(alias="str")


class _ChainRewrite(Part):
    prompt: Text
    subject: Text
    relation_id: Text | None = None
    target_new: _Object
    target_true: _Object | None = None
    question: Text | None = None


class _Hop(Part):
    question: Text
    cloze: Text | None = None
    answer: Text
    answer_alias: Texts = ()

    def asked(self) -> Question:
        return Question(self.question, ((self.answer, *self.answer_alias),))


class MquakeRecord(Schema):
    """MQuAKE (CF-3k, CF-3k-v2, CF, T): a chain of two to four hops, one or more of them edited.

    Three follow-ups: `multi_hop` (any of the questions about the whole chain), `edit_wise` (once for every edited hop) and
    `instance_wise` (every hop of the new chain).
    """

    case_id: Identifier
    requested_rewrite: tuple[_ChainRewrite, ...] = Field(min_length=1)
    questions: Texts = Field(min_length=1)
    new_answer: Text
    new_answer_alias: Texts = ()
    new_single_hops: tuple[_Hop, ...] = Field(min_length=1)

    def case(self, position: int) -> Case:
        names = [self.case_id, *(f"{self.case_id}/{number}" for number in range(1, len(self.requested_rewrite)))]
        facts = tuple(
            Fact(one.prompt, one.subject, one.target_new.text, name, one.relation_id)
            for name, one in zip(names, self.requested_rewrite, strict=True)
        )
        first = self.requested_rewrite[0]
        right = ((self.new_answer, *self.new_answer_alias),)
        chain = tuple(Question(question, right) for question in self.questions)
        hops = tuple(hop.asked() for hop in self.new_single_hops)
        return Case(
            fact=facts[0],
            true_target=first.target_true.text if first.target_true else None,
            paraphrases=() if first.question is None else (first.question,),
            further=facts[1:],
            follow_ups=(
                FollowUp(name="multi_hop", questions=chain, need="any", scoring="start"),
                *(
                    FollowUp(name="edit_wise", questions=(question,), scoring="start")
                    for question in map(self._recall, self.requested_rewrite)
                ),
                FollowUp(name="instance_wise", questions=hops, need="all", scoring="start"),
            ),
        )

    def _recall(self, rewrite: _ChainRewrite) -> Question:
        """The question for one edited hop; its aliases are those of the hop with its target."""
        target = rewrite.target_new.text
        names = next((hop.answer_alias for hop in self.new_single_hops if hop.answer == target), ())
        return Question(rewrite.question or rewrite.prompt.replace("{}", rewrite.subject), ((target, *names),))


# -- RippleEdits -----------------------------------------------------------------------------------------------------


def _text_of(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class _Named(Part):
    value: Annotated[Text, BeforeValidator(_text_of)]
    aliases: tuple[Annotated[str, BeforeValidator(_text_of)], ...] = ()

    def names(self) -> tuple[str, ...]:
        """The names that count: single letters would be found in any text."""
        return tuple(name for name in (self.value, *self.aliases) if len(name) > 1 or name.isdigit()) or (self.value,)


class _RippleQuery(Part):
    prompt: Text
    answers: tuple[_Named, ...] = Field(min_length=1)

    def asked(self) -> Question:
        return Question(self.prompt, tuple(one.names() for one in self.answers))


class _RippleTest(Part):
    test_queries: tuple[_RippleQuery, ...] = Field(min_length=1)
    test_condition: Literal["OR", "AND"] = "OR"
    condition_queries: tuple[_RippleQuery, ...] = ()

    def follow_up(self, name: str) -> FollowUp:
        return FollowUp(
            name=name,
            questions=tuple(query.asked() for query in self.test_queries),
            need="any" if self.test_condition == "OR" else "all",
            conditions=tuple(query.asked() for query in self.condition_queries),
            scoring="contains",
            after_edit=True,
        )


class _Told(Part):
    """A fact as RippleEdits tells it: one sentence, and identifiers of Wikidata. `subject` and `target` are not published."""

    prompt: Text
    relation: Text | None = None
    subject: Text | None = None
    target: Text | None = None


class _RippleEdit(_Told):
    original_fact: _Told | None = None
    previous_fact: _Told | None = None


class RippleRecord(Schema):
    """RippleEdits (recent, random, popular): an edit, and tests in six groups.

    The published edit is one sentence, "The name of the author of X is Y."; X and Y are told apart by its form. `edit.subject`
    and `edit.target` say them where they are given.
    """

    edit: _RippleEdit
    relation_specificity: tuple[_RippleTest, ...] = Field(alias="Relation_Specificity")
    logical_generalization: tuple[_RippleTest, ...] = Field(alias="Logical_Generalization")
    subject_aliasing: tuple[_RippleTest, ...] = Field(alias="Subject_Aliasing")
    compositionality_1: tuple[_RippleTest, ...] = Field(alias="Compositionality_I")
    compositionality_2: tuple[_RippleTest, ...] = Field(alias="Compositionality_II")
    forgetfulness: tuple[_RippleTest, ...] = Field(alias="Forgetfulness")

    def case(self, position: int) -> Case:
        question, subject, target = _taken_apart(self.edit)
        before = self.edit.original_fact or self.edit.previous_fact
        groups = {
            "Logical_Generalization": self.logical_generalization,
            "Compositionality_I": self.compositionality_1,
            "Compositionality_II": self.compositionality_2,
            "Subject_Aliasing": self.subject_aliasing,
            "Relation_Specificity": self.relation_specificity,
            "Forgetfulness": self.forgetfulness,
        }
        return Case(
            fact=Fact(question, subject, target, str(position), self.edit.relation),
            true_target=None if before is None else _taken_apart(before)[2],
            follow_ups=tuple(test.follow_up(name) for name, tests in groups.items() for test in tests),
        )


_TAILS = ("is associated with is", "is the capital of is", "is a member of is", "is part of is", "plays in is", "has is",
          "won is", "is followed by", "follows", "is", "are")  # fmt: skip
"""What may stand between the subject of a sentence of RippleEdits and its object, the longest first."""


def _taken_apart(told: _Told) -> tuple[str, str, str]:
    """The prompt, subject and target of a sentence such as "The place of birth of X is Y.".

    **Raises** :class:`~bluedit.errors.FactError` where they cannot be told apart.
    """
    sentence = told.prompt.strip()
    for tail in _TAILS:
        before, found, target = sentence.partition(f" {tail} ")
        target = target.rstrip().removesuffix(".")
        subject = told.subject or _subject_before(before, told.relation or "", tail)
        if found and subject and target and before.endswith(subject):
            return f"{before} {tail}", subject, told.target or target
    raise FactError(
        f"the sentence {excerpt(sentence)} does not show its subject and target; add `subject` and `target` beside `prompt`"
    )


def _subject_before(text: str, relation: str, tail: str) -> str:
    """What a sentence is about, from what stands before its verb and the relation's name (PLACE_OF_BIRTH: "of birth of")."""
    if tail in ("follows", "is followed by"):
        return text
    for mark in (r"^.*? which (.+)$", r"^The number of children (.+)$", r"^The name of the currency in (.+)$",
                 r"^The name of the award (.+)$"):  # fmt: skip
        if tail != "are" and (found := re.match(mark, text)):
            return found[1]
    rest = re.sub(r"^The (names? of the )?", "", text)
    for _ in range(relation.split("_").count("OF") + 1):
        rest = rest.partition(" of ")[2]
    return rest


# -- KnowEdit --------------------------------------------------------------------------------------------------------


def _names(value: Any) -> Any:
    """Every accepted text in a list, a list of lists, or alone."""
    if isinstance(value, list):
        parts = [_names(item) for item in cast("list[Any]", value)]
        return tuple(text for part in parts for text in (cast("Any", part) if isinstance(part, tuple) else (part,)))
    return (value,)


class _Ask(Part):
    prompt: Text
    ground_truth: Annotated[Texts, BeforeValidator(_names), Field(min_length=1)]

    def follow_up(self, kind: Literal["portability", "locality"], group: str) -> FollowUp:
        return FollowUp(
            name=f"{kind}_{group}",
            questions=(Question(self.prompt, (self.ground_truth,)),),
            scoring="tokens" if kind == "portability" else "kept",
        )


_Asks = dict[str, tuple[_Ask, ...]]


def _asked(portability: _Asks, locality: _Asks) -> tuple[FollowUp, ...]:
    kept = [one.follow_up("locality", group) for group, asks in locality.items() for one in asks]
    return (*(one.follow_up("portability", group) for group, asks in portability.items() for one in asks), *kept)


class KnowEditRecord(Schema):
    """KnowEdit: wiki_recent, wiki_counterfact and ZsRE, with groups of portability and locality questions."""

    subject: Text
    prompt: Text
    target_new: Text
    ground_truth: Annotated[Texts, BeforeValidator(_names)] = ()
    rephrase_prompt: Annotated[Texts, BeforeValidator(_names)] = ()
    portability: _Asks = Field(default_factory=dict[str, tuple[_Ask, ...]])
    locality: _Asks

    def case(self, position: int) -> Case:
        return Case(
            fact=Fact(self.prompt, self.subject, self.target_new, str(position)),
            true_target=self.ground_truth[0] if self.ground_truth else None,
            paraphrases=self.rephrase_prompt,
            scoring="token_accuracy",
            follow_ups=_asked(self.portability, self.locality),
        )


class KnowEditBioRecord(Schema):
    """KnowEdit's WikiBio: a passage, and the sentence that should follow it."""

    concept: Text
    text: Text
    labels: Text
    locality: _Asks

    def case(self, position: int) -> Case:
        return Case(
            fact=Fact(self.text, self.concept, self.labels, str(position)),
            scoring="token_accuracy",
            follow_ups=_asked({}, self.locality),
        )


# -- UnKEBench -------------------------------------------------------------------------------------------------------


class UnkeRecord(Schema):
    """UnKEBench: a question with a long answer, a paraphrase, and short questions about the answer.

    The records name no subject; what is edited is what the whole question ends in, as in UnKE.
    """

    id: Identifier | None = None
    question: Text
    para_question: Text
    answer: Text
    sub_question: Texts = ()
    sub_answer: Texts = ()

    def case(self, position: int) -> Case:
        if len(self.sub_question) != len(self.sub_answer):
            counts = f"{len(self.sub_question)} sub_question and {len(self.sub_answer)} sub_answer"
            raise FactError(f"has {counts}; give every question its answer")
        asked = [("original", self.question, self.answer), ("paraphrase", self.para_question, self.answer)]
        asked += [("sub_question", *pair) for pair in zip(self.sub_question, self.sub_answer, strict=True)]
        return Case(
            fact=Fact("{}", self.question, self.answer, self.id or str(position)),
            paraphrases=(self.para_question,),
            scoring="token_accuracy",
            follow_ups=tuple(
                FollowUp(name=name, questions=(Question(question, ((answer,),)),), scoring="overlap")
                for name, question, answer in asked
            ),
        )
