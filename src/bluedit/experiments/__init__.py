"""Recipes, and the resumable runs they describe."""

from bluedit.experiments.recipes import Recipe, Run, find_recipe, read_recipe
from bluedit.experiments.runner import Experiment

__all__ = ["Experiment", "Recipe", "Run", "find_recipe", "read_recipe"]
