"""`bluedit doctor`: whether a model can be edited, what prevents it, and what it costs."""

from __future__ import annotations

from typing import Annotated

import typer

from bluedit.cli.options import AsJson, Device, Dtype, ModuleMap, Quiet, TrustRemoteCode, read_method
from bluedit.editors.layers import parse_layers

__all__ = ["doctor"]

_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder, a GGUF file, a hub name that is in the local cache, or a name that `bluedit models` lists.",
        ),
    ],
    method: Annotated[str, typer.Option("--method", help="The method to plan for; `bluedit methods` lists them.")] = "memit",
    strategy: Annotated[
        str | None, typer.Option("--strategy", help="The strategy to plan for; boundary (BLUE) by default.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Critical layers to plan for, such as 4-8; optional for known models.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Examine a model: whether it can be edited, what is missing, and how much memory and time an edit takes.

    Reads configuration, tokenizer and the headers of weight files only, and downloads nothing. Exit code 2 if the model
    cannot be edited, 0 otherwise, warnings included.
    """
    critical = parse_layers(layers) if layers else None
    from bluedit.cli import console

    console.load()
    chosen = read_method(method, strategy)

    from bluedit.doctor import examine
    from bluedit.models.layout.maps import read_module_map

    named = read_module_map(module_map) if module_map else None
    with console.bars(f"looking at {model}"):
        found = examine(
            model, chosen, layers=critical, device=device, dtype=dtype, module_map=named, trust_remote_code=trust_remote_code
        )
    if as_json:
        from bluedit.results.commands import DoctorResult

        console.emit(DoctorResult.of(found.as_dict()))
    else:
        from rich.text import Text

        rows = ((Text(check.status, _STYLES[check.status]), check.name, check.message) for check in found.checks)
        console.show(console.Table(["", "", "what was found"], rows, title=model, text=3))
        verdict = "can be edited" if found.editable else "cannot be edited as it is"
        console.show(f"{model} {verdict}")
    if not found.editable:
        raise typer.Exit(2)
