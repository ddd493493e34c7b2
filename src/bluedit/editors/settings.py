"""Settings: the numbers that a part of an editor leaves open, each with its default, bounds, unit and a sentence.

A part (a prior, an objective, a constraint, a solver, a way of fine-tuning) declares its own settings as a class:

    class RidgeSettings(Settings):
        ridge: float = setting(0.1, "Weight of ||D||^2.", gt=0)

An editor's settings are the union of its parts' (:func:`union`): one object, an instance of each part's class. A part that
someone else wrote is the equal of ours: `--set`, `bluedit methods NAME`, the docs and `bluedit tune` read the declarations.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from bluedit import renamed
from bluedit.errors import SettingsError, did_you_mean, excerpt

__all__ = ["Search", "Setting", "Settings", "current_names", "declared_names", "setting", "union"]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How `bluedit tune` varies a setting: by a factor, between two ends.

    - `heading`: the direction that is tried first, 1 or -1.
    - `usual`: its place among those that a search varies when it is not told what to vary, from 1; what leaves values alone
      comes first, as it is cheap to try. 0: not among them.
    """

    factor: float
    lowest: float
    highest: float
    heading: int = 1
    usual: int = 0


def setting(
    default: Any,
    sentence: str,
    *,
    unit: str = "",
    search: Search | None = None,
    alias: str | None = None,
    gt: float | None = None,
    ge: float | None = None,
    le: float | None = None,
    quiet: bool = False,
) -> Any:
    """A setting of a part, as a pydantic field.

    **Arguments**

    - `sentence`: what it does; `unit`: what it is counted in, empty for pure numbers.
    - `search`: how `bluedit tune` varies it; None for settings that are not searched over.
    - `alias`: the name that users write, where Python reserves it (`lambda`).
    - `gt`, `ge`, `le`: bounds. Numbers are always finite.
    - `quiet`: results do not name it while it has its default: those from before it existed say the same.
    """
    finite = False if isinstance(default, float) else None
    about: dict[str, Any] = {"unit": unit, "search": search, "quiet": quiet}
    return Field(default, alias=alias, description=sentence, gt=gt, ge=ge, le=le, json_schema_extra=about, allow_inf_nan=finite)


@dataclass(frozen=True)
class Setting:
    """A setting as people are told of it: the name they write, its type, default, bounds and unit, and what it does."""

    name: str
    type: str
    default: Any
    bounds: str
    unit: str
    sentence: str
    search: Search | None
    quiet: bool

    @classmethod
    def of(cls, name: str, field: FieldInfo) -> Setting:
        """The setting that a pydantic field declares."""
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        search: Any = extra.get("search")
        kind = field.annotation.__name__ if isinstance(field.annotation, type) else ""
        bounds = [
            f"{sign} {value:g}"
            for sign, key in _SIGNS.items()
            for one in field.metadata
            if (value := getattr(one, key, None)) is not None
        ]
        choices = getattr(field.annotation, "__args__", ())
        return cls(
            name=field.alias or name,
            type=kind or "text",
            default=field.default,
            bounds=" or ".join(choices) if choices else ", ".join(bounds),
            unit=str(extra.get("unit", "")),
            sentence=field.description or "",
            search=search,
            quiet=bool(extra.get("quiet")),
        )


_SIGNS = {">": "gt", ">=": "ge", "<=": "le"}


class Settings(BaseModel):
    """The settings of a part, or of an editor: a frozen value. Names are those that users write."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    parts: ClassVar[tuple[type[Settings], ...]] = ()
    """The classes that a union is made of."""

    @classmethod
    def described(cls) -> dict[str, Setting]:
        """Every setting by the name users write."""
        return {one.name: one for one in (Setting.of(name, field) for name, field in cls.model_fields.items())}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The settings by the names users write."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    def override(self, values: Mapping[str, Any]) -> Self:
        """These settings with some replaced; values may be text, as from a command line.

        **Raises** :class:`~bluedit.errors.SettingsError` for an unknown name or a value out of range.
        """
        values, names = current_names(values), self.names()
        for name in values:
            if name not in names:
                raise SettingsError(did_you_mean(name, names, what="setting"))
        try:
            return self.model_validate(self.as_dict() | dict(values))
        except ValidationError as error:
            problems = "; ".join(
                f"setting {'.'.join(map(str, e['loc']))}={excerpt(e['input'])}: {e['msg']}" for e in error.errors()
            )
            raise SettingsError(problems) from error

    def carried(self, kind: type[Settings]) -> Settings:
        """Settings of another class with those values that were chosen here and that it has too; its defaults otherwise."""
        return kind(
            **{
                name: getattr(self, name)
                for name in type(self).model_fields
                if name in self.model_fields_set & kind.model_fields.keys()
            }
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values by the names users write."""
        return self.model_dump(by_alias=True)

    def recorded(self, uses: Collection[str]) -> dict[str, Any]:
        """What a result says of these settings: those that were used, without quiet ones that have their default."""
        described = self.described()
        return {
            name: value
            for name, value in self.as_dict().items()
            if name in uses and not (described[name].quiet and value == described[name].default)
        }


def current_names(values: Mapping[str, Any], *, warn: bool = True) -> dict[str, Any]:
    """Values by the present names of settings; an earlier name is warned about, but for files that were written with it."""
    for old in values.keys() & renamed.SETTINGS.keys() if warn else ():
        now = renamed.SETTINGS[old]
        warnings.warn(f"the setting {old} is now called {now}; the old name goes with the next release", stacklevel=3)
    return renamed.present_names(values, renamed.SETTINGS)


def declared_names() -> frozenset[str]:
    """The settings of all parts that are loaded."""
    classes, names = [Settings], set[str]()
    while classes:
        one = classes.pop()
        names.update(one.names())
        classes += one.__subclasses__()
    return frozenset(names)


@cache
def union(*parts: type[Settings]) -> type[Settings]:
    """The settings of several parts as one class, a subclass of each; in the parts' order.

    **Raises** :class:`~bluedit.errors.SettingsError` when two parts declare one name.
    """
    distinct = tuple(dict.fromkeys(parts))
    owners: dict[str, type[Settings]] = {}
    for part in distinct:
        for name in part.names():
            if name in owners:
                raise SettingsError(
                    f"{owners[name].__name__} and {part.__name__} both declare the setting {name!r}; rename it in one of them"
                )
            owners[name] = part
    if len(distinct) == 1:
        return distinct[0]
    # Pydantic takes the fields of the last base first.
    made = create_model("".join(part.__name__ for part in distinct) or "NoSettings", __base__=distinct[::-1] or (Settings,))
    made.parts = distinct
    return made
