"""Checks of what an edit needs to know of a model: its critical layers, a text for second moments, settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bluedit.doctor.report import Check
from bluedit.editors.base import Editor
from bluedit.editors.layers import choose_layers
from bluedit.editors.presets import Preset
from bluedit.editors.settings import Settings
from bluedit.models.layout.structure import Structure
from bluedit.strategies import SINGLE

__all__ = ["check_corpus", "check_layers", "check_settings", "edited_layers", "target_layers"]


def check_layers(
    known: Preset | None, method: Editor, structure: Structure, layers: Sequence[int] | None
) -> tuple[tuple[int, ...], Check]:
    """The critical layers, and where they are from; where none are known, some to make the plans for."""
    choice = choose_layers(method, structure, known, layers or None)
    if choice is not None:
        edited = edited_layers(method, choice.layers)
        details: dict[str, Any] = {
            "known": known.name if known else None,
            "layers": list(choice.layers),
            "edited": list(edited),
        }
        said = f"critical layers {_listed(choice.layers)} ({choice.source}), edited by {method.label}: {_listed(edited)}"
        return choice.layers, Check("layers", "ok", said, details)
    below = [layer for layer in structure.dense if layer <= structure.depth // 3] or list(structure.dense)
    critical = tuple(below[-1:] if method.strategy == SINGLE else below[-5:])
    message = (
        f"the critical layers are not known for {method.name}; find them with bluedit trace and use --layers auto, or set "
        f"them with --layers; the estimates below assume {_listed(critical)}"
    )
    return critical, Check("layers", "warning", message, {"known": None, "layers": None, "assumed": list(critical)})


def check_corpus(known: Preset | None) -> Check:
    if known and known.corpus:
        return Check("corpus", "ok", f"second moments are taken over {known.corpus}", {"corpus": known.corpus})
    message = "no corpus is known for the second moments of keys; name one: --corpus text:FILE, hub:NAME, or stats:FILE"
    return Check("corpus", "warning", message, {"corpus": None})


def check_settings(known: Preset | None, method: Editor, settings: Settings) -> Check:
    values = settings.as_dict()
    used = {name: values[name] for name in method.uses}
    if known:
        return Check("settings", "ok", f"known for {known.name}", {"known": known.name, "settings": used})
    message = (
        f"not known for this model; the common settings of {method.name} may have no effect here: find settings "
        "with bluedit tune"
    )
    return Check("settings", "warning", message, {"known": None, "settings": used})


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def edited_layers(method: Editor, critical: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(step.layer for step in method.strategy.steps(critical)))


def target_layers(method: Editor, critical: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(step.target_layer for step in method.strategy.steps(critical)))
