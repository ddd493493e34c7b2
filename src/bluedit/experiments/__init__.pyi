from .matrix import Cell, Plan, read_plan, read_recipe
from .recipes import Recipe, Run, find_recipe
from .runner import Experiment

__all__ = ["Cell", "Experiment", "Plan", "Recipe", "Run", "find_recipe", "read_plan", "read_recipe"]
