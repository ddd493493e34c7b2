"""Settings for a model that nobody has tuned, by a short search on held-out facts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
