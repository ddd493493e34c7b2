"""Models whose critical layers and settings are known, told apart by their shape and never by their name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KNOWN", "KnownModel", "lookup"]


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """One model family member: how its configuration looks, and what to edit it with.

    - `shape`: configuration entries that identify it (transformers' common names).
    - `layers`: the critical layers.
    - `settings`: overrides of :class:`~bluedit.methods.Settings`, per method name; `""` applies to every method.
    - `corpus`: where second moments come from when the user names no corpus.
    """

    name: str
    shape: Mapping[str, Any]
    layers: tuple[int, ...]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    corpus: str | None = None

    def settings_for(self, method: str) -> dict[str, Any]:
        """The overrides for one method."""
        return {**self.settings.get("", {}), **self.settings.get(method, {})}


# The published settings are those of BLUE's experiments (METHODS.md, section 6); gpt2-mini's come from the sweep in its
# model card.
KNOWN: tuple[KnownModel, ...] = (
    KnownModel(
        name="gpt2-mini",
        shape={"model_type": "gpt2", "num_hidden_layers": 8, "hidden_size": 256, "vocab_size": 4096},
        layers=(0, 1, 2, 3, 4, 5),
        settings={"": {"lambda": 300.0, "shrinkage": 0.01, "v_lr": 0.5, "clamp_norm_factor": 1.5}},
        corpus="world:0",
    ),
    KnownModel(
        name="gpt2-xl",
        shape={"model_type": "gpt2", "num_hidden_layers": 48, "hidden_size": 1600},
        layers=(13, 14, 15, 16, 17),
        settings={"": {"lambda": 20000.0, "v_lr": 0.5, "v_num_grad_steps": 20}},
    ),
    KnownModel(
        name="gpt-j-6b",
        shape={"model_type": "gptj", "num_hidden_layers": 28, "hidden_size": 4096},
        layers=(3, 4, 5, 6, 7, 8),
        settings={"": {"lambda": 15000.0, "v_lr": 0.5}},
    ),
    KnownModel(
        name="llama-3-8b",
        shape={"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "vocab_size": 128256},
        layers=(4, 5, 6, 7, 8),
        settings={"": {"lambda": 15000.0, "v_lr": 0.1}},
    ),
)
"""Known models, most specific first."""


def lookup(config: Any) -> KnownModel | None:
    """The known model with this configuration, if any."""
    for known in KNOWN:
        if all(getattr(config, name, None) == value for name, value in known.shape.items()):
            return known
    return None
