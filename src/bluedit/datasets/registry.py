"""The schemas by name, and which of them rows are in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from bluedit.datasets.benchmarks import KnowEditBioRecord, KnowEditRecord, MquakeRecord, RippleRecord, UnkeRecord
from bluedit.datasets.schemas import CounterFactRecord, EditRow, FlatCounterFactRecord, KnownRecord, Schema, ZsreRecord

__all__ = ["PRESETS", "SCHEMAS", "fitting_schema"]

SCHEMAS: dict[str, type[Schema]] = {
    "counterfact": CounterFactRecord,
    "counterfact-flat": FlatCounterFactRecord,
    "zsre": ZsreRecord,
    "edits": EditRow,
    "mquake": MquakeRecord,
    "ripple-edits": RippleRecord,
    "knowedit": KnowEditRecord,
    "knowedit-wikibio": KnowEditBioRecord,
    "unke": UnkeRecord,
}

PRESETS: dict[str, type[Schema]] = SCHEMAS | {"known": KnownRecord}
"""What facts that a model knows already may come in: its rows ask for no edit, so they are no cases to edit or to score."""


def fitting_schema(keys: Collection[str], schemas: Mapping[str, type[Schema]] = SCHEMAS) -> type[Schema] | None:
    """The schema whose required keys are all among these; of several the one that requires most, MQuAKE before CounterFact."""
    fitting = [schema for schema in schemas.values() if set(keys).issuperset(schema.required())]
    return max(fitting, key=lambda schema: len(schema.required()), default=None)
