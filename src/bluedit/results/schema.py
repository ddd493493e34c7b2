"""The JSON schema of what bluedit writes down and prints.

python -m bluedit.results.schema > docs/results-schema.json
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from bluedit.results import analysis, commands, demos, edits, evaluation, exports, known, ledgers, records
from bluedit.results.records import Record

__all__ = ["DOCUMENTS", "schema"]

DOCUMENTS: dict[str, type[Record]] = {
    "bluedit analyze bounds": analysis.BoundsResult,
    "bluedit analyze contribution": analysis.ContributionResult,
    "bluedit analyze cosine": analysis.CosineResult,
    "bluedit analyze gap": analysis.GapResult,
    "bluedit analyze hidden-states": analysis.HiddenStatesResult,
    "bluedit analyze pairs": analysis.PairsResult,
    "bluedit analyze single-layer": analysis.SingleLayerResult,
    "bluedit analyze steps": analysis.StepsResult,
    "bluedit analyze tables": analysis.TablesResult,
    "bluedit demo": demos.DemoResult,
    "bluedit demo --real": demos.RealDemoResult,
    "bluedit doctor": commands.DoctorResult,
    "bluedit edit": edits.EditResult,
    "bluedit edit --dry-run": edits.EditPlanResult,
    "bluedit evaluate": evaluation.EvaluateResult,
    "bluedit get": commands.GetResult,
    "bluedit run": records.Table,
    "bluedit run --json, of a matrix": records.MatrixTable,
    "bluedit stats": commands.StatsResult,
    "bluedit trace": commands.TraceResult,
    "bluedit tune": commands.TuneResult,
    "bluedit models": known.ModelsResult,
    "bluedit methods": known.MethodsResult,
    "bluedit patch show": edits.PatchShowResult,
    "bluedit patch apply": edits.PatchApplyResult,
    "bluedit patch revert": edits.PatchRevertResult,
    "bluedit patch diff": ledgers.PatchDiffResult,
    "bluedit patch drop": ledgers.PatchFactsResult,
    "bluedit patch merge": ledgers.PatchFactsResult,
    "bluedit patch verify": ledgers.VerifyResult,
    **{
        f"bluedit log {name}": ledgers.LogResult
        for name in ("create", "show", "apply", "undo", "redo", "checkout", "drop", "write")
    },
    "bluedit log verify": ledgers.VerifyResult,
    "bluedit export checkpoint": exports.ExportResult,
    "bluedit export lora": exports.ExportResult,
    "bluedit export gguf": exports.ExportResult,
    "bluedit export gguf-lora": exports.ExportResult,
    "bluedit session show": commands.SessionShowResult,
    "bluedit session undo": commands.SessionUndoResult,
    "table.json": records.Table,
    "before.json": records.Before,
    "NAME/result.json": records.RunResult,
    "NAME/records.jsonl, a line": records.CaseRecord,
    "matrix.json": records.MatrixTable,
    "bluedit evaluate --records": evaluation.EvaluatedCase,
}
"""What a command prints with `--json`, what an experiment's files hold, and what a line of `--records` is."""


class _Untitled(GenerateJsonSchema):
    """Keys are their own titles."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema() -> dict[str, Any]:
    """One JSON schema (draft 2020-12): a definition for every record, and under `documents` which of them each document is."""
    models = list(dict.fromkeys(DOCUMENTS.values()))
    references, definitions = models_json_schema([(model, "validation") for model in models], schema_generator=_Untitled)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "JSON documents of bluedit",
        "description": "Later versions may add keys. Files have two more: `document`, their kind, and `digest`, a hash.",
        "documents": {name: references[model, "validation"] for name, model in DOCUMENTS.items()},
        "$defs": definitions["$defs"],
    }


def main() -> None:
    """Print the schema."""
    sys.stdout.write(json.dumps(schema(), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
