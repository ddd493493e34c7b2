"""What bluedit writes down and prints as JSON, as typed records: the one place where the keys are listed.

:mod:`~bluedit.results.records` has what is measured: scores, the protocol tag, an experiment's files.
:mod:`~bluedit.results.commands`, :mod:`~bluedit.results.demos`, :mod:`~bluedit.results.edits`,
:mod:`~bluedit.results.exports` and :mod:`~bluedit.results.known` have what commands print with `--json`.
:mod:`~bluedit.results.schema` makes a JSON schema of all that. Nothing heavy is imported here.
"""

from bluedit.results.records import Before, Comparison, EditTag, Interval, ProtocolTag, Record, RunResult, RunSummary, Table

__all__ = ["Before", "Comparison", "EditTag", "Interval", "ProtocolTag", "Record", "RunResult", "RunSummary", "Table"]
