"""What a fact looks like inside the model: its key and its hidden state."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bluedit.facts import Fact
from bluedit.models import EditableModel
from bluedit.models.editable import Component

__all__ = ["fact_keys", "fact_states"]


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
