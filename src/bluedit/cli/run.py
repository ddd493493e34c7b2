"""`bluedit run`: an experiment from a recipe, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bluedit.cli.options import AsJson, Device, Force, ModuleMap, Quiet, TrustRemoteCode

__all__ = ["run"]


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe: mini/sequential.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder of results; runs/NAME by default.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="NAME", help="Overrides the recipe's model.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Overrides the recipe's data set.")] = None,
    corpus: Annotated[str | None, typer.Option("--corpus", help="Overrides the recipe's corpus: text:FILE.")] = None,
    facts: Annotated[int | None, typer.Option("--facts", min=1, help="Edit only the first N facts.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Overrides the recipe's batch size.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="METHOD", help="Run only this method; repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Overrides the recipe's seed.")] = None,
    device: Device = None,
    force: Force = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Edit and score as a recipe says. If the command is interrupted, run it again: it resumes."""
    from bluedit.cli import console

    console.load()
    from bluedit.errors import RecipeError, did_you_mean
    from bluedit.experiments import find_recipe, read_recipe
    from bluedit.experiments.runner import EXPERIMENT

    path = find_recipe(recipe)
    chosen = read_recipe(path)
    methods = {one.method for one in chosen.runs}
    for name in only or []:
        if name not in methods:
            raise RecipeError(f"{path} has no run of this: {did_you_mean(name, methods, what='method')}")
    changes: dict[str, Any] = {
        "model": model, "dataset": dataset, "corpus": corpus, "facts": facts, "batch_size": batch_size, "seed": seed,
        "runs": tuple(one for one in chosen.runs if one.method in only) if only else None,
    }  # fmt: skip
    chosen = chosen.model_copy(update={name: value for name, value in changes.items() if value is not None})
    from bluedit.datasets import read_dataset

    read_dataset(chosen.dataset, chosen.facts)  # says what is wrong with it before a model is loaded

    from bluedit.experiments import Experiment
    from bluedit.models import load_model
    from bluedit.reports.tables import columns, comparisons, rows
    from bluedit.storage.files import writable_target

    folder = out or Path("runs") / chosen.name
    if force and folder.exists():
        writable_target(folder, replace=True, kind=EXPERIMENT)
    with console.bars(f"loading {chosen.model}") as bars:
        editable = load_model(
            chosen.model, device=device, dtype=chosen.dtype, module_map=module_map, trust_remote_code=trust_remote_code,
            progress=bars,
        )  # fmt: skip
        document = Experiment(chosen, editable, folder, replace=force).run(bars)
    if as_json:
        from bluedit.results import Table

        console.emit(Table.of(document))
        return
    title = f"{chosen.title or chosen.name}: percent [95 % interval]"
    console.show(console.Table(columns(document), rows(document), title=title))
    for line in comparisons(document):
        console.show(line)
    console.say(f"written to {folder / 'table.json'} and {folder / 'table.md'}")
