"""Editing cases: read from files in the published schemas or the user's own, or drawn from the synthetic world."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
