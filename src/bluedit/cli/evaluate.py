"""`bluedit evaluate`: score a model, with a patch or without."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from bluedit.cli.options import (
    AsJson,
    Chat,
    Check,
    Device,
    Dtype,
    Limit,
    Model,
    ModuleMap,
    OnConflict,
    Quiet,
    Seed,
    TrustRemoteCode,
)

__all__ = ["evaluate"]


def evaluate(
    model: Model,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="counterfact:FILE, zsre:FILE, edits:FILE, a FILE whose schema is recognised, or world:counterfact.",
        ),
    ],
    patch: Annotated[Path | None, typer.Option("--patch", help="Apply this patch for the evaluation.")] = None,
    limit: Limit = None,
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
    """Score a model on cases: efficacy, generalisation, specificity, with 95 % intervals."""
    from bluedit.datasets import read_dataset
    from bluedit.facts import check_on_conflict

    records = read_dataset(dataset, limit, on_conflict=check_on_conflict(on_conflict))

    from contextlib import nullcontext

    from bluedit.cli import console

    console.load()
    from bluedit.cli.opening import open_model
    from bluedit.edits import load_edit
    from bluedit.evaluation import protocol, score_cases

    loaded = load_edit(patch) if patch else None
    with console.bars(f"loading {model}") as bars:
        editable = open_model(
            model, device=device, dtype=dtype, module_map=module_map, trust_remote_code=trust_remote_code, chat=chat,
            progress=bars,
        )  # fmt: skip
        if loaded and loaded.manifest.chat != editable.text.chat:
            made = "plain prompts" if loaded.manifest.chat is None else "prompts in a chat template"
            console.say(f"{patch} was made with {made}, but this evaluation uses other prompts; set them with --chat")
        bars("scoring", 0, None)
        tag = protocol(editable, records, dataset=dataset, patch=loaded, seed=seed)
        started = time.monotonic()
        with loaded.applied(editable, check=check) if loaded else nullcontext():
            scores = score_cases(editable, records, progress=lambda done, total: bars("scoring", done, total))
        seconds = round(time.monotonic() - started, 3)
    if as_json:
        document: dict[str, Any] = {
            "model": model,
            "patch": str(patch) if patch else None,
            "dataset": dataset,
            "scores": scores.as_dict(),
            "protocol": tag,
            "seconds": seconds,
        }
        if cases:
            document["cases"] = [{"id": name, "outcomes": outcomes} for name, outcomes in scores.cases]
        from bluedit.results.commands import EvaluateResult

        console.emit(EvaluateResult.of(document))
    else:
        label = f"{model} + {patch}" if patch else model
        console.show(
            console.score_table(f"{dataset}, {len(records)} cases, percent [95 % interval]", {label: scores.as_dict()})
        )
