"""How much fits: budgets of tokens, estimates, the machine."""
