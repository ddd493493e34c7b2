"""Files of facts, in the published schemas or the user's own, read into cases.

Two things are kept apart. A *container* (a JSON list, JSON Lines or CSV) is cut into rows, each with its place in
the file. A *schema* says what a row has to hold and makes a case of it; :data:`SCHEMAS` lists them by name.

Every row is looked at before anything is refused, so that one attempt tells everything to fix.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bluedit.datasets.cases import Case
from bluedit.datasets.containers import SEPARATORS, Row, open_rows
from bluedit.datasets.hub import hub_rows
from bluedit.datasets.registry import PRESETS, SCHEMAS, fitting_schema
from bluedit.datasets.schemas import EditRow, Schema
from bluedit.datasets.world import World
from bluedit.errors import DatasetError, FactError, did_you_mean, excerpt, shortened
from bluedit.facts import CONFLICT_FIX, OnConflict, conflicts, settle, told_relation
from bluedit.storage.parsing import is_file

__all__ = [
    "PRESETS",
    "SCHEMAS",
    "Schema",
    "read_cases",
    "read_dataset",
    "read_known",
]


def read_cases(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    limit: int | None = None,
    schemas: Mapping[str, type[Schema]] = SCHEMAS,
    on_conflict: OnConflict = "error",
    skipped: list[str] | None = None,
) -> list[Case]:
    """The cases in a file, in its order, repetitions included.

    **Arguments**

    - `path`: a JSON list, JSON Lines or CSV, in UTF-8. The suffix says which; where it does not, the content does.
    - `format`: the schema, a name in :data:`SCHEMAS`; recognised from the rows' keys when left out.
    - `limit`: read only the first rows; the rest is not validated.
    - `schemas`: those that are looked for.
    - `on_conflict`: what becomes of rows of the user's own that contradict each other: `"error"` refuses them, with `"last"`
      the later one wins, `"keep"` reads both.
    - `skipped`: where this list is given, rows that cannot be used are left out, and told in it with their places, one line
      for each row. Otherwise they are errors.

    **Raises** :class:`~bluedit.errors.DatasetError` with every row that cannot be used, its place and the fix.
    """
    source = os.fspath(path)
    if format is not None and format not in schemas:
        raise DatasetError(source, [did_you_mean(format, schemas, what="format")])
    container, rows = open_rows(source)
    return _cases(
        source, rows, format=format, limit=limit, container=container, schemas=schemas, on_conflict=on_conflict, skipped=skipped
    )


def read_known(spec: str, limit: int | None = None) -> list[Case]:
    """Facts that a model may know already: what :func:`read_dataset` reads, and tracing prompts (`known_1000`).

    A case's true target is what the model should know; where it has none, that is its fact's target. In tracing prompts the two
    are one: nothing is to be edited.
    """
    return read_dataset(spec, limit, schemas=PRESETS)


def read_dataset(
    spec: str,
    limit: int | None = None,
    *,
    schemas: Mapping[str, type[Schema]] = SCHEMAS,
    on_conflict: OnConflict = "error",
    skipped: list[str] | None = None,
) -> list[Case]:
    """The cases that a data set's name on the command line stands for.

    **Arguments**

    - `spec`: `FILE`, or `FORMAT:FILE` with a name in :data:`SCHEMAS`; or `world:counterfact` or `world:zsre`, the
      synthetic world's cases, optionally with the world's seed, that of the draw of cases, and a kind of subject:
      `world:zsre:7:1:person`; or `hub:NAME[:CONFIG[:SPLIT]][@REVISION]`, a data set of the Hugging Face hub or a local folder
      (`FORMAT:hub:...` names its schema; CONFIG may be a data file in it). An existing file of exactly this name comes first.
    - `limit`: only the first records.
    - `schemas`, `on_conflict`, `skipped`: see :func:`read_cases`.

    **Raises** :class:`~bluedit.errors.DatasetError` as :func:`read_cases`, and for names that are not known.
    """
    name, _, rest = spec.partition(":")
    # A single letter before the colon is a Windows drive, and a name with other signs in it a path.
    if ":" not in spec or not re.fullmatch(r"[\w-]{2,}", name) or is_file(spec):
        return read_cases(spec, limit=limit, schemas=schemas, on_conflict=on_conflict, skipped=skipped)
    if name == "world":
        return _world_cases(spec, *rest.split(":"), limit=limit)
    format = None if name == "hub" else name
    if format is not None and format not in schemas:
        raise DatasetError(spec, [did_you_mean(name, [*schemas, "world", "hub"], what="data set")])
    if not rest:
        raise DatasetError(spec, [f"no file is named; write {name}:FILE" if format else "names no data set; write hub:NAME"])
    if format is not None and not rest.startswith("hub:"):
        return read_cases(rest, format=format, limit=limit, schemas=schemas, on_conflict=on_conflict, skipped=skipped)
    rows = hub_rows(rest.removeprefix("hub:"))
    return _cases(spec, rows, format=format, limit=limit, schemas=schemas, on_conflict=on_conflict, skipped=skipped)


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
    rows = (Row(place=f"record {number}", record=record) for number, record in enumerate(facts, start=1))
    return _cases(spec, rows, format=format, limit=limit)


def _cases(
    source: str,
    rows: Iterable[Row],
    *,
    format: str | None,
    limit: int | None,
    container: str = "json",
    schemas: Mapping[str, type[Schema]] = SCHEMAS,
    on_conflict: OnConflict = "error",
    skipped: list[str] | None = None,
) -> list[Case]:
    if limit is not None and limit < 1:
        raise DatasetError(source, [f"the limit is {limit}; ask for at least one case"])
    rows = itertools.islice(rows, limit)
    first = list(itertools.islice(rows, _LOOKED_AT))
    if not first:
        raise DatasetError(source, ["holds no records; it should hold one per edit"])
    schema = schemas[format] if format else _recognise(source, first, schemas)
    cases: list[Case] = []
    places: list[str] = []
    problems: list[tuple[str, str]] = []
    for position, row in enumerate(itertools.chain(first, rows)):
        made = _made(schema, row, position, container)
        if isinstance(made, Case):
            cases.append(made)
            places.append(row.place)
        elif skipped is None:
            problems += [(row.place, problem) for problem in made]
        else:
            skipped.append(f"{row.place}: {shortened('; '.join(made), 500)}")
    if skipped and not cases:
        raise DatasetError(source, ["holds no record that can be used", *skipped])
    facts = [case.fact for case in cases]
    if schema.edited_together and on_conflict == "error":
        for one, other in conflicts(facts):
            targets = f"the target {excerpt(facts[other].target)} where {places[one]} gives it {excerpt(facts[one].target)}"
            why = told_relation(facts[one], facts[other])
            problem = f"gives {excerpt(facts[other].subject)} {targets}{why}; keep one of the two, or {CONFLICT_FIX}"
            problems.append((places[other], problem))
    if problems:
        raise DatasetError(source, _grouped(problems))
    return [cases[position] for position in settle(facts)] if schema.edited_together and on_conflict == "last" else cases


def _made(schema: type[Schema], row: Row, position: int, container: str) -> Case | list[str]:
    """The case of a row, or all that is wrong with it."""
    if row.problem:
        return [row.problem]
    try:
        return schema.model_validate(row.record, context=container).case(position)
    except ValidationError as error:
        return [_explain(detail, schema) for detail in error.errors(include_url=False)]
    except FactError as error:
        return [str(error)]


def _recognise(source: str, rows: list[Row], schemas: Mapping[str, type[Schema]]) -> type[Schema]:
    """The schema whose required keys the rows hold among them, so that a key missing here and there does no harm."""
    found = {key for row in rows if isinstance(row.record, dict) for key in cast("dict[str, Any]", row.record)}
    if schema := fitting_schema(found, schemas):
        return schema
    if not found:  # Nothing here has keys; as edits, each row is told so.
        return EditRow
    expected = EditRow.required()
    nearest = {key: difflib.get_close_matches(key, found - {*expected}, n=1) for key in expected if key not in found}
    if len(found) == 1 and (parts := [one for one in (";", "\t") if one in next(iter(found))]):
        problem = f"its columns seem to be separated by {SEPARATORS[parts[0]]}, and are not those of any schema"
        names = _some([shortened(name.strip(), 80) for name in next(iter(found)).split(parts[0])])
        raise DatasetError(source, [f"{problem}: found {names}; expected for `edits`: {_listed(expected)}"])
    hints = [f" Is {close[0]!r} meant to be {key!r}?" for key, close in nearest.items() if close]
    unknown = (
        f"looks like none of {_listed(schemas)}: found the keys {_some([shortened(key, 80) for key in sorted(found)])}; "
        f"expected for `edits`: {_listed(expected)}.{''.join(hints)}"
    )
    raise DatasetError(source, [*_grouped((row.place, row.problem) for row in rows if row.problem), unknown])


_LOOKED_AT = 1000
"""Rows whose keys tell the schema; those after them are read as they are needed."""
_SHOWN = 20
"""Places and keys that a message lists."""
_WANTED = {
    "string_type": "text",
    "tuple_type": "a list of texts",
    "model_type": "an object with keys",
    "dict_type": "an object with keys",
}


def _explain(detail: ErrorDetails, schema: type[Schema]) -> str:
    """One of pydantic's complaints as a sentence with its fix."""
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
            return f"{quoted}cannot be used: {detail['msg']}; fix it there"


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
