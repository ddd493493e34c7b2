"""The commands of `bluedit patch` that work with single facts: drop, merge, diff, verify."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluedit.cli.options import (
    AsJson,
    Chat,
    Check,
    CorpusName,
    Device,
    Dtype,
    Force,
    Model,
    ModuleMap,
    Quiet,
    Samples,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from bluedit.edits import Edit
    from bluedit.evaluation import Verdict
    from bluedit.models import EditableModel
    from bluedit.progress import Progress
    from bluedit.statistics import Statistics

__all__ = ["app", "show_verdicts", "statistics_of"]

app = typer.Typer()

PatchPath = Annotated[Path, typer.Argument(metavar="PATCH", help="A patch folder or .safetensors file.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the new patch goes: a folder, or one .safetensors file.")]


@app.command()
def drop(
    patch: PatchPath,
    ids: Annotated[list[str], typer.Argument(metavar="FACT_ID...", help="The facts that go; `patch show` lists them.")],
    model: Model,
    out: Out,
    corpus: CorpusName = None,
    samples: Samples = None,
    device: Device = None,
    dtype: Dtype = None,
    force: Force = False,
    chat: Chat = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Take facts out of a patch: the others are solved for again, with the targets they have. Nothing is optimised.

    `--model` is the model that the patch was made for, without the patch."""
    from bluedit.edits import load_edit
    from bluedit.sessions.resolving import drop_facts

    loaded = load_edit(patch)
    options = {"device": device, "dtype": dtype, "chat": chat, "module_map": module_map, "trust_remote_code": trust_remote_code}
    _solve(
        lambda editable, progress: drop_facts(
            editable, loaded, ids, statistics=statistics_of(corpus, samples), progress=progress
        ),
        model, out, force, options, list(ids), as_json,
    )  # fmt: skip


@app.command()
def merge(
    first: Annotated[Path, typer.Argument(metavar="PATCH", help="A patch folder or .safetensors file.")],
    second: Annotated[
        Path, typer.Argument(metavar="PATCH", help="Another one, made for the same model with the same options.")
    ],
    model: Model,
    out: Out,
    prefer: Annotated[
        str,
        typer.Option("--prefer", metavar="WHICH", help="When the patches contradict each other: error, first or second."),
    ] = "error",
    corpus: CorpusName = None,
    samples: Samples = None,
    device: Device = None,
    dtype: Dtype = None,
    force: Force = False,
    chat: Chat = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make one patch of two: solved for the facts of both together, with the targets they have. Nothing is optimised.

    `--model` is the model that both were made for, without them."""
    from bluedit.edits import load_edit
    from bluedit.sessions.resolving import check_prefer, merge_edits

    chosen = check_prefer(prefer)
    one, other = load_edit(first), load_edit(second)
    options = {"device": device, "dtype": dtype, "chat": chat, "module_map": module_map, "trust_remote_code": trust_remote_code}
    _solve(
        lambda editable, progress: merge_edits(
            editable, one, other, prefer=chosen, statistics=statistics_of(corpus, samples), progress=progress
        ),
        model, out, force, options, [], as_json,
    )  # fmt: skip


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="PATCH", help="A patch folder or .safetensors file.")],
    second: Annotated[Path, typer.Argument(metavar="PATCH", help="Another one.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compare two patches: facts, options, and how far apart their changes are."""
    from dataclasses import asdict

    from bluedit.cli import console

    console.load()
    from bluedit.edits import load_edit
    from bluedit.edits.comparing import compare_edits

    found = compare_edits(load_edit(first), load_edit(second))
    if as_json:
        from bluedit.results.ledgers import PatchDiffResult

        pairs = [{"first": asdict(one), "second": asdict(other)} for one, other in found.retargeted]
        document: dict[str, Any] = {"first": str(first), "second": str(second)} | asdict(found) | {"retargeted": pairs}
        console.emit(PatchDiffResult.of(document))
        return
    facts = console.Table(["", "id", "prompt", "target"], title=f"facts ({found.both} are in both)", text=4)
    for sign, side in (("-", found.only_first), ("+", found.only_second)):
        for fact in side:
            facts.add(sign, fact.id, fact.text, fact.target)
    for one, other in found.retargeted:
        facts.add("~", f"{one.id} / {other.id}", other.text, f"{one.target} / {other.target}")
    weights = console.Table(["weight", "||A||", "||B||", "||A - B||", "cosine"])
    for name, one in found.weights.items():
        weights.add(name, f"{one.first:.3f}", f"{one.second:.3f}", f"{one.distance:.3f}", f"{one.cosine:.3f}")
    if facts.rows:
        console.show(facts)
    else:
        console.show(f"the same {found.both} facts")
    for name, (one, other) in found.options.items():
        console.show(f"{name}: {one} / {other}")
    console.show(weights)


@app.command()
def verify(
    patch: PatchPath,
    model: Model,
    check: Check = True,
    device: Device = None,
    dtype: Dtype = None,
    chat: Chat = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Ask the patched model for every fact of a patch, and list those that do not hold; the exit code is then 1.

    A fact holds where its whole target is the greedy answer. In a checkpoint that has the patch applied it is not applied
    again."""
    from contextlib import nullcontext

    from bluedit.cli import console

    console.load()
    from bluedit.cli.opening import open_model
    from bluedit.edits import applied_patches, load_edit
    from bluedit.edits.checkpoint import read_applied
    from bluedit.evaluation import verify_facts

    loaded = load_edit(patch)
    with console.bars(f"loading {model}") as bars:
        editable = open_model(
            model, device=device, dtype=dtype, module_map=module_map, trust_remote_code=trust_remote_code, chat=chat,
            progress=bars,
        )  # fmt: skip
        if (Path(model).expanduser() / "config.json").is_file():
            read_applied(editable, model)
        there = any(one.digest == loaded.digest for one in applied_patches(editable))
        with nullcontext() if there else loaded.applied(editable, check=check):
            verdicts = verify_facts(editable, loaded.facts, progress=lambda done, total: bars("asking", done, total))
    show_verdicts(verdicts, model, str(patch), as_json)


def show_verdicts(verdicts: tuple[Verdict, ...], model: str, patch: str | None, as_json: bool) -> None:
    """Print what became of facts. Exits with 1 where one does not hold."""
    from bluedit.cli import console

    failing = [one for one in verdicts if not one.holds]
    holding = len(verdicts) - len(failing)
    if as_json:
        from bluedit.results.ledgers import VerifyResult

        facts = [
            {
                "id": one.fact.id,
                "prompt": one.fact.text,
                "target": one.fact.target,
                "holds": one.holds,
                "log_prob": one.log_prob,
            }
            | ({} if one.says is None else {"says": one.says})
            for one in verdicts
        ]
        console.emit(VerifyResult.of({"model": model, "patch": patch, "facts": facts, "holding": holding}))
    else:
        if failing:
            table = console.Table(["id", "prompt", "target", "the model says"], text=4)
            for one in failing:
                table.add(one.fact.id, one.fact.text, one.fact.target, one.says or "")
            console.show(table)
        console.show(f"{holding} of {len(verdicts)} facts hold")
    if failing:
        raise typer.Exit(1)


def statistics_of(corpus: str | None, samples: int | None) -> Statistics | None:
    """Second moments from another place than the patch names; None where none was given."""
    from bluedit.statistics import Statistics, read_corpus

    return Statistics(read_corpus(corpus), samples) if corpus else None


def _solve(
    solve: Callable[[EditableModel, Progress], Edit],
    model: str,
    out: Path,
    force: bool,
    options: dict[str, Any],
    dropped: list[str],
    as_json: bool,
) -> None:
    """Load the model, solve, write the patch, and say so."""
    from dataclasses import asdict

    from bluedit.cli import console

    console.load()
    from bluedit.edits.base import PATCH
    from bluedit.models import load_model
    from bluedit.storage.files import writable_target
    from bluedit.storage.locks import claimed

    writable_target(out, replace=force, kind=PATCH)
    with claimed(out), console.bars(f"loading {model}") as bars:
        editable = load_model(model, progress=bars, **options)
        started = time.monotonic()
        solved = solve(editable, bars)
        solved.save(out, replace=force)
    seconds = round(time.monotonic() - started, 3)
    if as_json:
        from bluedit.results.ledgers import PatchFactsResult

        facts = [asdict(fact) for fact in solved.facts]
        console.emit(PatchFactsResult.of({"patch": str(out), "facts": facts, "dropped": dropped, "seconds": seconds}))
    else:
        from bluedit.cli.patch import describe

        console.show(describe(solved))
        console.say(f"written to {out}")
