"""bluedit: change what a language model knows, check it, and take it back again.

    import bluedit

    model = bluedit.load_model("gpt2-mini")
    patch = bluedit.edit(model, [bluedit.Fact("{} was born in", "Ada Example", "Paris")])
    patch.apply(model)

What is listed in `__init__.pyi` is the public interface. Names are loaded when first used, so that importing the package, and
the command line's help, cost nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
