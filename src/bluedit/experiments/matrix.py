"""Recipes with lists: a matrix of models, data sets, protocols and seeds, each combination an experiment of its own.

    name = "both"
    models = ["gpt2-mini", { model = "smollm2-135m-instruct", corpus = "text:wiki.txt", samples = 2000 }]
    datasets = ["world:counterfact:0:3:person", { dataset = "zsre:zsre.json", facts = 100 }]
    seeds = [0, 1, 2]
    methods = ["memit", "rect", { method = "prune", settings = { prune_base = 1.1 } }]
    strategies = ["own", "boundary"]

    [[protocols]]
    facts = 400
    batch_size = 20

    [[protocols]]
    protocol = "single"

An entry of a list is a name, or a table with the name and the keys that go with it. A *cell* is one combination of model,
data set, protocol and seed: a recipe without lists, whose runs are all methods with all strategies, and the `[[runs]]`. What
several parts say of one key, the later of these says: the top of the file, the model, the data set, the protocol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bluedit.errors import RecipeError, SettingsError, did_you_mean
from bluedit.experiments.recipes import TEXT_KEYS, AnalysisEntry, Count, Protocol, Recipe, Run, Text, recipe_problem
from bluedit.storage.parsing import parse_toml, read_text

__all__ = ["AnalysisTask", "Cell", "Plan", "read_plan", "read_recipe"]

OWN = "own"
"""Among strategies: the one that a method was published with."""


def _named(key: str) -> BeforeValidator:
    """An entry that is a name alone, as a table."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelEntry(_Entry):
    """A model, and what belongs to it."""

    model: Text
    dtype: str | None = None
    corpus: Text | None = None
    samples: Count | None = None
    text: Text | None = None
    text_skip: Annotated[int | None, Field(ge=0)] = None
    text_tokens: Count | None = None


class DatasetEntry(_Entry):
    """A data set, and how many of its records are edited."""

    dataset: Text
    facts: Count | None = None


class ProtocolEntry(_Entry):
    """A protocol: how facts are edited, and when they are scored."""

    protocol: Protocol | None = None
    facts: Count | None = None
    batch_size: Count | None = None
    evaluate_every: Count | None = None


class Lists(_Entry):
    """The lists of a recipe."""

    models: Annotated[tuple[Annotated[ModelEntry, _named("model")], ...] | None, Field(min_length=1)] = None
    datasets: Annotated[tuple[Annotated[DatasetEntry, _named("dataset")], ...] | None, Field(min_length=1)] = None
    protocols: Annotated[tuple[Annotated[ProtocolEntry, _named("protocol")], ...] | None, Field(min_length=1)] = None
    seeds: Annotated[tuple[int, ...] | None, Field(min_length=1)] = None
    methods: Annotated[tuple[Annotated[Run, _named("method")], ...] | None, Field(min_length=1)] = None
    strategies: Annotated[tuple[Text, ...] | None, Field(min_length=1)] = None
    analyses: Annotated[tuple[Annotated[AnalysisEntry, _named("analysis")], ...], Field()] = ()


_INSTEAD = {
    "models": ("model",),
    "datasets": ("dataset",),
    "protocols": ("protocol", "batch_size", "evaluate_every"),
    "seeds": ("seed",),
}
"""The keys that a list stands for, which a recipe cannot have beside it."""


@dataclass(frozen=True)
class Cell:
    """One experiment of a plan. `folder`: where its results lie in the plan's folder; `.` in a plan of one cell."""

    name: str
    recipe: Recipe

    @property
    def label(self) -> str:
        """Model, data set, protocol and seed, for people."""
        recipe = self.recipe
        return f"{_short(recipe.model)}, {recipe.dataset}, {protocol_text(recipe)}, seed {recipe.seed}"


@dataclass(frozen=True)
class AnalysisTask:
    """An analysis of one model. `name`: its folder in `analyses/`."""

    name: str
    entry: AnalysisEntry
    dataset: str
    model: ModelEntry
    seed: int

    @property
    def label(self) -> str:
        """Analysis and model, for people."""
        return f"{self.entry.analysis}, {_short(self.model.model)}{f' ({self.entry.note})' if self.entry.note else ''}"


@dataclass(frozen=True)
class Plan:
    """All that a recipe file asks for: one cell, or a matrix of them, and analyses.

    - `document`: the recipe as it was written, with what the command line changed.
    - `analyses`: see :mod:`bluedit.analysis.recipes`, which carries them out.
    """

    name: str
    title: str
    document: Mapping[str, Any]
    cells: tuple[Cell, ...]
    analyses: tuple[AnalysisTask, ...] = ()

    @property
    def flat(self) -> bool:
        """Whether there is one cell, whose results lie in the folder itself."""
        return len(self.cells) == 1

    def only(self, methods: Sequence[str]) -> Plan:
        """The plan with the runs of some methods alone.

        **Raises** :class:`~bluedit.errors.RecipeError` for a method that no run is of.
        """
        known = dict.fromkeys(run.method for cell in self.cells for run in cell.recipe.runs)
        for name in methods:
            if name not in known:
                raise RecipeError(f"the recipe {self.name} has no run of this: {did_you_mean(name, known, what='method')}")

        def chosen(cell: Cell) -> Cell:
            runs = tuple(run for run in cell.recipe.runs if run.method in methods)
            return replace(cell, recipe=cell.recipe.model_copy(update={"runs": runs}))

        return replace(self, cells=tuple(map(chosen, self.cells)))


def read_plan(path: Path, changes: Mapping[str, Any] | None = None, *, quick: bool = False) -> Plan:
    """Read and check a recipe, and work out its cells.

    **Arguments**

    - `changes`: keys of a recipe with values that count more than the file's, in every cell.
    - `quick`: let the keys in the recipe's table `[quick]` count more than the others: less of everything, to try it out.

    **Raises** :class:`~bluedit.errors.RecipeError` with one line per problem.
    """
    try:
        document = parse_toml(read_text(path))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    less = document.pop("quick", None)
    if quick:
        if not isinstance(less, dict):
            raise RecipeError(f"{path} has no table [quick], which says what --quick does; run it without, or add one")
        document = _changed(document, less)
        document["name"] = f"{document.get('name', path.stem)}-quick"
    forced = dict(changes or {})
    document = _changed(document, {key: forced.pop(key) for key in ("model", "dataset", "seed") if key in forced})
    try:
        return _plan(document, forced)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {_problem(one)}" for one in error.errors())) from error
    except SettingsError as error:
        raise RecipeError(f"{path}: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe of one cell.

    **Raises** what :func:`read_plan` does, also for a matrix.
    """
    plan = read_plan(path)
    if not plan.flat:
        raise RecipeError(f"{path} is a matrix of {len(plan.cells)} cells; use read_plan")
    return plan.cells[0].recipe


def _changed(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with other values; a key takes the place of the list that stands for it, and the other way round."""
    gone = {name for name, keys in _INSTEAD.items() if any(key in changes for key in keys)}
    gone |= {key for name, keys in _INSTEAD.items() if name in changes for key in keys}
    return {**{key: value for key, value in document.items() if key not in gone}, **changes}


def _plan(document: Mapping[str, Any], forced: Mapping[str, Any]) -> Plan:
    lists = Lists.model_validate({key: document[key] for key in Lists.model_fields if key in document})
    base = {key: value for key, value in document.items() if key not in Lists.model_fields}
    for name, keys in _INSTEAD.items():
        if getattr(lists, name) is not None and (both := [key for key in keys if key in base]):
            raise RecipeError(f"{name} and {both[0]} are both there; {name} is the list for it, so remove {both[0]}")
    if lists.strategies is not None and lists.methods is None:
        raise RecipeError("strategies are what methods are run with; add the list methods")
    runs = base.get("runs", ())
    crossed = [run.model_dump() for run in _crossed(lists)]
    if isinstance(runs, Sequence) and crossed:
        base["runs"] = [*crossed, *runs]
    axes = [
        [_given(one) for one in entries] if entries else [{}] for entries in (lists.models, lists.datasets, lists.protocols)
    ]
    seeds = [{"seed": seed} for seed in lists.seeds] if lists.seeds else [{}]
    recipes = [_recipe(base, parts, forced) for parts in product(*axes, seeds)]
    names = _distinct([_name(recipe) for recipe in recipes])
    first, whole = recipes[0], {**document, **forced}
    analyses = _analyses(lists, recipes)
    if len(recipes) == 1:
        return Plan(first.name, first.title, whole, (Cell(".", first),), analyses)
    cells = tuple(Cell(f"cells/{name}", recipe) for name, recipe in zip(names, recipes, strict=True))
    titled = tuple(replace(cell, recipe=cell.recipe.model_copy(update={"title": cell.label})) for cell in cells)
    return Plan(first.name, first.title, whole, titled, analyses)


def _analyses(lists: Lists, recipes: Sequence[Recipe]) -> tuple[AnalysisTask, ...]:
    """Every analysis of every model, with what the model's first cell says of corpus, text and seed."""
    firsts = {recipe.model: recipe for recipe in reversed(recipes)}
    models = list(dict.fromkeys(recipe.model for recipe in recipes))
    tasks: list[AnalysisTask] = []
    for entry in lists.analyses:
        for model in models if entry.analysis != "tables" else models[:1]:
            recipe = firsts[model]
            about = ModelEntry(**{name: getattr(recipe, name) for name in ModelEntry.model_fields})
            parts = (entry.analysis, *([_short(model)] if len(models) > 1 and entry.analysis != "tables" else ()), entry.note)
            name = "_".join(_slug(part) for part in parts if part)
            tasks.append(AnalysisTask(name, entry, entry.dataset or recipe.dataset, about, recipe.seed))
    names = _distinct([task.name for task in tasks])
    return tuple(replace(task, name=name) for task, name in zip(tasks, names, strict=True))


def _recipe(base: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], forced: Mapping[str, Any]) -> Recipe:
    merged = {**base}
    for part in parts:
        merged |= part
    if merged.get("protocol") == "single":
        # Text at the top of a matrix is for those of its protocols that can be followed by a reading.
        in_matrix = any("protocol" in part for part in parts)
        merged = {key: value for key, value in merged.items() if not (in_matrix and key in TEXT_KEYS)}
    return Recipe.model_validate({**merged, **forced})


def _crossed(lists: Lists) -> list[Run]:
    """Every method with every strategy; a method that names its own strategy has that one alone."""
    runs: list[Run] = []
    for run in lists.methods or ():
        for strategy in [run.strategy] if run.strategy else lists.strategies or (OWN,):
            runs.append(Run.model_validate({**run.model_dump(), "strategy": None if strategy == OWN else strategy}))
    return runs


def _given(entry: BaseModel) -> dict[str, Any]:
    return entry.model_dump(exclude_none=True)


# -- names -----------------------------------------------------------------------------------------------------------


def protocol_text(recipe: Recipe) -> str:
    """A recipe's protocol for people: `400 facts by 20`."""
    facts = "all facts" if recipe.facts is None else f"{recipe.facts:,} fact{'s' * (recipe.facts != 1)}"
    if recipe.kind == "single":
        return f"{facts}, one at a time"
    return f"{facts} at once" if recipe.batch_size is None else f"{facts} by {recipe.batch_size:,}"


def _name(recipe: Recipe) -> str:
    """A folder's name for a cell, with all that tells cells apart: another seed beside it changes no other name."""
    facts = recipe.facts or "all"
    protocol = f"{facts}x{recipe.batch_size}" if recipe.batch_size else f"{recipe.kind}-{facts}"
    return "_".join(map(_slug, (_short(recipe.model), recipe.dataset, protocol, f"seed{recipe.seed}")))


def _short(name: str) -> str:
    """The last part of a path."""
    return Path(name).name or name


def _slug(text: str) -> str:
    kind, separator, rest = text.partition(":")
    if separator and "/" in rest:
        text = f"{kind}-{Path(rest).stem}"
    elif "/" in text:
        text = Path(text).stem
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")[:60] or "x"


def _distinct(names: Sequence[str]) -> list[str]:
    return [
        name if names.index(name) == place else f"{name}-{names[: place + 1].count(name)}" for place, name in enumerate(names)
    ]


_FIELDS: dict[str, type[BaseModel]] = {
    "models": ModelEntry,
    "datasets": DatasetEntry,
    "protocols": ProtocolEntry,
    "methods": Run,
    "runs": Run,
    "analyses": AnalysisEntry,
}


def _problem(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        *place, key = error["loc"]
        top = [*Recipe.model_fields, *Lists.model_fields, "quick"]
        known = [*_FIELDS[str(place[0])].model_fields] if place else top
        return recipe_problem({**error, "msg": did_you_mean(str(key), known, what="key")})
    return recipe_problem(error)
