"""`bluedit log`: the history of a model in a ledger."""

from __future__ import annotations

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
    from bluedit.edits import Ledger

__all__ = ["app", "show_ledger"]

app = typer.Typer(
    no_args_is_help=True,
    help="Record what is done to a model in a ledger: apply edits, undo, redo, go back to any version. `edit`, `evaluate` and "
    "`patch verify` take a ledger as --model.",
)

Folder = Annotated[Path, typer.Argument(metavar="LEDGER", help="The folder of the ledger.")]
Steps = Annotated[int, typer.Argument(metavar="[STEPS]", min=1, help="How many versions.")]
Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="A remark that `log show` prints.")]


@app.command()
def create(
    ledger: Folder,
    model: Model,
    device: Device = None,
    dtype: Dtype = None,
    chat: Chat = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make a ledger for a model. Version 0 is the model as it is."""
    from bluedit.cli import console

    console.load()
    from bluedit.edits import Ledger
    from bluedit.models import load_model
    from bluedit.storage.files import writable_target

    writable_target(ledger)
    with console.bars(f"loading {model}") as bars:
        editable = load_model(
            model, device=device, dtype=dtype, module_map=module_map, trust_remote_code=trust_remote_code, chat=chat,
            progress=bars,
        )  # fmt: skip
        # A path is kept whole, so that the ledger can be used from anywhere.
        name = str(Path(model).expanduser().resolve()) if Path(model).expanduser().exists() else model
        made = Ledger.create(ledger, editable, name)
    show_ledger(made, as_json)


@app.command()
def show(ledger: Folder, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Show all versions, and which one is the head."""
    from bluedit.edits import Ledger

    show_ledger(Ledger.open(ledger), as_json)


@app.command()
def apply(
    ledger: Folder,
    patch: Annotated[Path, typer.Argument(metavar="PATCH", help="A patch folder or .safetensors file.")],
    note: Note = "",
    check: Check = True,
    device: Device = None,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Apply a patch to the model as the head has it, as the next version."""
    from bluedit.cli import console

    console.load()
    from bluedit.cli.opening import ledger_model
    from bluedit.edits import Ledger, load_edit

    opened, loaded = Ledger.open(ledger), load_edit(patch)
    with console.bars(f"loading {opened.model}") as bars:
        model = ledger_model(opened, device=device, module_map=module_map, trust_remote_code=trust_remote_code, progress=bars)
        opened.restore(model)
        opened.apply(loaded, model, note=note, check=check)
    show_ledger(opened, as_json)


@app.command()
def undo(ledger: Folder, steps: Steps = 1, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Move the head to the version it was made from."""
    from bluedit.edits import Ledger

    opened = Ledger.open(ledger)
    opened.undo(steps)
    show_ledger(opened, as_json)


@app.command()
def redo(ledger: Folder, steps: Steps = 1, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Move the head to the version that was undone last."""
    from bluedit.edits import Ledger

    opened = Ledger.open(ledger)
    opened.redo(steps)
    show_ledger(opened, as_json)


@app.command()
def checkout(
    ledger: Folder,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=0, help="The number of the version.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Move the head to any version."""
    from bluedit.edits import Ledger

    opened = Ledger.open(ledger)
    opened.checkout(version)
    show_ledger(opened, as_json)


@app.command()
def drop(
    ledger: Folder,
    ids: Annotated[list[str], typer.Argument(metavar="FACT_ID...", help="The facts that go.")],
    edit: Annotated[
        str | None,
        typer.Option("--edit", metavar="DIGEST", help="The edit they go from, where several have facts of that id."),
    ] = None,
    corpus: CorpusName = None,
    samples: Samples = None,
    device: Device = None,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Take facts out: their edits, and those after them, are solved again with the targets they have, as the next version."""
    from bluedit.cli import console

    console.load()
    from bluedit.cli.opening import ledger_model
    from bluedit.cli.patch_facts import statistics_of
    from bluedit.edits import Ledger
    from bluedit.sessions.recording import drop_from_ledger

    opened = Ledger.open(ledger)
    with console.bars(f"loading {opened.model}") as bars:
        model = ledger_model(opened, device=device, module_map=module_map, trust_remote_code=trust_remote_code, progress=bars)
        statistics = statistics_of(corpus, samples)
        drop_from_ledger(opened, model, ids, edit=edit, statistics=statistics, progress=bars)
    show_ledger(opened, as_json)


@app.command()
def verify(
    ledger: Folder,
    device: Device = None,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Ask the model, as the head has it, for every fact, and list those that do not hold; the exit code is then 1.

    Of facts that ask the same of one subject, the latest counts."""
    from bluedit.cli import console

    console.load()
    from bluedit.cli.opening import ledger_model
    from bluedit.cli.patch_facts import show_verdicts
    from bluedit.edits import Ledger
    from bluedit.evaluation import verify_facts
    from bluedit.facts import settle

    opened = Ledger.open(ledger)
    with console.bars(f"loading {opened.model}") as bars:
        model = ledger_model(opened, device=device, module_map=module_map, trust_remote_code=trust_remote_code, progress=bars)
        opened.restore(model)
        facts = [fact for edit in opened.edits() for fact in edit.facts]
        current = [facts[place] for place in settle(facts)]
        verdicts = verify_facts(model, current, progress=lambda done, total: bars("asking", done, total))
    show_verdicts(verdicts, str(ledger), None, as_json)


@app.command()
def write(
    ledger: Folder,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder the checkpoint is written to.")],
    device: Device = None,
    force: Force = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the model, as the head has it, as a checkpoint; `bluedit patch revert` takes edits out of that."""
    from bluedit.cli import console

    console.load()
    from bluedit.cli.applying import check_output
    from bluedit.cli.opening import ledger_model
    from bluedit.edits import Ledger
    from bluedit.edits.checkpoint import save_checkpoint
    from bluedit.models.loading import model_folder
    from bluedit.storage.locks import claimed

    opened = Ledger.open(ledger)
    check_output(out, opened.model, force)
    with claimed(out), console.bars(f"loading {opened.model}") as bars:
        model = ledger_model(opened, device=device, module_map=module_map, trust_remote_code=trust_remote_code, progress=bars)
        opened.restore(model)
        bars(f"writing {out}", 0, None)
        save_checkpoint(model, out, source=model_folder(opened.model), replace=force)
    console.say(f"version {opened.head.number} written to {out}")
    if as_json:
        show_ledger(opened, as_json)


def show_ledger(ledger: Ledger, as_json: bool) -> None:
    """Print a ledger: its versions, the newest last, and the head."""
    from bluedit.cli import console

    under_way = ledger.session()
    document: dict[str, Any] = {
        "ledger": str(ledger.folder),
        "model": ledger.model,
        "dtype": ledger.dtype,
        "head": ledger.head.number,
        "versions": [version.model_dump(mode="json") for version in ledger.versions],
        "moves": [move.model_dump(mode="json") for move in ledger.moves],
        "under_way": under_way[0] if under_way else None,
    }
    if as_json:
        from bluedit.results.ledgers import LogResult

        console.emit(LogResult.of(document))
        return
    table = console.Table(
        ["", "version", "from", "operation", "edits", "facts", "time (UTC)", "note"], title=ledger.model, text=1
    )
    for version in ledger.versions:
        table.add(
            "*" if version == ledger.head else "",
            str(version.number),
            "-" if version.parent is None else str(version.parent),
            version.operation,
            str(len(version.edits)),
            str(version.facts),
            version.time.replace("T", " ").removesuffix("+00:00"),
            version.note,
        )
    console.show(table)
    if under_way:
        console.show(f"a sequence from version {under_way[0]} on was interrupted; the command that began it resumes it")
