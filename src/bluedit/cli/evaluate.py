"""`bluedit evaluate`: score a model, with a patch beside it or without."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluedit.cli.options import (
    AsJson,
    Chat,
    Check,
    Device,
    Dtype,
    Force,
    Limit,
    Model,
    ModuleMap,
    OnConflict,
    Quiet,
    Seed,
    TrustRemoteCode,
)
from bluedit.errors import InputError, SettingsError, did_you_mean

if TYPE_CHECKING:
    from bluedit.datasets import Case
    from bluedit.edits import Edit
    from bluedit.evaluation import Measure, Measured
    from bluedit.evaluation.language import HeldOutText
    from bluedit.models import EditableModel
    from bluedit.results import ProtocolTag

__all__ = ["evaluate"]

_PROTOCOLS = ("standard", "wild", "all")


def evaluate(
    model: Model,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="FORMAT:FILE (counterfact, zsre, mquake, ripple-edits, knowedit, unke, edits, ...), a FILE whose schema is "
            "recognised, hub:NAME, or world:counterfact.",
        ),
    ],
    patch: Annotated[
        Path | None, typer.Option("--patch", help="Score the model with this patch, beside the model without it.")
    ] = None,
    protocols: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            metavar="NAME",
            help="standard (teacher forced, the default), wild (free generation, the whole answer), or all; several times.",
        ),
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Also fluency and consistency of texts after the generation prompts.")
    ] = False,
    references: Annotated[
        str | None,
        typer.Option(
            "--references",
            metavar="FILE",
            help="What consistency is measured against: a file like ROME's attribute_snippets.json, or world:SEED.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FILE", help="Held-out text, a document a line: perplexity, with a patch also KL."),
    ] = None,
    text_tokens: Annotated[int, typer.Option("--text-tokens", min=1, help="Tokens of held-out text to use.")] = 20_000,
    examples: Annotated[
        Path | None,
        typer.Option("--examples", metavar="FILE", help="Text to put before each follow-up question, such as examples."),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option("--records", metavar="FILE", help="Write a JSON line for every case, with its outcomes and texts."),
    ] = None,
    force: Force = False,
    limit: Limit = None,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Leave records out that cannot be used, and count them.")
    ] = False,
    on_conflict: OnConflict = "error",
    check: Check = True,
    cases: Annotated[bool, typer.Option("--cases", help="Add every case's outcomes to the JSON document.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    chat: Chat = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score a model on cases: efficacy, generalisation, specificity, and what else their data set asks, with 95 % intervals."""
    from bluedit.datasets import read_dataset
    from bluedit.facts import check_on_conflict

    asked = _protocols(protocols)
    skipped: list[str] | None = [] if skip_malformed else None
    questions = read_dataset(dataset, limit, on_conflict=check_on_conflict(on_conflict), skipped=skipped)

    from bluedit.cli import console

    console.load()
    from bluedit.cli.opening import open_model
    from bluedit.edits import load_edit
    from bluedit.evaluation import case_records, measure_beside, protocol
    from bluedit.storage.case_records import CASE_RECORDS, write_case_records
    from bluedit.storage.files import writable_target

    if records is not None:
        writable_target(records, replace=force, kind=CASE_RECORDS)
    loaded = load_edit(patch) if patch else None
    with console.bars(f"loading {model}") as bars:
        editable = open_model(
            model, device=device, dtype=dtype, module_map=module_map, trust_remote_code=trust_remote_code, chat=chat,
            progress=bars,
        )  # fmt: skip
        if loaded:
            _compare_prompts(patch, loaded, editable)
        measures = _measures(editable, questions, asked, generate, references, examples, seed)
        told: dict[str, Any] = {"dataset": dataset, "patch": loaded, "seed": seed, "fingerprint": editable.fingerprint()}
        tags = [protocol(editable, questions, **told, measured=one.tag, skipped=len(skipped or ())) for one in measures]
        started = time.monotonic()
        measured, compared = measure_beside(
            editable, questions, measures, edit=loaded, check=check, progress=bars,
            held_out=_held_out(editable, text, text_tokens),
        )  # fmt: skip
        seconds = round(time.monotonic() - started, 3)
    if records is not None:
        write_case_records(records, (one.as_dict() for one in case_records(questions, measured)))
    document = _document(measured, tags) | {"model": model, "patch": str(patch) if patch else None, "dataset": dataset}
    document |= {"seconds": seconds, "text": None if compared is None else _text(compared.as_dict(), loaded is not None)}
    document |= {"skipped": skipped, "records": None if records is None else str(records)}
    document |= {"cases": [{"id": name, "outcomes": values} for name, values in measured[0].scores.cases] if cases else None}
    _print(document, len(questions), as_json)


def _protocols(names: list[str] | None) -> list[str]:
    """The protocols that are asked for, each once. **Raises** :class:`~bluedit.errors.SettingsError` for others."""
    names = names or ["standard"]
    for name in names:
        if name not in _PROTOCOLS:
            raise SettingsError(did_you_mean(name, _PROTOCOLS, what="protocol"))
    return [name for name in _PROTOCOLS[:-1] if name in names or "all" in names]


def _compare_prompts(patch: Path | None, loaded: Edit, editable: EditableModel) -> None:
    from bluedit.cli import console

    if loaded.manifest.chat != editable.text.chat:
        made = "plain prompts" if loaded.manifest.chat is None else "prompts in a chat template"
        console.say(f"{patch} was made with {made}, but this evaluation uses other prompts; set them with --chat")


def _measures(
    editable: EditableModel,
    cases: list[Case],
    protocols: list[str],
    generate: bool,
    references: str | None,
    examples: Path | None,
    seed: int,
) -> list[Measure[Any]]:
    from bluedit.evaluation import (
        FollowUps,
        Standard,
        TextQuality,
        Wild,
        asks_follow_ups,
        read_references,
        wild_forms,
    )

    measures: list[Measure[Any]] = [Standard()] if "standard" in protocols else []
    if "wild" in protocols:
        measures += [Wild(form) for form in wild_forms(editable)]
    if asks_follow_ups(cases):
        measures.append(FollowUps(None if examples is None else _read_examples(examples)))
    if generate:
        if not any(case.generation for case in cases):
            raise InputError("no case has generation prompts to measure fluency on; leave out --generate")
        measures.append(TextQuality(None if references is None else read_references(references), seed=seed))
    elif references is not None:
        raise SettingsError("--references is for consistency; add --generate")
    return measures


def _read_examples(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SettingsError(f"the file of examples {path} cannot be read: {error}") from error


def _held_out(editable: EditableModel, text: str | None, tokens: int) -> HeldOutText | None:
    from bluedit.evaluation.language import HeldOutText, draw_rows
    from bluedit.statistics import read_corpus
    from bluedit.storage.parsing import is_file

    if text is None:
        return None
    kind = "jsonl" if text.lower().endswith(".jsonl") else "text"
    corpus = read_corpus(f"{kind}:{text}" if is_file(text) or ":" not in text else text)
    return HeldOutText(editable, draw_rows(editable, corpus.documents(), tokens))


def _document(measured: list[Measured], tags: list[ProtocolTag]) -> dict[str, Any]:
    """The scores of all measures; those of the first stand in front as well."""
    rows: list[dict[str, Any]] = []
    for one, tag in zip(measured, tags, strict=True):
        row: dict[str, Any] = {"name": one.measure.name, "scores": one.scores.as_dict()}
        if one.before is not None:
            row["before"] = one.before.as_dict()
        rows.append({**row, "protocol": tag})
    return {"scores": rows[0]["scores"], "protocol": tags[0], "measures": rows}


def _text(scores: dict[str, Any], compared: bool) -> dict[str, Any]:
    """What is known on held-out text: without a patch there is nothing to compare the model with."""
    return scores if compared else {name: scores[name] for name in ("documents", "tokens", "perplexity")}


def _print(document: dict[str, Any], count: int, as_json: bool) -> None:
    from bluedit.cli import console
    from bluedit.results.evaluation import EvaluateResult

    skipped = document["skipped"]
    if skipped:
        console.warn(f"{len(skipped)} records cannot be used and were left out, such as {skipped[0]}")
    if as_json:
        optional = ("text", "skipped", "records", "cases")
        kept = {name: value for name, value in document.items() if name not in optional or value is not None}
        console.emit(EvaluateResult.of(kept))
        return
    label = document["model"]
    number = f"{count} cases" + (f" ({len(skipped)} left out)" if skipped else "")
    for row in document["measures"]:
        name = "" if row["name"] == "standard" else f"{row['name']}, "
        rows = {label: row["scores"]}
        if "before" in row:
            rows = {label: row["before"], f"{label} + {document['patch']}": row["scores"]}
        console.show(console.score_table(f"{document['dataset']}, {number}, {name}percent [95 % interval]", rows))
    if document["text"]:
        console.show(_text_table(document["text"]))


def _text_table(text: dict[str, Any]) -> Any:
    from bluedit.cli import console

    names = [name for name, value in text.items() if isinstance(value, dict)]
    table = console.Table(["", "value", "95 % interval"], title=f"held-out text, {text['tokens']:,} tokens")
    for name in names:
        value = text[name]
        table.add(name, f"{value['value']:.4g}", f"[{value['low']:.4g}, {value['high']:.4g}]")
    return table
