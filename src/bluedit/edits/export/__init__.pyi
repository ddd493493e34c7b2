from .blueprint import Blueprint, read_blueprint
from .gguf_lora import export_gguf_lora
from .gguf_model import export_gguf, export_gguf_from_folder
from .lora import export_lora
from .low_rank import Factors, factor
from .outputs import Exported, Part

__all__ = [
    "Blueprint",
    "Exported",
    "Factors",
    "Part",
    "export_gguf",
    "export_gguf_from_folder",
    "export_gguf_lora",
    "export_lora",
    "factor",
    "read_blueprint",
]
