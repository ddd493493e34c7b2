"""Values that runs of one experiment share.

*Concept.* What is optimised for facts at a layer depends on the facts, the layer, the templates, what the editor says
(:meth:`~bluedit.editors.base.Editor.value_identity`: for closed forms the objective and its settings), and the model as it is
edited then; on nothing else. MEMIT, RECT, PRUNE and AlphaEdit ask for the same values at the last critical layer of the
unedited model, and with BLUE at the first; MEMIT, RECT and PRUNE even at the last, after the same change of the first.

*Mechanism.* A key is the hash of all that. The hashes of those weights that any run of the experiment changes tell the
edited state. Values lie in the experiment's folder, a file per key, written whole or not at all, so that a run that was killed
finds them too; they are bit for bit what would be optimised again. A damaged file counts as missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bluedit.editors.base import Plan, Setup, Storable
from bluedit.errors import DamagedFileError
from bluedit.models import EditableModel
from bluedit.storage.tensors import read_tensors, write_tensors

__all__ = ["SharedValues"]


@dataclass
class SharedValues:
    """A folder of values.

    - `base`: the fingerprint of the unedited model.
    - `layers`: those whose weights any run changes.
    """

    folder: Path
    base: str
    layers: tuple[int, ...]

    def recall(self, model: EditableModel, plan: Plan, layer: int) -> tuple[Any, float] | None:
        """What was stored for the plan's facts at `layer` of the model as it is now, and the seconds it took, or None."""
        key = self._key(model, plan, layer)
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            stored = read_tensors(path, key=key)
            about: dict[str, Any] = json.loads(stored.metadata["values"])
            return plan.method.restore_values(model, layer, about, stored.tensors), float(about["seconds"])
        except (DamagedFileError, KeyError, ValueError):
            path.unlink(missing_ok=True)
            return None

    def keep(self, model: EditableModel, plan: Plan, layer: int, values: Storable, seconds: float) -> None:
        """Write values to the folder."""
        key = self._key(model, plan, layer)
        self.folder.mkdir(parents=True, exist_ok=True)
        about = values.record() | {"seconds": round(seconds, 3)}
        write_tensors(self._path(key), values.tensors(), {"values": json.dumps(about)}, key=key)

    def remove(self) -> None:
        """Remove what was stored."""
        if self.folder.is_dir():
            for path in self.folder.glob("*.safetensors"):
                path.unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _key(self, model: EditableModel, plan: Plan, layer: int) -> str:
        text = json.dumps(
            {
                "model": self.base,
                "weights": {edited: model.weight_fingerprint(edited) for edited in self.layers},
                # A checkpoint has one fingerprint in every precision.
                "computed": [str(model.dtype), model.device.type, torch.get_num_threads()],
                "chat": model.text.chat.identity if model.text.chat else None,
                "layer": layer,
                "facts": [(fact.prompt, fact.subject, fact.target) for fact in plan.facts],
                "templates": plan.templates,
                "values": plan.method.value_identity(plan.settings),
            },
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def edited_layers(setups: Iterable[Setup]) -> tuple[int, ...]:
    """The layers that any of these setups changes."""
    return tuple(sorted({step.layer for setup in setups for step in setup.method.strategy.steps(setup.layers)}))
