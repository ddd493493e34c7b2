"""What a row of a fact file has to hold, in the published schemas and in the user's own, and the case that it makes."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from bluedit.datasets.cases import Case, FollowUp, Question
from bluedit.facts import Fact
from bluedit.storage.parsing import parse_json

__all__ = [
    "CounterFactRecord",
    "EditRow",
    "FlatCounterFactRecord",
    "Identifier",
    "KnownRecord",
    "Part",
    "Schema",
    "Text",
    "Texts",
    "ZsreRecord",
    "fault",
]


def _number_as_text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _texts(value: Any, info: ValidationInfo) -> Any:
    """One text stands for a list of one; a CSV cell may hold a JSON list, or several texts with `|` between."""
    if not isinstance(value, str):
        return value
    if info.context != "csv":
        return (value,)
    if re.fullmatch(r"\s*\[.*\]\s*", value, flags=re.DOTALL):
        try:
            return parse_json(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"is not a JSON list: {fault(error)}; or put `|` between its texts") from error
    return tuple(text for text in value.split("|") if text.strip())


Text = Annotated[str, Field(pattern=r"\S")]
Identifier = Annotated[Text, BeforeValidator(_number_as_text)]
Texts = tuple[Text, ...]


class Part(BaseModel):
    """An object in a row. Keys it does not use are passed over, and null counts as absent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in cast("dict[str, Any]", value).items() if item is not None}


class Schema(Part, ABC):
    """A row in one schema; subclasses say which keys it has and what case it makes."""

    edited_together: ClassVar[bool] = False
    """Whether the rows are one request. Then no two may contradict each other; a benchmark's may (CounterFact holds
    pairs that do, and is edited one by one), and :func:`~bluedit.facts.check_facts` looks at what is put in a batch."""

    @abstractmethod
    def case(self, position: int) -> Case:
        """The case of the row, which is number `position` (from 0) of its file.

        **Raises** :class:`~bluedit.errors.FactError` when the subject is not in the prompt.
        """

    @classmethod
    def required(cls) -> tuple[str, ...]:
        """The keys that every row has: what the schema is recognised by."""
        return tuple(field.alias or name for name, field in cls.model_fields.items() if field.is_required())


class _Object(Part):
    text: Text = Field(alias="str")
    id: Text | None = None


class _Rewrite(Part):
    prompt: Text
    subject: Text
    relation_id: Text | None = None
    target_new: _Object
    target_true: _Object


class CounterFactRecord(Schema):
    """CounterFact and MultiCounterFact, as published with ROME."""

    case_id: Identifier
    requested_rewrite: _Rewrite
    paraphrase_prompts: Texts = ()
    neighborhood_prompts: Texts = ()
    attribute_prompts: Texts = ()
    generation_prompts: Texts = ()

    def case(self, position: int) -> Case:
        rewrite = self.requested_rewrite
        return Case(
            fact=Fact(rewrite.prompt, rewrite.subject, rewrite.target_new.text, self.case_id, rewrite.relation_id),
            true_target=rewrite.target_true.text,
            paraphrases=self.paraphrase_prompts,
            neighborhood=self.neighborhood_prompts,
            neighborhood_target=rewrite.target_true.text,
            attributes=self.attribute_prompts,
            generation=self.generation_prompts,
            extra={"target_id": rewrite.target_new.id} if rewrite.target_new.id else {},
        )


class FlatCounterFactRecord(Schema):
    """CounterFact with one prompt of each kind and no nesting.

    Its `rephrase_prompt` is a generation prompt in four of five records, so it is never taken for a paraphrase.
    """

    case_id: Identifier
    prompt: Text
    subject: Text
    target_new: Text
    ground_truth: Text
    rephrase_prompt: Text | None = None
    locality_prompt: Text | None = None
    locality_ground_truth: Text | None = None

    def case(self, position: int) -> Case:
        return Case(
            fact=Fact(self.prompt, self.subject, self.target_new, self.case_id),
            true_target=self.ground_truth,
            neighborhood=_given(self.locality_prompt),
            neighborhood_target=self.locality_ground_truth,
            generation=_given(self.rephrase_prompt),
        )


class _Portability(Part):
    question: Text = Field(alias="New Question")
    answer: Text = Field(alias="New Answer")

    def follow_up(self) -> FollowUp:
        return FollowUp(name="portability", questions=(Question(self.question, ((self.answer,),)),), scoring="tokens")


class ZsreRecord(Schema):
    """zsRE as published with MEND, with or without the portability questions that were added later."""

    subject: Text
    src: Text
    answers: Texts = Field(min_length=1)
    alt: Text | None = None
    rephrase: Text | None = None
    loc: Text
    loc_ans: Text
    portability: _Portability | None = None

    def case(self, position: int) -> Case:
        # The portability questions were written for `alt`, and mean nothing after an edit to another target.
        more = self.portability if self.alt == self.answers[0] else None
        return Case(
            fact=Fact(self.src, self.subject, self.answers[0], str(position)),
            paraphrases=_given(self.rephrase),
            neighborhood=(self.loc.removesuffix("?") + "?",),
            neighborhood_target=self.loc_ans,
            scoring="token_accuracy",
            follow_ups=() if more is None else (more.follow_up(),),
        )


class EditRow(Schema):
    """A row of the user's own: what to edit, and optionally what to score it by. `{}` may stand for the subject."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)
    edited_together: ClassVar[bool] = True

    prompt: Text
    subject: Text
    target: Text
    target_true: Text | None = None
    paraphrases: Annotated[Texts, BeforeValidator(_texts)] = ()
    neighborhood: Annotated[Texts, BeforeValidator(_texts)] = ()
    id: Identifier | None = None
    relation: Text | None = None

    def case(self, position: int) -> Case:
        return Case(
            fact=Fact(self.prompt, self.subject, self.target, self.id or str(position), self.relation),
            true_target=self.target_true,
            paraphrases=tuple(text.replace("{}", self.subject) for text in self.paraphrases),
            neighborhood=self.neighborhood,
            neighborhood_target=self.target_true,
        )


class KnownRecord(Schema):
    """What a model is asked to know already (`known_1000`, published with ROME): nothing is to be edited."""

    known_id: Identifier | None = None
    prompt: Text
    subject: Text
    attribute: Text
    relation_id: Text | None = None

    def case(self, position: int) -> Case:
        fact = Fact(self.prompt, self.subject, self.attribute, self.known_id or str(position), self.relation_id)
        return Case(fact=fact, true_target=self.attribute)


def _given(text: str | None) -> tuple[str, ...]:
    return () if text is None else (text,)


def fault(error: json.JSONDecodeError) -> str:
    """What is wrong with a JSON text, and where in its line."""
    return f"{error.msg} at column {error.colno}"
