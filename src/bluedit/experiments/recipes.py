"""Recipes: TOML files that say which model is edited with what, and how it is measured.

    name = "sequential"
    model = "gpt2-mini"
    dataset = "world:counterfact:0:2:person"
    facts = 400
    batch_size = 20

    [[runs]]
    method = "memit"

    [[runs]]
    method = "memit"
    strategy = "boundary"
    layers = "0-5"
    settings = { lambda = 300 }

What a run leaves out is looked up as :func:`bluedit.edit` does: the method's own strategy, the model's known layers and
settings. Lists (`models`, `datasets`, `protocols`, `seeds`, `methods`, `strategies`) make a recipe a matrix of such
experiments; see :mod:`bluedit.experiments.matrix`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from bluedit.editors.layers import parse_layers
from bluedit.errors import RecipeError, did_you_mean, shortened
from bluedit.methods import Editor, find_method
from bluedit.storage.parsing import is_file
from bluedit.strategies import find_strategy

__all__ = ["TEXT_KEYS", "AnalysisEntry", "Count", "Protocol", "Recipe", "Run", "Text", "find_recipe", "recipe_problem"]

_FOLDERS = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes")
"""Where recipes lie in an installed package, and in a checkout."""

Text = Annotated[str, Field(pattern=r"\S")]
Count = Annotated[int, Field(ge=1)]


Protocol = Literal["single", "batch", "sequential-batch"]
"""Each fact alone, scored and undone; all facts at once; or in batches, scored after the last."""


def _layers(value: Any) -> Any:
    return parse_layers(value) if isinstance(value, str) else value


class Run(BaseModel):
    """One sequence of edits: a method with a strategy, layers and settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Text
    strategy: Text | None = None
    layers: Annotated[tuple[int, ...] | None, BeforeValidator(_layers)] = None
    settings: dict[str, Any] = Field(default_factory=dict)
    note: str = ""
    """Tells runs of one method and strategy apart, and pairs those that belong together: it ends their labels."""

    @model_validator(mode="after")
    def _known(self) -> Run:
        self.resolve().override(self.settings)
        return self

    def resolve(self) -> Editor:
        """The method with the run's strategy."""
        method = find_method(self.method)
        return method if self.strategy is None else method.with_strategy(find_strategy(self.strategy))

    @property
    def label(self) -> str:
        """Method, strategy and note, for people."""
        return f"{self.resolve().label}{f' ({self.note})' if self.note else ''}"


class Recipe(BaseModel):
    """What a recipe file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text
    title: str = ""
    model: Text
    dtype: str | None = None
    dataset: Text
    facts: Count | None = None
    """How many records of the data set are edited; all when left out."""
    batch_size: Count | None = None
    """Facts of one batch; all in one when left out."""
    corpus: Text | None = None
    samples: Count | None = None
    seed: int = 0
    text: Text | None = None
    """Held-out text that the models are read on before and after: text:FILE, as a corpus."""
    text_skip: Annotated[int | None, Field(ge=0)] = None
    """The number of documents to skip at the beginning of the text, which the corpus may have used."""
    text_tokens: Count | None = None
    """How many tokens of it are predicted; 10,000 when left out."""
    protocol: Protocol | None = None
    """Left out: `sequential-batch` with a batch size, `batch` without."""
    evaluate_every: Count | None = None
    """Score also after every so many batches of a sequence."""
    threads: Count | None = None
    """Threads that the experiment computes with, which is what its last bits depend on; the machine's cores when left out."""
    runs: Annotated[tuple[Run, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.kind == "sequential-batch" and self.batch_size is None:
            raise ValueError("a sequence of batches needs batch_size, the facts of one batch")
        if self.kind != "sequential-batch" and (self.batch_size, self.evaluate_every) != (None, None):
            given = "batch_size" if self.batch_size is not None else "evaluate_every"
            raise ValueError(f"{given} is for a sequence of batches; the protocol here is {self.kind}: remove one of them")
        if self.kind == "single" and self.text is not None:
            raise ValueError(
                "held-out text is read after a sequence, not after every single fact; remove text, or the protocol"
            )
        return self

    @property
    def kind(self) -> Protocol:
        """The protocol, also where it is not named."""
        return self.protocol or ("batch" if self.batch_size is None else "sequential-batch")

    def claim(self) -> dict[str, Any]:
        """All that results depend on. Keys that came later count only where they are set: folders were claimed without them."""
        text = TEXT_KEYS if self.text is None else frozenset[str]()
        later = {name for name in ("protocol", "evaluate_every", "threads") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude={"title", *text, *later})

    @property
    def names(self) -> tuple[str, ...]:
        """A folder name for each run, distinct."""
        plain = [f"{run.resolve().name}-{run.resolve().strategy.name}".replace(":", "-") for run in self.runs]
        return tuple(
            name if plain.count(name) == 1 else f"{name}-{plain[: index + 1].count(name)}" for index, name in enumerate(plain)
        )


class AnalysisEntry(BaseModel):
    """An analysis that a recipe asks for, `[[analyses]]`; model, corpus, seed and held-out text are the recipe's.

    - `analysis`: its name, as `bluedit analyze` has it; `tables` is made of the recipe's own runs.
    - `dataset`: the recipe's, or the first of its list, when left out. `facts`: how many of its records.
    - `batch_size`, `prompts`, `layer`: what single analyses take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    analysis: Text
    dataset: Text | None = None
    facts: Count = 20
    method: Text = "memit"
    layers: Annotated[tuple[int, ...] | None, BeforeValidator(_layers)] = None
    settings: dict[str, Any] = Field(default_factory=dict)
    batch_size: Count | None = None
    prompts: Annotated[int, Field(ge=10)] = 1000
    layer: Annotated[int | None, Field(ge=0)] = None
    note: str = ""
    """Tells analyses of one name apart: it ends the name of their folder."""

    @model_validator(mode="after")
    def _known(self) -> AnalysisEntry:
        find_method(self.method).override(self.settings)
        return self


TEXT_KEYS = frozenset({"text", "text_skip", "text_tokens"})
"""The keys of held-out text, which recipes need not have."""


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with bluedit, such as `mini/sequential`.

    **Raises** :class:`~bluedit.errors.RecipeError` naming those that are there.
    """
    if is_file(name):
        return Path(name).expanduser()
    shipped = {
        str(file.relative_to(folder).with_suffix("")): file
        for folder in reversed(_FOLDERS)
        for file in sorted(folder.rglob("*.toml"))
    }
    wanted = name.removeprefix("recipes/").removesuffix(".toml")
    if wanted not in shipped:
        raise RecipeError(f"{shortened(name)} is not a file. {did_you_mean(wanted, shipped, what='recipe')}")
    return shipped[wanted]


def recipe_problem(error: Any) -> str:
    """One problem that was found in a recipe, with its place: `runs[2].layers`, counted from 1."""
    place = re.sub(r"\.(\d+)", lambda match: f"[{int(match[1]) + 1}]", ".".join(map(str, error["loc"])))
    return f"{place}: {error['msg'].removeprefix('Value error, ')}" if place else error["msg"].removeprefix("Value error, ")
