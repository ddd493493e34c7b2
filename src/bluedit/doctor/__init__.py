"""Looking a model over before it is edited (`bluedit doctor`): what it is, what is missing, what an edit would take.

Of weights nothing but the headers of files is read: the architecture is built without numbers (on PyTorch's meta device), so a
checkpoint of 70 billion parameters is looked over in seconds. Nothing is downloaded.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
