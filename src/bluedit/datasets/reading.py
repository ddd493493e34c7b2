"""Files of facts, in the published schemas or the user's own, read into cases.

Two things are kept apart. A *container* (a JSON list, JSON Lines or CSV) is cut into rows, each with its place in
the file. A *schema* says what a row has to hold and makes a case of it; :data:`SCHEMAS` lists them by name.

Every row is looked at before anything is refused, so that one attempt tells all there is to mend.
"""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import ErrorDetails

from bluedit.datasets.cases import Case
from bluedit.datasets.world import World
from bluedit.errors import DatasetError, FactError, did_you_mean, excerpt, shortened
from bluedit.facts import CONFLICT_MEND, Fact, OnConflict, conflicts, settle, told_relation
from bluedit.storage.parsing import is_file, parse_json

__all__ = [
    "KNOWN",
    "SCHEMAS",
    "CounterFactRecord",
    "EditRow",
    "FlatCounterFactRecord",
    "KnownRecord",
    "Schema",
    "ZsreRecord",
    "read_cases",
    "read_dataset",
    "read_known",
]

# -- what a row holds ----------------------------------------------------------------------------------------------


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
            raise ValueError(f"is not a JSON list: {_fault(error)}; or put `|` between its texts") from error
    return tuple(text for text in value.split("|") if text.strip())


Text = Annotated[str, Field(pattern=r"\S")]
Identifier = Annotated[Text, BeforeValidator(_number_as_text)]
Texts = tuple[Text, ...]


class _Part(BaseModel):
    """An object in a row. Keys it does not use are passed over, and null counts as absent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: item for key, item in cast("dict[str, Any]", value).items() if item is not None}


class Schema(_Part, ABC):
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


class _Object(_Part):
    text: Text = Field(alias="str")
    id: Text | None = None


class _Rewrite(_Part):
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


class _Portability(_Part):
    question: Text = Field(alias="New Question")
    answer: Text = Field(alias="New Answer")


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
            extra={"portability_question": more.question, "portability_answer": more.answer} if more else {},
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


SCHEMAS: dict[str, type[Schema]] = {
    "counterfact": CounterFactRecord,
    "counterfact-flat": FlatCounterFactRecord,
    "zsre": ZsreRecord,
    "edits": EditRow,
}

KNOWN: dict[str, type[Schema]] = SCHEMAS | {"known": KnownRecord}
"""What facts that a model knows already may come in: its rows ask for no edit, so they are no cases to edit or to score."""

_LARGEST = 2**30
"""Bytes of a file that is read whole; CounterFact with all its texts is 50 millions."""

# -- how rows are cut out of a file --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row and where it stands, or why it could not be cut out."""

    place: str
    record: Any = None
    problem: str = ""


def _json_rows(text: str) -> Iterator[_Row]:
    try:
        records = parse_json(text, surrogates=True)  # a row is told of those in its texts
    except json.JSONDecodeError as error:
        mend = "name the file .jsonl if it holds one record per line" if error.msg == "Extra data" else "mend it there"
        yield _Row(place=f"line {error.lineno}", problem=f"is not JSON: {_fault(error)}; {mend}")
        return
    if not isinstance(records, list):
        yield _Row(place="line 1", problem="does not open a list; put `[` and `]` around the records")
        return
    for number, record in enumerate(cast("Iterable[Any]", records), start=1):
        yield _Row(place=f"record {number}", record=record)


def _jsonl_rows(text: str) -> Iterator[_Row]:
    # Not splitlines(): JSON strings may hold the rarer line separators of Unicode.
    lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    for count, (number, line) in enumerate(lines, start=1):
        place = f"row {count} (line {number})"
        try:
            row = _Row(place=place, record=parse_json(line, surrogates=True))
        except json.JSONDecodeError as error:
            row = _Row(place=place, problem=f"is not JSON: {_fault(error)}; write one record per line")
        yield row


def _separator(text: str) -> str:
    """What separates the columns of a CSV: a comma, or what its header tells beyond doubt (a spreadsheet's own export)."""
    header = text.lstrip("\r\n").partition("\n")[0]
    if _header(header, ",") & {key for schema in KNOWN.values() for key in schema.required()}:
        return ","
    fitting = (one for one in (";", "\t") if any(_header(header, one).issuperset(row.required()) for row in KNOWN.values()))
    return next(fitting, ",")


def _header(line: str, separator: str) -> set[str]:
    try:
        return {cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])}
    except csv.Error:
        return set()


def _csv_rows(text: str) -> Iterator[_Row]:
    separator = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    header: list[str] = []
    count = 0
    while True:
        line = reader.line_num + 1  # A row may span lines; it is named by its first.
        try:
            cells = [cell if cell.strip() else None for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            yield _Row(place=f"line {line}", problem=f"is not CSV: {error}; close its quotes, double those inside")
            return
        if not any(cells):
            continue
        if not header:
            header = [(cell or "").strip() for cell in cells]
            repeated = sorted({name for name in header if name and header.count(name) > 1})
            if repeated:
                yield _Row(place=f"line {line}", problem=f"names {_listed(repeated)} twice; keep one column of each")
                return
            continue
        count += 1
        place = f"row {count} (line {line})"
        if len(cells) > len(header):
            excess = f"has {len(cells)} cells under {len(header)} columns"
            yield _Row(place=place, problem=f"{excess}; put quotes around a text that holds {_SEPARATORS[separator]}")
        else:
            yield _Row(place=place, record=dict(zip(header, cells, strict=False)))


_SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_CONTAINERS: dict[str, Callable[[str], Iterator[_Row]]] = {"json": _json_rows, "jsonl": _jsonl_rows, "csv": _csv_rows}


def _container(source: str, text: str) -> str:
    """The container a file's suffix names, or else the one its first character opens."""
    suffix = Path(source).suffix.lower().removeprefix(".").replace("ndjson", "jsonl")
    if suffix in _CONTAINERS:
        return suffix
    return {"[": "json", "{": "jsonl"}.get(text.lstrip()[0], "csv")


def _read_text(source: str) -> str:
    path = Path(source)
    try:
        if "\0" in source:
            raise DatasetError(source, ["is no name of a file: it holds a NUL character"])
        if path.is_dir():
            raise DatasetError(source, ["is a folder; name a file in it"])
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)  # not its size: that of a pipe or a device is 0
        if len(content) > _LARGEST:
            raise DatasetError(source, [f"is larger than {_LARGEST >> 20:,} MiB; cut it into several files"])
    except FileNotFoundError:
        raise DatasetError(source, ["there is no such file; check the path"]) from None
    except OSError as error:
        raise DatasetError(source, [f"cannot be read: {error.strerror}"]) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(source, [f"line {line}: is not UTF-8 text; save the file in that encoding"]) from error
    if not text.strip():
        raise DatasetError(source, ["is empty; it should hold one record per edit"])
    return text


def _fault(error: json.JSONDecodeError) -> str:
    return f"{error.msg} at column {error.colno}"


# -- reading -------------------------------------------------------------------------------------------------------


def read_cases(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    limit: int | None = None,
    schemas: Mapping[str, type[Schema]] = SCHEMAS,
    on_conflict: OnConflict = "error",
) -> list[Case]:
    """The cases in a file, in its order, repetitions included.

    **Arguments**

    - `path`: a JSON list, JSON Lines or CSV, in UTF-8. The suffix says which; where it does not, the content does.
    - `format`: the schema, a name in :data:`SCHEMAS`; recognised from the rows' keys when left out.
    - `limit`: read the first so many rows only; what follows them is not validated.
    - `schemas`: those that are looked for.
    - `on_conflict`: what becomes of rows of the user's own that contradict each other: `"error"` refuses them, with `"last"`
      the later one wins, `"keep"` reads both.

    **Raises** :class:`~bluedit.errors.DatasetError` with every row that cannot be used, its place and the mend.
    """
    source = os.fspath(path)
    if format is not None and format not in schemas:
        raise DatasetError(source, [did_you_mean(format, schemas, what="format")])
    text = _read_text(source)
    container = _container(source, text)
    rows = _CONTAINERS[container](text)
    return _cases(source, rows, format=format, limit=limit, container=container, schemas=schemas, on_conflict=on_conflict)


def read_known(spec: str, limit: int | None = None) -> list[Case]:
    """Facts that a model may know already: what :func:`read_dataset` reads, and tracing prompts (`known_1000`).

    A case's true target is what the model should know; where it has none, that is its fact's target. In tracing prompts the two
    are one: nothing is to be edited.
    """
    return read_dataset(spec, limit, schemas=KNOWN)


def read_dataset(
    spec: str,
    limit: int | None = None,
    *,
    schemas: Mapping[str, type[Schema]] = SCHEMAS,
    on_conflict: OnConflict = "error",
) -> list[Case]:
    """The cases that a data set's name on the command line stands for.

    **Arguments**

    - `spec`: `FILE`, or `FORMAT:FILE` with a name in :data:`SCHEMAS`; or `world:counterfact` or `world:zsre`, the
      synthetic world's cases, optionally with the world's seed, that of the draw of cases, and a kind of subject:
      `world:zsre:7:1:person`. An existing file of exactly this name comes first.
    - `limit`: the first so many cases only.
    - `schemas`, `on_conflict`: see :func:`read_cases`.

    **Raises** :class:`~bluedit.errors.DatasetError` as :func:`read_cases`, and for names that are not known.
    """
    name, _, rest = spec.partition(":")
    # A single letter before the colon is a Windows drive, and a name with other signs in it a path.
    if ":" not in spec or not re.fullmatch(r"[\w-]{2,}", name) or is_file(spec):
        return read_cases(spec, limit=limit, schemas=schemas, on_conflict=on_conflict)
    if name == "world":
        return _world_cases(spec, *rest.split(":"), limit=limit)
    if name not in schemas:
        raise DatasetError(spec, [did_you_mean(name, [*schemas, "world"], what="data set")])
    if not rest:
        raise DatasetError(spec, [f"no file is named; write {name}:FILE"])
    return read_cases(rest, format=name, limit=limit, schemas=schemas, on_conflict=on_conflict)


def _world_cases(spec: str, format: str, *options: str, limit: int | None) -> list[Case]:
    """Cases of `world:FORMAT:WORLD:DRAW:KIND`; the last three may be left out."""
    records = {"counterfact": World.counterfact, "zsre": World.zsre}
    if format not in records:
        raise DatasetError(spec, [did_you_mean(format, records, what="schema of the world")])
    if len(options) > 3:
        raise DatasetError(spec, [f"has too many parts; write world:{format}:WORLD:DRAW:KIND"])
    for seed in options[:2]:
        if not re.fullmatch(r"-?[0-9]{1,18}", seed):
            raise DatasetError(spec, [f"the seed {excerpt(seed)} is not a whole number; write world:{format}:0"])
    seeds = [int(seed) for seed in options[:2]] + [0, 0]
    world, kind = World(seeds[0]), options[2] if len(options) == 3 else None
    if kind is not None and kind not in world.subjects:
        raise DatasetError(spec, [did_you_mean(kind, world.subjects, what="kind of subject")])
    facts = records[format](world, seed=seeds[1], kind=kind)
    rows = (_Row(place=f"record {number}", record=record) for number, record in enumerate(facts, start=1))
    return _cases(spec, rows, format=format, limit=limit)


def _cases(
    source: str,
    rows: Iterable[_Row],
    *,
    format: str | None,
    limit: int | None,
    container: str = "json",
    schemas: Mapping[str, type[Schema]] = SCHEMAS,
    on_conflict: OnConflict = "error",
) -> list[Case]:
    if limit is not None and limit < 1:
        raise DatasetError(source, [f"the limit is {limit}; ask for at least one case"])
    read = list(itertools.islice(rows, limit))
    if not read:
        raise DatasetError(source, ["holds no records; it should hold one per edit"])
    schema = schemas[format] if format else _recognise(source, read, schemas)
    cases: list[Case] = []
    places: list[str] = []
    problems: list[tuple[str, str]] = []
    for position, row in enumerate(read):
        if row.problem:
            problems.append((row.place, row.problem))
            continue
        try:
            cases.append(schema.model_validate(row.record, context=container).case(position))
            places.append(row.place)
        except ValidationError as error:
            problems += [(row.place, _explain(detail, schema)) for detail in error.errors(include_url=False)]
        except FactError as error:
            problems.append((row.place, str(error)))
    facts = [case.fact for case in cases]
    if schema.edited_together and on_conflict == "error":
        for one, other in conflicts(facts):
            targets = f"the target {excerpt(facts[other].target)} where {places[one]} gives it {excerpt(facts[one].target)}"
            why = told_relation(facts[one], facts[other])
            problem = f"gives {excerpt(facts[other].subject)} {targets}{why}; keep one of the two, or {CONFLICT_MEND}"
            problems.append((places[other], problem))
    if problems:
        raise DatasetError(source, _grouped(problems))
    return [cases[position] for position in settle(facts)] if schema.edited_together and on_conflict == "last" else cases


def _recognise(source: str, rows: list[_Row], schemas: Mapping[str, type[Schema]]) -> type[Schema]:
    """The schema whose required keys the rows hold among them, so that a key missing here and there does no harm."""
    found = {key for row in rows if isinstance(row.record, dict) for key in cast("dict[str, Any]", row.record)}
    for schema in schemas.values():
        if found.issuperset(schema.required()):
            return schema
    if not found:  # Nothing here has keys; as edits, each row is told so.
        return EditRow
    expected = EditRow.required()
    nearest = {key: difflib.get_close_matches(key, found - {*expected}, n=1) for key in expected if key not in found}
    if len(found) == 1 and (parts := [one for one in (";", "\t") if one in next(iter(found))]):
        problem = f"its columns seem to be separated by {_SEPARATORS[parts[0]]}, and are not those of any schema"
        names = _some([shortened(name.strip(), 80) for name in next(iter(found)).split(parts[0])])
        raise DatasetError(source, [f"{problem}: found {names}; expected for `edits`: {_listed(expected)}"])
    hints = [f" Is {close[0]!r} meant to be {key!r}?" for key, close in nearest.items() if close]
    unknown = (
        f"looks like none of {_listed(schemas)}: found the keys {_some([shortened(key, 80) for key in sorted(found)])}; "
        f"expected for `edits`: {_listed(expected)}.{''.join(hints)}"
    )
    raise DatasetError(source, [*_grouped((row.place, row.problem) for row in rows if row.problem), unknown])


_SHOWN = 20
"""Places and keys that a message lists."""
_WANTED = {"string_type": "text", "tuple_type": "a list of texts", "model_type": "an object with keys"}


def _explain(detail: ErrorDetails, schema: type[Schema]) -> str:
    """One of pydantic's complaints as a sentence with its mend."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).removeprefix(".")
    quoted = f"`{name}` " if name else ""
    match detail["type"]:
        case "missing":
            return f"{quoted}is missing; add it"
        case "extra_forbidden":
            return did_you_mean(name, schema.model_fields, what="column")
        case "string_pattern_mismatch" | "too_short":
            return f"{quoted}is empty; give it some text"
        case "value_error":
            return quoted + detail["msg"].removeprefix("Value error, ")
        case kind if kind in _WANTED:
            return f"{quoted}is {shortened(json.dumps(detail['input']), 60)}; make it {_WANTED[kind]}"
        case _:
            return f"{quoted}cannot be used: {detail['msg']}; mend it there"


def _grouped(problems: Iterable[tuple[str, str]]) -> list[str]:
    """One line per distinct problem, with every place that has it."""
    places: dict[str, list[str]] = {}
    for place, problem in problems:
        places.setdefault(problem, []).append(place)
    return [f"{_some(where)}: {shortened(problem, 1500)}" for problem, where in places.items()]


def _some(names: Sequence[str]) -> str:
    """Names in a row; of very many the first ones."""
    return _listed(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
