"""Keys, context templates, and the optimisation of values."""

from bluedit.values.keys import BARE, check_templates, context_templates, fact_keys, fact_states
from bluedit.values.optimizer import Values, optimise_values

__all__ = ["BARE", "Values", "check_templates", "context_templates", "fact_keys", "fact_states", "optimise_values"]
