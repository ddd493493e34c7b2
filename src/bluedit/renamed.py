"""Earlier names that are still understood, until the next release."""

__all__ = ["SETTINGS"]

SETTINGS = {"v_warm_after": "warm_start_after"}
"""Settings: the name that was, and the name that is."""
