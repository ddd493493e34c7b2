"""`bluedit export`: a patch in the formats that models are served from."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bluedit.cli.options import AsJson, Check, Device, Force, Limit, ModuleMap, Quiet, TrustRemoteCode
from bluedit.cli.patch import PatchPath

if TYPE_CHECKING:
    from bluedit.cli.asking import Asked
    from bluedit.cli.console import Bars
    from bluedit.edits import Edit
    from bluedit.edits.export import Exported
    from bluedit.edits.export.blueprint import Blueprint
    from bluedit.models import EditableModel

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Write a patch as a checkpoint, a PEFT LoRA adapter, a GGUF model or a GGUF LoRA adapter."
)

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="The model that the patch is for: a folder, a GGUF file, a hub name, or a name that `bluedit models` lists. "
        "Optional if the patch was made for one of these names.",
    ),
]
OutFolder = Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="The folder that is written.")]
OutFile = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="The .gguf file that is written; its card goes beside it.")
]
Rank = Annotated[
    int | None,
    typer.Option("--rank", min=1, metavar="R", help="Keep the R largest singular directions of every change; all by default."),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset", help="Score the model unedited, patched and exported on these cases; as with `bluedit evaluate`."
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Ask the export for the patch's facts, and list what does not hold.")]
Push = Annotated[
    str | None, typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Upload the export to this repository of the hub.")
]


@app.command()
def checkpoint(
    patch: PatchPath,
    out: OutFolder,
    model: ModelOption = None,
    check: Check = True,
    dataset: Dataset = None,
    limit: Limit = None,
    verify: Verify = False,
    push: Push = None,
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="Dtype of the written weights; the checkpoint's own by default."),
    ] = None,
    force: Force = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a Hugging Face folder with the patch applied, as `bluedit patch apply` does.

    Everything else in the folder is copied as it is. `bluedit patch revert` takes the patch out again."""
    loaded, name, asked = _begin(patch, model, dataset, limit, verify, push)
    from bluedit.cli import console
    from bluedit.cli.applying import write_checkpoint

    with console.bars(f"loading {name}") as bars:
        exported, others = write_checkpoint(
            loaded, name, out, check=check, device=device, dtype=dtype or "auto", module_map=module_map, force=force,
            trust_remote_code=trust_remote_code, bars=bars, asked=asked,
        )  # fmt: skip
        _finish(exported, loaded, asked)
    if others:
        console.say(f"copied as they are, without the patch: {', '.join(others)}")
    _report(exported, patch, loaded, asked, push, as_json)


@app.command()
def lora(
    patch: PatchPath,
    out: OutFolder,
    model: ModelOption = None,
    rank: Rank = None,
    kind: Annotated[str, typer.Option("--type", metavar="TYPE", help="Type of the factors: float32, bfloat16 or float16.")] = (
        "float32"
    ),
    base: Annotated[
        str | None,
        typer.Option("--base-model", metavar="NAME", help="The model that the adapter names as its own; --model by default."),
    ] = None,
    dataset: Dataset = None,
    limit: Limit = None,
    verify: Verify = False,
    push: Push = None,
    device: Device = None,
    force: Force = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a PEFT LoRA adapter: exact for low-rank patches, compressed with --rank.

    PEFT, transformers and vLLM load it beside the untouched model."""
    loaded, name, asked = _begin(patch, model, dataset, limit, verify, push)
    from bluedit.cli import console
    from bluedit.edits.export.blueprint import read_blueprint
    from bluedit.edits.export.lora import export_lora, factor_type
    from bluedit.storage.locks import claimed

    with claimed(out), console.bars(f"looking {name} over") as bars:
        blueprint = read_blueprint(name, trust_remote_code=trust_remote_code, progress=bars)
        exported = export_lora(loaded, out, blueprint, rank=rank, dtype=kind, base_name=base, replace=force)
        _ask_adapter(asked, loaded, blueprint, rank, factor_type(kind), device, module_map, trust_remote_code, bars)
        _finish(exported, loaded, asked)
    _report(exported, patch, loaded, asked, push, as_json)


@app.command()
def gguf(
    patch: PatchPath,
    out: OutFile,
    model: ModelOption = None,
    kind: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Type of the changed tensors: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, or auto: f16, and f32 where that "
            "would lose more than 2 % of the change.",
        ),
    ] = "auto",
    all_tensors: Annotated[
        bool, typer.Option("--all-tensors", help="Store all matrices in --type. By default the others stay as they are.")
    ] = False,
    check: Check = True,
    dataset: Dataset = None,
    limit: Limit = None,
    verify: Verify = False,
    push: Push = None,
    device: Device = None,
    force: Force = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a GGUF model with the patch applied, for llama.cpp and what is built on it.

    From a GGUF file, or a folder that was made from one: its settings and all other tensors are copied byte for byte. Folders
    of a Llama or GPT-2 are converted."""
    loaded, name, asked = _begin(patch, model, dataset, limit, verify, push)
    from bluedit.cli import console
    from bluedit.edits.export.blueprint import read_blueprint, with_original_file
    from bluedit.edits.export.gguf_model import export_gguf
    from bluedit.storage.locks import claimed

    with claimed(out), console.bars(f"looking {name} over") as bars:
        blueprint = with_original_file(read_blueprint(name, trust_remote_code=trust_remote_code, progress=bars), bars)
        if blueprint.gguf is not None:
            exported = export_gguf(
                loaded, out, blueprint, kind=kind, all_tensors=all_tensors, check=check, replace=force, progress=bars
            )
        else:
            exported = _converted(loaded, out, blueprint, kind, check, force, bars)
        if asked.anything:
            _ask_plain(asked, loaded, _load(blueprint, loaded, device, module_map, trust_remote_code, bars), bars)
        asked.verify = asked.verify or bool(exported.warnings)  # whether the edit survived is asked of the file itself
        if asked.anything:
            written = blueprint_of_file(exported, blueprint)
            asked.ask("exported", _load(written, loaded, device, module_map, trust_remote_code, bars), loaded, bars)
        _finish(exported, loaded, asked)
    _report(exported, patch, loaded, asked, push, as_json)


@app.command("gguf-lora")
def gguf_lora(
    patch: PatchPath,
    out: OutFile,
    model: ModelOption = None,
    rank: Rank = None,
    kind: Annotated[str, typer.Option("--type", metavar="TYPE", help="Type of the factors: f32 or f16.")] = "f32",
    dataset: Dataset = None,
    limit: Limit = None,
    verify: Verify = False,
    push: Push = None,
    device: Device = None,
    force: Force = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a GGUF LoRA adapter: a small file that llama.cpp loads beside the untouched model, quantised or not.

    --dataset and --verify ask the change that the adapter makes, in transformers."""
    loaded, name, asked = _begin(patch, model, dataset, limit, verify, push)
    from bluedit.cli import console
    from bluedit.edits.export.blueprint import read_blueprint
    from bluedit.edits.export.gguf_lora import ADAPTER_TYPES, export_gguf_lora
    from bluedit.storage.locks import claimed

    with claimed(out), console.bars(f"looking {name} over") as bars:
        blueprint = read_blueprint(name, trust_remote_code=trust_remote_code, progress=bars)
        exported = export_gguf_lora(loaded, out, blueprint, rank=rank, kind=kind, replace=force)
        _ask_adapter(asked, loaded, blueprint, rank, ADAPTER_TYPES[kind], device, module_map, trust_remote_code, bars)
        _finish(exported, loaded, asked)
    _report(exported, patch, loaded, asked, push, as_json)


# -- what the commands share -----------------------------------------------------------------------------------------


def _begin(
    patch: Path, model: str | None, dataset: str | None, limit: int | None, verify: bool, push: str | None
) -> tuple[Edit, str, Asked]:
    """The patch, the model's name and the questions, looked at before anything heavy is done."""
    from bluedit.cli import console
    from bluedit.cli.asking import read_asked

    asked = read_asked(dataset, limit, verify)
    console.load()
    from bluedit.edits import load_edit
    from bluedit.errors import ModelError
    from bluedit.models.embedded import DOWNLOADS, EMBEDDED

    if push is not None:
        from bluedit.edits.export.hub import check_repository

        check_repository(push)
    loaded = load_edit(patch)
    name = model or loaded.manifest.model
    # A patch comes from anywhere: what it calls its model is no path to open and no name to download, unless it is one of ours.
    if model is None and name not in {*EMBEDDED, *DOWNLOADS}:
        raise ModelError("say which model the patch is for, with --model")
    return loaded, name, asked


def _load(
    blueprint: Blueprint, edit: Edit, device: str | None, module_map: Path | None, trust_remote_code: bool, bars: Bars
) -> EditableModel:
    from bluedit.models import load_model

    return load_model(
        blueprint.name, device=device, module_map=module_map, trust_remote_code=trust_remote_code,
        chat=edit.manifest.chat is not None, progress=bars,
    )  # fmt: skip


def _ask_plain(asked: Asked, edit: Edit, model: EditableModel, bars: Bars) -> None:
    """Ask the model as it is, and with the patch."""
    asked.ask("unedited", model, edit, bars)
    with edit.applied(model, check=False):
        asked.ask("patched", model, edit, bars)


def _ask_adapter(
    asked: Asked, edit: Edit, blueprint: Blueprint, rank: int | None, dtype: object, device: str | None,
    module_map: Path | None, trust_remote_code: bool, bars: Bars,
) -> None:  # fmt: skip
    """Ask the model as it is, with the patch, and with the change that the adapter makes."""
    if not asked.anything:
        return
    from bluedit.edits import Patch
    from bluedit.edits.export.low_rank import factor_all

    model = _load(blueprint, edit, device, module_map, trust_remote_code, bars)
    _ask_plain(asked, edit, model, bars)
    changes = {name: one.change() for name, one in factor_all(edit.changes, rank, dtype).items()}  # pyright: ignore[reportArgumentType]
    with Patch(changes, edit.manifest).applied(model, check=False):
        asked.ask("exported", model, edit, bars)


def _converted(edit: Edit, out: Path, blueprint: Blueprint, kind: str, check: bool, force: bool, bars: Bars) -> Exported:
    """A GGUF file from a folder of transformers."""
    from bluedit.edits.export.conversion import convert
    from bluedit.edits.export.gguf_model import export_gguf_from_folder
    from bluedit.models import load_model

    model = load_model(blueprint.name, device="cpu", dtype="auto", progress=bars)
    edit.check_fit(model.model, check=check)
    conversion = convert(model.model, model.tokenizer, blueprint.name)
    return export_gguf_from_folder(edit, out, blueprint, conversion, kind=kind, replace=force, progress=bars)


def blueprint_of_file(exported: Exported, blueprint: Blueprint) -> Blueprint:
    """The blueprint of a written GGUF file, to load it."""
    from dataclasses import replace

    return replace(blueprint, name=str(exported.path), source=str(exported.path))


def _finish(exported: Exported, edit: Edit, asked: Asked) -> None:
    """Write the card, with the scores in it."""
    from bluedit.edits.export.card import card
    from bluedit.edits.export.outputs import write_card

    write_card(exported, card(exported, edit, asked.scores, asked.dataset))


def _report(exported: Exported, patch: Path, edit: Edit, asked: Asked, push: str | None, as_json: bool) -> None:
    from bluedit.cli import console
    from bluedit.edits.export.hub import push_to_hub
    from bluedit.results.exports import ExportResult

    with console.bars(f"uploading to {push}") if push else nullcontext():
        address = push_to_hub(exported, push) if push else None
    lost = asked.not_held(edit)
    for warning in exported.warnings:
        console.warn(warning)
    for note in exported.notes:
        console.say(f"note: {note}")
    if lost:
        ours = [name for name in lost if name in asked.held.get("patched", ())]
        compared = f"; {len(ours)} of them hold in the patched model" if "patched" in asked.held else ""
        console.warn(f"{len(lost)} of {len(edit.facts)} facts do not hold in the export: {', '.join(lost[:20])}{compared}")
    if as_json:
        document = {
            "path": str(exported.path), "kind": exported.kind, "card": str(exported.card), "base": exported.base,
            "patch": str(patch), "notes": list(exported.notes), "warnings": list(exported.warnings),
            "scores": asked.scores, "not_held": lost, "uploaded": address,
            "weights": [
                {
                    "weight": part.weight, "stored": part.stored, "kind": part.kind, "rank": part.rank, "error": part.error,
                    "error_at_keys": part.error_at_keys,
                }
                for part in exported.parts
            ],
        }  # fmt: skip
        console.emit(ExportResult.of(document))
        return
    console.show(_table(exported))
    if asked.scores:
        console.show(console.score_table(f"{asked.dataset}, percent [95 % interval]", asked.scores))
    if lost == []:
        console.say(f"all {len(edit.facts)} facts hold in the export")
    where = f", and to {address}" if address else ""
    console.say(f"written to {exported.path}{where}; how to use it and take it back is in {exported.card}")


def _table(exported: Exported) -> object:
    from bluedit.cli.console import Table

    table = Table(["weight", "stored as", "rank", "error", "error at keys"], text=2)
    for part in exported.parts:
        keys = "-" if part.error_at_keys is None else f"{part.error_at_keys:.2%}"
        rank = "-" if part.rank is None else str(part.rank)
        table.add(part.stored, part.kind, rank, f"{part.error:.2%}", keys)
    return table
