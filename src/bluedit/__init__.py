"""bluedit: change what a language model knows, check it, and take it back again.

    import bluedit

    model = bluedit.load_model("gpt2-mini")
    patch = bluedit.edit(model, [bluedit.Fact("{} was born in", "Ada Example", "Paris")])
    patch.apply(model)

What is listed in `__all__` is the public interface. Names are loaded when first used, so that importing the package, and the
command line's help, cost nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bluedit.datasets import Case, World, read_cases, read_dataset
    from bluedit.editing import edit
    from bluedit.editors.closed_form.constraints import PRUNING, RELATIVE_CHANGE
    from bluedit.editors.closed_form.priors import NULL_SPACE, SECOND_MOMENT
    from bluedit.edits import Patch
    from bluedit.errors import BlueditError, BlueditWarning, InputError, NumericsError, ResourceError
    from bluedit.evaluation import Scores, score_cases
    from bluedit.facts import Fact
    from bluedit.methods import (
        ALPHAEDIT,
        EMMET,
        FT_L,
        FT_M,
        HIDDEN_STATE,
        MEMIT,
        MEMIT_SEQ,
        METHODS,
        MLP_AND_ATTENTION,
        MLP_OUTPUT,
        PMET,
        PRUNE,
        R_ROME,
        RECT,
        ROME,
        FineTuning,
        Method,
        Objective,
        Settings,
        blue,
    )
    from bluedit.models import EditableModel, ModuleMap, load_model
    from bluedit.models.generation import generate
    from bluedit.sessions import Session
    from bluedit.statistics import Statistics, read_corpus
    from bluedit.strategies import BOUNDARY, EACH_LAYER, EVEN, SINGLE, SQUARE_ROOT, STRATEGIES, Step, Strategy, explicit, single
    from bluedit.tuning import Tuning, read_tuning, tune

__version__ = "0.1.0"

__all__ = [
    "ALPHAEDIT",
    "BOUNDARY",
    "EACH_LAYER",
    "EMMET",
    "EVEN",
    "FT_L",
    "FT_M",
    "HIDDEN_STATE",
    "MEMIT",
    "MEMIT_SEQ",
    "METHODS",
    "MLP_AND_ATTENTION",
    "MLP_OUTPUT",
    "NULL_SPACE",
    "PMET",
    "PRUNE",
    "PRUNING",
    "RECT",
    "RELATIVE_CHANGE",
    "ROME",
    "R_ROME",
    "SECOND_MOMENT",
    "SINGLE",
    "SQUARE_ROOT",
    "STRATEGIES",
    "BlueditError",
    "BlueditWarning",
    "Case",
    "EditableModel",
    "Fact",
    "FineTuning",
    "InputError",
    "Method",
    "ModuleMap",
    "NumericsError",
    "Objective",
    "Patch",
    "ResourceError",
    "Scores",
    "Session",
    "Settings",
    "Statistics",
    "Step",
    "Strategy",
    "Tuning",
    "World",
    "__version__",
    "blue",
    "edit",
    "explicit",
    "generate",
    "load_model",
    "read_cases",
    "read_corpus",
    "read_dataset",
    "read_tuning",
    "score_cases",
    "single",
    "tune",
]

_HOMES = {
    "bluedit.datasets": ("Case", "World", "read_cases", "read_dataset"),
    "bluedit.editing": ("edit",),
    "bluedit.errors": ("BlueditError", "BlueditWarning", "InputError", "NumericsError", "ResourceError"),
    "bluedit.evaluation": ("Scores", "score_cases"),
    "bluedit.facts": ("Fact",),
    "bluedit.methods": (
        "ALPHAEDIT",
        "EMMET",
        "FT_L",
        "FT_M",
        "HIDDEN_STATE",
        "MEMIT",
        "MEMIT_SEQ",
        "METHODS",
        "MLP_OUTPUT",
        "PMET",
        "PRUNE",
        "RECT",
        "ROME",
        "R_ROME",
        "MLP_AND_ATTENTION",
        "FineTuning",
        "Method",
        "Objective",
        "Settings",
        "blue",
    ),
    "bluedit.models": ("EditableModel", "ModuleMap", "load_model"),
    "bluedit.models.generation": ("generate",),
    "bluedit.edits": ("Patch",),
    "bluedit.editors.closed_form.constraints": ("PRUNING", "RELATIVE_CHANGE"),
    "bluedit.sessions": ("Session",),
    "bluedit.editors.closed_form.priors": ("NULL_SPACE", "SECOND_MOMENT"),
    "bluedit.statistics": ("Statistics", "read_corpus"),
    "bluedit.strategies": (
        "BOUNDARY",
        "EACH_LAYER",
        "EVEN",
        "SINGLE",
        "SQUARE_ROOT",
        "STRATEGIES",
        "Step",
        "Strategy",
        "explicit",
        "single",
    ),
    "bluedit.tuning": ("Tuning", "read_tuning", "tune"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
