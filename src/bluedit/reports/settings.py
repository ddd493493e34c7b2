"""The settings of a method as a table: for `bluedit methods NAME`, and for the method's page in docs/methods.

python -m bluedit.reports.settings docs/methods
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bluedit.editors.base import Editor
from bluedit.editors.presets import PRESETS, Preset
from bluedit.editors.settings import Setting
from bluedit.methods import METHODS
from bluedit.reports.tables import line, short
from bluedit.strategies import BOUNDARY

__all__ = ["page_table", "settings_of", "with_table"]

_MODELS = {"llama-3-8b": "Llama-3-8B", "gpt-j-6b": "GPT-J-6B", "gpt2-xl": "GPT2-XL"}
"""The models of the published experiments, and how pages call them."""


def settings_of(method: Editor) -> list[Setting]:
    """The settings that make a difference to a method, with its own defaults."""
    described, defaults = method.settings.described(), method.settings.as_dict()
    return [replace(described[name], default=defaults[name]) for name in method.uses]


def page_table(method: Editor) -> str:
    """The table of a method's page: what is declared of each setting, and what applies to the published models.

    A setting for which BLUE's experiments had another value has a second row.
    """
    names = ("setting", "default", *_MODELS.values(), "range", "unit", "what it does")
    rows = [names, ("---",) * len(names)]
    own, blue = _published(method, method.strategy.name), _published(method, BOUNDARY.name)
    for one in settings_of(method):
        default, about = short(one.default), (one.bounds or "-", one.unit or "-", one.sentence)
        rows.append((f"`{one.name}`", default, *_values(own, one.name), *about))
        if _values(blue, one.name) != _values(own, one.name):
            rows.append((f"`{one.name}` with BLUE", default, *_values(blue, one.name), *about))
    return "\n".join(map(line, rows))


def _published(method: Editor, strategy: str) -> list[Mapping[str, Any] | None]:
    """By model the settings that apply; None where none were published for the method."""
    presets = {preset.name: preset for preset in PRESETS}

    def settings(preset: Preset) -> Mapping[str, Any] | None:
        if preset.layers_for(method.name, one=method.strategy.one_layer) is None:
            return None
        return method.override(preset.settings_for(method.name, strategy), {}).as_dict()

    return [settings(presets[name]) for name in _MODELS]


def _values(published: list[Mapping[str, Any] | None], name: str) -> tuple[str, ...]:
    return tuple("-" if settings is None else short(settings[name]) for settings in published)


def with_table(page: str, method: Editor) -> str:
    """A method's page with the table under its heading "Settings" made anew."""
    made, found = re.subn(r"(?<=\n## Settings\n\n)(?:\|.*\n)+", lambda _: page_table(method) + "\n", page)
    assert found == 1, f"the page of {method.name} has no table under its heading Settings"
    return made


def main() -> None:
    """Write the tables of all published methods into the pages of a folder."""
    for name, method in METHODS.items():
        page = Path(sys.argv[1]) / f"{name}.md"
        page.write_text(with_table(page.read_text(encoding="utf-8"), method), encoding="utf-8")


if __name__ == "__main__":
    main()
