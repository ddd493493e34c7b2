"""RECT: only the entries that change most, relative to the weight they change, are kept (Gu et al. 2024, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bluedit.editors.settings import Settings, setting
from bluedit.edits.changes import Change, Dense, LowRank, Masked
from bluedit.precision import upcast

__all__ = ["RELATIVE_CHANGE", "RectSettings", "RelativeChange"]


class RectSettings(Settings):
    """Settings of RECT."""

    rect_keep: float = setting(0.4, "The fraction of entries that RECT keeps.", ge=0, le=1)


_EPSILON = 1e-8


@dataclass(frozen=True)
class RelativeChange:
    """Keeps the `rect_keep` fraction of entries of D with the largest |D / (W + 1e-8)| and zeroes the rest, batch by batch."""

    when: Literal["batch", "sequence"] = "batch"

    name: ClassVar[str] = "relative-change"
    settings: ClassVar[type[Settings]] = RectSettings

    def constrain(self, change: Change, weight_DF: Tensor, settings: RectSettings) -> Change:
        """The change with the rest of its entries zeroed: a low-rank one becomes a mask over its factors. O(D F)."""
        change_DF = change.dense()
        mask_DF = largest_entries((change_DF / (upcast(weight_DF).to(change_DF) + _EPSILON)).abs_(), settings.rect_keep)
        if isinstance(change, LowRank):
            return Masked.of(change, mask_DF)
        return Dense(torch.where(mask_DF, change_DF, 0))


def largest_entries(sizes_DF: Tensor, fraction: float) -> Tensor:
    """A mask of the `share` of entries that are largest; where entries tie at the limit, those of the lowest index."""
    count = int(fraction * sizes_DF.numel())
    mask_DF = torch.zeros(sizes_DF.numel(), dtype=torch.bool, device=sizes_DF.device)
    if not count:
        return mask_DF.view_as(sizes_DF)
    flat = sizes_DF.flatten()
    limit = flat.kthvalue(flat.numel() - count + 1).values
    mask_DF[flat > limit] = True
    at_limit = (flat == limit).nonzero().squeeze(1)
    mask_DF[at_limit[: count - int(mask_DF.sum())]] = True
    return mask_DF.view_as(sizes_DF)


RELATIVE_CHANGE = RelativeChange()
