"""The protocol tag that goes with every reported number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from bluedit.datasets.cases import Case
from bluedit.datasets.cases import fingerprint as dataset_fingerprint
from bluedit.edits import Edit
from bluedit.models import EditableModel
from bluedit.results import ProtocolTag

__all__ = ["protocol"]


def protocol(
    model: EditableModel,
    cases: Sequence[Case],
    *,
    dataset: str,
    patch: Edit | None = None,
    seed: int = 0,
    fingerprint: str | None = None,
    measured: Mapping[str, Any] | None = None,
    skipped: int = 0,
) -> ProtocolTag:
    """What a score was measured on, and how: dataset and record ids, edits, method and settings, model, versions.

    The model's fingerprint is that of its weights as they are now: call this before a patch is applied, or give the one that
    was taken then.

    **Arguments**

    - `measured`: what a :class:`~bluedit.evaluation.measures.Measure` says of itself, its `tag`.
    - `skipped`: how many records of the data set were left out because they could not be used.
    """
    tag: dict[str, Any] = {
        "dataset": dataset,
        "dataset_fingerprint": dataset_fingerprint(cases),
        "cases": [case.fact.id for case in cases],
        "scoring": sorted({case.scoring for case in cases}),
        "model": str(getattr(model.model.config, "_name_or_path", "")),
        "model_fingerprint": fingerprint or model.fingerprint(),
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "seed": seed,
        "versions": {name: metadata.version(name) for name in ("bluedit", "torch", "transformers")},
    }
    tag |= measured or {}
    if skipped:
        tag["skipped"] = skipped
    if model.text.chat is not None:
        tag["chat"] = asdict(model.text.chat)
    if patch is not None:
        manifest = patch.manifest
        tag["edit"] = {
            "method": manifest.method,
            "strategy": manifest.strategy,
            "layers": list(manifest.layers),
            "settings": manifest.settings,
            "corpus": manifest.corpus,
            "edits": len(manifest.facts),
            "batch_size": max(manifest.batches, default=len(manifest.facts)),
            "order": "as listed",
            "evaluated": "after the last batch",
        }
    return ProtocolTag.of(tag)
