"""Checks of what an edit needs to know of a model: its critical layers, a text for second moments, settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bluedit.doctor.report import Check
from bluedit.editors.presets import Preset
from bluedit.errors import SettingsError
from bluedit.methods import Method, Settings
from bluedit.models.layout.structure import Structure
from bluedit.strategies import SINGLE

__all__ = ["check_corpus", "check_layers", "check_settings", "edited_layers", "target_layers"]


def check_layers(
    known: Preset | None, method: Method, structure: Structure, layers: Sequence[int] | None
) -> tuple[tuple[int, ...], Check]:
    """The critical layers, and where they are from; where none are known, some to make the plans for."""
    single = method.strategy == SINGLE
    critical, source = tuple(sorted(set(layers or ()))), "named"
    if not critical and method.strategy.fixed_layers:
        critical, source = method.strategy.fixed_layers, "the strategy's"
    if not critical and known:
        critical, source = known.layers_for(method.name, one=single) or (), f"known for {known.name}"
    if wrong := [layer for layer in critical if layer not in structure.dense]:
        raise SettingsError(
            f"layer {wrong[-1]} of this model cannot be edited; choose among layers {', '.join(map(str, structure.dense))}"
        )
    if critical:
        edited = edited_layers(method, critical)
        details: dict[str, Any] = {"known": known.name if known else None, "layers": list(critical), "edited": list(edited)}
        said = f"critical layers {_listed(critical)} ({source}), edited by {method.label}: {_listed(edited)}"
        return critical, Check("layers", "ok", said, details)
    below = [layer for layer in structure.dense if layer <= structure.depth // 3] or list(structure.dense)
    critical = tuple(below[-1:] if single else below[-5:])
    message = (
        f"the critical layers are not known for {method.name}; find them with bluedit trace and say --layers auto, or name "
        f"them with --layers; plans below assume {_listed(critical)}"
    )
    return critical, Check("layers", "warning", message, {"known": None, "layers": None, "assumed": list(critical)})


def check_corpus(known: Preset | None) -> Check:
    if known and known.corpus:
        return Check("corpus", "ok", f"second moments are taken over {known.corpus}", {"corpus": known.corpus})
    message = "no text is known to take second moments of keys over; name one: --corpus text:FILE, hub:NAME, or stats:FILE"
    return Check("corpus", "warning", message, {"corpus": None})


def check_settings(known: Preset | None, method: Method, settings: Settings) -> Check:
    values = settings.as_dict()
    used = {name: values[name] for name in method.uses}
    if known:
        return Check("settings", "ok", f"known for {known.name}", {"known": known.name, "settings": used})
    message = (
        f"not known for this model; the common ones of {method.name} may edit nothing here: find its own with bluedit tune"
    )
    return Check("settings", "warning", message, {"known": None, "settings": used})


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


def edited_layers(method: Method, critical: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(step.layer for step in method.strategy.steps(critical)))


def target_layers(method: Method, critical: Sequence[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(step.target_layer for step in method.strategy.steps(critical)))
