from .editable import EditableModel
from .inputs.tokens import Batch, PromptTokenizer, Row
from .layout.maps import MODULE_MAPS, ModuleMap, read_module_map
from .layout.structure import Structure, discover
from .loading import load_model, resolve_model
from .respondent import ModelRespondent, Respondent

__all__ = [
    "MODULE_MAPS",
    "Batch",
    "EditableModel",
    "ModelRespondent",
    "ModuleMap",
    "PromptTokenizer",
    "Respondent",
    "Row",
    "Structure",
    "discover",
    "load_model",
    "read_module_map",
    "resolve_model",
]
