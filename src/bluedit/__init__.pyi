from .datasets import Case, World, read_cases, read_dataset
from .editing import edit
from .editors.closed_form.constraints import PRUNING, RELATIVE_CHANGE
from .editors.closed_form.priors import NULL_SPACE, SECOND_MOMENT
from .edits import Edit, Ledger, Patch, load_edit
from .errors import BlueditError, BlueditWarning, InputError, NumericsError, ResourceError
from .evaluation import Scores, score_cases
from .facts import Fact
from .methods import (
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
    Editor,
    FineTuning,
    Method,
    Objective,
    Settings,
    blue,
)
from .models import EditableModel, ModuleMap, load_model
from .models.generation import generate
from .sessions import Session
from .statistics import Statistics, read_corpus
from .strategies import BOUNDARY, EACH_LAYER, EVEN, SINGLE, SQUARE_ROOT, STRATEGIES, Step, Strategy, explicit, single
from .tuning import Tuning, read_tuning, tune
from .version import __version__

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
    "Edit",
    "EditableModel",
    "Editor",
    "Fact",
    "FineTuning",
    "InputError",
    "Ledger",
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
    "load_edit",
    "load_model",
    "read_cases",
    "read_corpus",
    "read_dataset",
    "read_tuning",
    "score_cases",
    "single",
    "tune",
]
