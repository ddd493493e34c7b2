from .recipes import Recipe, Run, find_recipe, read_recipe
from .runner import Experiment

__all__ = ["Experiment", "Recipe", "Run", "find_recipe", "read_recipe"]
