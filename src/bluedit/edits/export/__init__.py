"""Edits in the formats that models are served from: PEFT adapters, GGUF models and GGUF adapters, with their model cards."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
