"""What `bluedit models` and `bluedit methods` print with `--json`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from bluedit.results.records import Record

__all__ = ["MethodEntry", "MethodsResult", "ModelDownload", "ModelsResult", "PresetModel", "SettingEntry"]


class ModelDownload(Record):
    """A model that bluedit gets: whether it is here, and where it is from."""

    here: bool
    folder: str | None
    source: str | None
    from_: str | None = Field(alias="from")
    revision: str | None
    fingerprint: str | None


class PresetModel(Record):
    """A model whose layers and settings are known.

    - `recognised_by`: what its configuration says.
    - `layers`: the critical layers; `boundary`: BLUE's pair; `one_layer`: by method, for those that edit one.
    - `settings`: by method.
    """

    name: str
    embedded: bool
    download: ModelDownload | None
    recognised_by: dict[str, Any]
    layers: list[int]
    boundary: list[int]
    one_layer: dict[str, int]
    settings: dict[str, dict[str, Any]]
    corpus: str | None


class ModelsResult(Record):
    """`bluedit models --json`."""

    models: list[PresetModel]


class SettingEntry(Record):
    """A setting of a method.

    - `type`: float, int or text; `bounds`: what a number is limited to, or the texts there are to choose from.
    - `unit`: what it is counted in, empty for pure numbers.
    - `meaning`: what it does.
    """

    name: str
    type: str
    default: Any
    bounds: str
    unit: str
    meaning: str


class MethodEntry(Record):
    """A method with its own strategy and default settings.

    - `caches_keys`: whether a sequence caches earlier keys; `largest_batch`: how many facts it edits at once at most.
    - `installed`: whether it came from elsewhere.
    - `described`: its settings one by one, where the method was asked for by name.
    """

    name: str
    summary: str
    strategy: str
    caches_keys: bool
    largest_batch: int | None
    settings: dict[str, Any]
    reference: str
    installed: bool
    described: list[SettingEntry] | None = None


class MethodsResult(Record):
    """`bluedit methods --json`: every method, or the one that was named."""

    methods: list[MethodEntry]
