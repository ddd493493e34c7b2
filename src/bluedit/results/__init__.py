"""What bluedit writes down and prints as JSON, as typed records: the one place where the keys are listed.

:mod:`~bluedit.results.records` has what is measured: scores, the protocol tag, an experiment's files.
:mod:`~bluedit.results.commands`, :mod:`~bluedit.results.edits`, :mod:`~bluedit.results.evaluation`,
:mod:`~bluedit.results.exports`, :mod:`~bluedit.results.ledgers`, :mod:`~bluedit.results.analysis`,
:mod:`~bluedit.results.demos` and :mod:`~bluedit.results.known` have what commands print with `--json`.
:mod:`~bluedit.results.schema` makes a JSON schema of all that. Nothing heavy is imported here.
"""

from bluedit.results.records import (
    Along,
    Before,
    CaseRecord,
    CellResult,
    Comparison,
    EditTag,
    Failure,
    Interval,
    MatrixTable,
    ProtocolTag,
    Record,
    RunResult,
    RunSummary,
    Table,
    Told,
)

__all__ = [
    "Along",
    "Before",
    "CaseRecord",
    "CellResult",
    "Comparison",
    "EditTag",
    "Failure",
    "Interval",
    "MatrixTable",
    "ProtocolTag",
    "Record",
    "RunResult",
    "RunSummary",
    "Table",
    "Told",
]
