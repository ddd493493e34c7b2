"""Scoring: teacher forced, in free generation, of texts and of what follows, before and after an edit, with intervals."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
