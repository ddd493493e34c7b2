"""Model access: structure, tokens, hooks, loading."""

from bluedit.models.editable import EditableModel
from bluedit.models.inputs.tokens import Batch, PromptTokenizer, Row
from bluedit.models.layout.maps import MODULE_MAPS, ModuleMap, read_module_map
from bluedit.models.layout.structure import Structure, discover
from bluedit.models.loading import load_model, resolve_model

__all__ = [
    "MODULE_MAPS",
    "Batch",
    "EditableModel",
    "ModuleMap",
    "PromptTokenizer",
    "Row",
    "Structure",
    "discover",
    "load_model",
    "read_module_map",
    "resolve_model",
]
