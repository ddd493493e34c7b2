"""Earlier names that are still understood: of options until the next release, in files for good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["CHAT", "OPTIONS", "SETTINGS", "TRACE", "present_names"]

SETTINGS = {"v_warm_after": "warm_start_after"}
"""Settings: the name that was, and the name that is."""
OPTIONS = {"--sites": "--components"}
"""Options of the command line."""
CHAT = {"joint": "separator"}
"""What patches and sessions store of a chat."""
TRACE = {"sites": "components"}
"""What traces store of their settings."""


def present_names(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A record by its present names; `names` maps the earlier ones to them."""
    return {names.get(name, name): value for name, value in record.items()}
