"""What sessions of versions 1 and 2 call a method's parts: the `repr` of classes of that time."""

from __future__ import annotations

from typing import Any

from bluedit.editors.base import Editor

__all__ = ["legacy_parts"]

_NAMES = {"prior": "prior", "noise": "noise", "reads_bare_prompt": "reads_bare_prompt", "keeps_past": "caches_keys"}
_MORE = {"objective": "objective", "restraint": "constraint", "largest_batch": "largest_batch"}
_PARTS = {
    "second-moment": "_SecondMoment()",
    "null-space": "_NullSpace()",
    "relative-change": "RelativeChange(when='batch')",
    "pruning": "Pruning(when='sequence')",
}
_TRAINED: dict[str, Any] = {
    "prior": {"name": "second-moment"},
    "noise": 1.0,
    "reads_bare_prompt": False,
    "caches_keys": False,
    "objective": {"components": ["layer"], "met_scale": None, "met_kl": 0.0},
}
"""What was written for methods that train a weight, and have none of these."""


def legacy_parts(editor: Editor) -> str:
    """The parts of an editor as those sessions have them."""
    record = editor.record()
    training = f"FineTuning(teacher_forcing={record['teacher_forcing']})" if "teacher_forcing" in record else "None"
    known = _TRAINED | record
    parts = [f"{name}={_text(known.get(attribute))}" for name, attribute in {**_NAMES, **_MORE}.items()]
    return "; ".join([*parts, f"fine_tuning={training}"])


def _text(value: Any) -> str:
    if not isinstance(value, dict):
        return repr(value)
    if "components" in value:
        components = tuple(value["components"])
        return f"Objective(sites={components!r}, met_scale={value['met_scale']!r}, met_kl={value['met_kl']!r})"
    return _PARTS.get(str(value["name"]), str(value["name"]))
