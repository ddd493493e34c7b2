"""Model access: structure, tokens, hooks, loading."""

from bluedit.models.editable import EditableModel
from bluedit.models.loading import load_model, resolve_model
from bluedit.models.maps import MODULE_MAPS, ModuleMap, read_module_map
from bluedit.models.structure import Structure, discover
from bluedit.models.tokens import Batch, Row, TextEncoder

__all__ = [
    "MODULE_MAPS",
    "Batch",
    "EditableModel",
    "ModuleMap",
    "Row",
    "Structure",
    "TextEncoder",
    "discover",
    "load_model",
    "read_module_map",
    "resolve_model",
]
