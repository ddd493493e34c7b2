"""The table of editors: every method by name, published or installed.

:func:`blue` replaces a method's strategy by BLUE's and nothing else. A method of your own is another value, built from
these parts or from new ones, see :class:`~bluedit.editors.closed_form.method.Method`; another family of editors is a subclass
of :class:`~bluedit.editors.base.Editor`. An installed package adds its own through the entry-point group `bluedit.methods`;
:func:`find_method` finds them like the published ones.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import TypeVar

from bluedit.editors.base import Editor
from bluedit.editors.closed_form.method import Method
from bluedit.editors.closed_form.methods import ALPHAEDIT, EMMET, MEMIT, MEMIT_SEQ, PMET, PRUNE, R_ROME, RECT, ROME
from bluedit.editors.closed_form.objectives import HIDDEN_STATE, MLP_AND_ATTENTION, MLP_OUTPUT, Objective
from bluedit.editors.fine_tuning.methods import FT_L, FT_M, FineTuning
from bluedit.editors.settings import Settings
from bluedit.errors import SettingsError, did_you_mean
from bluedit.strategies import BOUNDARY

__all__ = [
    "ALPHAEDIT",
    "EMMET",
    "FT_L",
    "FT_M",
    "HIDDEN_STATE",
    "MEMIT",
    "MEMIT_SEQ",
    "METHODS",
    "MLP_AND_ATTENTION",
    "MLP_OUTPUT",
    "PMET",
    "PRUNE",
    "RECT",
    "ROME",
    "R_ROME",
    "Editor",
    "FineTuning",
    "Method",
    "Objective",
    "Settings",
    "blue",
    "find_method",
    "installed_methods",
]

METHODS: dict[str, Editor] = {
    known.name: known for known in (MEMIT, MEMIT_SEQ, RECT, PRUNE, ALPHAEDIT, PMET, EMMET, ROME, R_ROME, FT_L, FT_M)
}
"""The published methods by name."""

_ENTRY_POINTS = "bluedit.methods"


@cache
def installed_methods() -> dict[str, Editor]:
    """Methods of other installed packages, by name, from the entry-point group `bluedit.methods`.

    An entry point is a :class:`Method`, or any other :class:`Editor`; its name is the editor's.

    **Raises** :class:`~bluedit.errors.SettingsError` naming the package when one cannot be loaded, is not a method, or takes a
    name that is taken.
    """
    found: dict[str, Editor] = {}
    for entry in entry_points(group=_ENTRY_POINTS):
        package = entry.dist.name if entry.dist else "an installed package"
        try:
            value = entry.load()
        except Exception as error:
            raise SettingsError(
                f"the method {entry.name!r} of {package} cannot be loaded ({error}); fix or uninstall {package}"
            ) from error
        if not isinstance(value, Editor):
            raise SettingsError(
                f"{entry.value} of {package}, named as a method, is a {type(value).__name__}; "
                "it must be a bluedit.Method, or another bluedit.Editor"
            )
        if value.name in METHODS or value.name in found:
            raise SettingsError(
                f"{package} brings a method named {value.name!r}, which exists already; rename it or uninstall {package}"
            )
        found[value.name] = value
    return found


E = TypeVar("E", bound=Editor)


def blue(known: E) -> E:
    """The method with BLUE's strategy: only the boundary layers, each with its own residual (Li et al. 2025).

    **Raises** :class:`~bluedit.errors.SettingsError` for methods without residuals (fine-tuning).
    """
    return known.with_strategy(BOUNDARY)


def find_method(name: str | Editor) -> Editor:
    """A method by name, published or installed.

    **Raises** :class:`~bluedit.errors.SettingsError` with the nearest known name.
    """
    if isinstance(name, Editor):
        return name
    if name in METHODS:
        return METHODS[name]
    known = installed_methods()
    if name not in known:
        raise SettingsError(did_you_mean(name, (*METHODS, *known), what="method"))
    return known[name]
