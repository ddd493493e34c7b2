"""`bluedit session`: look at saved sessions, take back their last batches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bluedit.cli.options import AsJson, Device, Model, ModuleMap, TrustRemoteCode

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Show saved sessions, and undo their last batches.")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder given to `bluedit edit --session`.")]


@app.command()
def show(folder: Folder, as_json: AsJson = False) -> None:
    """Show what a session holds: its method, its corpus, and its batches."""
    from bluedit.cli import console
    from bluedit.sessions import describe_session

    document = describe_session(folder)
    if as_json:
        from bluedit.results.commands import SessionShowResult

        console.emit(SessionShowResult.of({"session": str(folder), **document}))
        return
    for line in _lines(document):
        console.show(line)


@app.command()
def undo(
    folder: Folder,
    model: Model,
    batches: Annotated[int, typer.Option("--batches", min=1, metavar="N", help="How many batches to undo.")] = 1,
    device: Device = None,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Undo the last batches of a saved session. The next edit resumes before them. `--model` is the unedited model."""
    from bluedit.cli import console
    from bluedit.models import load_model
    from bluedit.sessions import Session, describe_session
    from bluedit.storage.locks import claimed

    document = describe_session(folder)
    with claimed(folder), console.bars() as bars:
        editable = load_model(
            model,
            device=device,
            dtype=document["dtype"],
            module_map=module_map,
            trust_remote_code=trust_remote_code,
            chat=document["chat"],
            progress=bars,
        )
        session = Session.resume(folder, editable)
        session.undo(batches)
        session.save(folder)
    left = describe_session(folder)
    if as_json:
        from bluedit.results.commands import SessionUndoResult

        console.emit(SessionUndoResult.of({"session": str(folder), "undone": batches, **left}))
    else:
        console.say(f"{batches} batches undone; {len(left['batches'])} are left in {folder}, {sum(left['batches'])} facts")


def _lines(document: dict[str, Any]) -> list[str]:
    batches = document["batches"]
    samples = "" if document["samples"] is None else f", {document['samples']} documents at most"
    finished = "; finished" if document["finished"] else ""
    return [
        f"{document['method']}, {document['strategy']}, critical layers {', '.join(map(str, document['layers']))}; "
        f"{document['dtype']}{', chat' if document['chat'] else ''}",
        f"corpus: {document['corpus']}{samples}",
        f"{len(batches)} batches, {sum(batches)} facts: {', '.join(map(str, batches))}{finished}",
    ]
