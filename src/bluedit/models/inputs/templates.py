"""Context templates: texts of the model's own that prompts are put behind, so that an edit holds in any context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bluedit.errors import SettingsError
from bluedit.models.openings import write_openings

if TYPE_CHECKING:
    from bluedit.models import EditableModel

__all__ = ["BARE", "check_templates", "context_templates"]

BARE = "{}"
"""The template that is the prompt alone; always the first."""

_OPENINGS = ("The", "Therefore", "Because", "I", "You")
_TEMPLATE_TOKENS = 10


def context_templates(model: EditableModel, seed: int = 0) -> tuple[str, ...]:
    """The bare prompt, and five contexts that the model itself writes (MEMIT, section 4.2; METHODS: key of a fact).

    Each of "The", "Therefore", "Because", "I", "You" is continued to ten tokens by sampling from the five most likely, and
    `". {}"` is put after it; never in a chat, where it would be answered. Equal seeds give equal templates; no other random
    state is read or changed.
    """
    texts = write_openings(model, _OPENINGS, max_length=_TEMPLATE_TOKENS, top_k=5, seed=seed, stop_at_end=False)
    # Line breaks would open a new paragraph before the fact, and braces would be taken for the fact's place.
    return (BARE, *(" ".join(text.replace("{", " ").replace("}", " ").split()) + ". {}" for text in texts))


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates, sure to start with the bare prompt and to hold one place for the prompt each."""
    for template in templates:
        if template.count("{}") != 1:
            raise SettingsError(f"the context template {template!r} needs exactly one {{}} where the prompt goes")
    if not templates or templates[0] != BARE:
        raise SettingsError("the first context template must be the bare prompt, '{}'")
    return tuple(templates)
