"""`bluedit report`: what experiments have found, as a page or a text; several of them side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bluedit.cli.options import Quiet
from bluedit.errors import InputError, SettingsError, did_you_mean

__all__ = ["report"]

_SUFFIXES = {"html": ".html", "markdown": ".md"}


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders that `bluedit run` has written.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The file to write; FOLDER/report.html by default.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help="html or markdown; by default as FILE's name says.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write the report of an experiment, or of several: their scores side by side, with paired differences.

    The page opens by itself: it loads nothing, and needs no server.
    """
    chosen = _format(kind, out)
    path = out or (folders[0] if len(folders) == 1 else Path()) / f"report{_SUFFIXES[chosen]}"
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file: --out {path / 'report.html'}")
    from bluedit.cli import console

    console.load()
    from bluedit.experiments.gathering import gather, report_text
    from bluedit.storage.files import atomic_file

    with console.bars("reading results") as bars:
        data = gather(folders)
        bars("writing the report", 0, None)
        text = report_text(data, chosen)
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    console.show(str(path))


def _format(kind: str | None, out: Path | None) -> str:
    """**Raises** :class:`~bluedit.errors.SettingsError` for a format that is not there."""
    if kind is None:
        return "markdown" if out is not None and out.suffix in (".md", ".markdown") else "html"
    if kind not in _SUFFIXES:
        raise SettingsError(did_you_mean(kind, _SUFFIXES, what="format"))
    return kind
