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
settings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bluedit.editors.layers import parse_layers
from bluedit.errors import RecipeError, SettingsError, did_you_mean, shortened
from bluedit.methods import Editor, find_method
from bluedit.storage.parsing import is_file, parse_toml, read_text
from bluedit.strategies import find_strategy

__all__ = ["TEXT_KEYS", "Recipe", "Run", "find_recipe", "read_recipe"]

_FOLDERS = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes")
"""Where recipes lie in an installed package, and in a checkout."""

Text = Annotated[str, Field(pattern=r"\S")]
Count = Annotated[int, Field(ge=1)]


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
    runs: Annotated[tuple[Run, ...], Field(min_length=1)]

    @property
    def names(self) -> tuple[str, ...]:
        """A folder name for each run, distinct."""
        plain = [f"{run.resolve().name}-{run.resolve().strategy.name}".replace(":", "-") for run in self.runs]
        return tuple(
            name if plain.count(name) == 1 else f"{name}-{plain[: index + 1].count(name)}" for index, name in enumerate(plain)
        )


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


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    **Raises** :class:`~bluedit.errors.RecipeError` with one line per problem.
    """
    try:
        document = parse_toml(read_text(path))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError("\n".join(f"{path}: {_problem(one)}" for one in error.errors())) from error
    except SettingsError as error:
        raise RecipeError(f"{path}: {error}") from error


def _problem(error: Any) -> str:
    place = re.sub(r"\.(\d+)", lambda match: f"[{int(match[1]) + 1}]", ".".join(map(str, error["loc"])))
    if error["type"] == "extra_forbidden":
        fields = Run.model_fields if place.startswith("runs") else Recipe.model_fields
        return f"{place}: {did_you_mean(str(error['loc'][-1]), fields, what='key')}"
    return f"{place}: {error['msg'].removeprefix('Value error, ')}" if place else error["msg"]
