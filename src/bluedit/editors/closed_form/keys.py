"""Context templates, and what a fact looks like inside the model: its key and its hidden state."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.models.editable import Component
from bluedit.models.generation import generate

__all__ = ["BARE", "context_templates", "fact_keys", "fact_states"]

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
    texts = generate(model, _OPENINGS, max_length=_TEMPLATE_TOKENS, top_k=5, seed=seed, stop_at_end=False, plain=True)
    # Line breaks would open a new paragraph before the fact, and braces would be taken for the fact's place.
    return (BARE, *(" ".join(text.replace("{", " ").replace("}", " ").split()) + ". {}" for text in texts))


def fact_keys(model: EditableModel, facts: Sequence[Fact], layer: int, templates: Sequence[str]) -> Tensor:
    """Keys of facts, (F, N) float32: input of the output projection at the subject's last token.

    Half the weight is the bare prompt's, the other half is shared by the generated templates.
    """
    rows = [model.text.row(fact, template) for fact in facts for template in templates]
    keys_NPF = model.subject_states(rows, layer, "key").view(len(facts), len(templates), -1)
    if len(templates) == 1:
        return keys_NPF[:, 0].T
    return ((keys_NPF[:, 0] + keys_NPF[:, 1:].mean(1)) / 2).T


def fact_states(model: EditableModel, facts: Sequence[Fact], layer: int, component: Component = "layer") -> Tensor:
    """States of facts, (D, N) float32: the output of a component of `layer` at the subject's last token of the bare prompt."""
    rows = [model.text.row(fact) for fact in facts]
    return model.subject_states(rows, layer, component).T


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates, sure to start with the bare prompt and to hold one place for the prompt each."""
    from bluedit.errors import SettingsError

    for template in templates:
        if template.count("{}") != 1:
            raise SettingsError(f"the context template {template!r} needs exactly one {{}} where the prompt goes")
    if not templates or templates[0] != BARE:
        raise SettingsError("the first context template must be the bare prompt, '{}'")
    return tuple(templates)
