"""Text that comes from files and models, shown as it is."""

from __future__ import annotations

import re

__all__ = ["UNSAFE", "visible"]

UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys instead of showing them: control characters but for tab and line feed, separators of
lines, changes of the writing direction; and halves of characters, which cannot be written at all."""


def visible(text: str) -> str:
    """The text with such characters as the escapes that stand for them in source code, `\\x1b` for the escape character."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
