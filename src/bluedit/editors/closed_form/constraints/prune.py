"""PRUNE: the singular values of the whole sequence's change may not outgrow the weight's own (Ma et al. 2024, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bluedit.editors.settings import Settings, setting
from bluedit.edits.changes import Change, Dense, LowRank, largest_singular_value

__all__ = ["PRUNING", "PruneSettings", "Pruning"]


class PruneSettings(Settings):
    """Settings of PRUNE."""

    prune_base: float = setting(math.e, "Base of PRUNE's logarithm; e by default, 1.2 in its paper.", gt=1)


@dataclass(frozen=True)
class Pruning:
    """Replaces singular values s of the total change that exceed smax, W_0's largest, by log_b(s) - log_b(smax) + smax.

    b is `prune_base`: e by default, 1.2 in the PRUNE paper. The edited model is W_0 plus the constrained change. (The public
    research code adds the constrained change to the already edited weights, and so counts the change twice.)
    """

    when: Literal["batch", "sequence"] = "sequence"

    name: ClassVar[str] = "pruning"
    settings: ClassVar[type[Settings]] = PruneSettings

    def constrain(self, change: Change, weight_DF: Tensor, settings: PruneSettings) -> Change:
        """The change with constrained singular values; low-rank stays low-rank. O((D + F) N^2 + min(D, F)^2 max(D, F)) for
        rank N.

        A change whose singular values all lie below smax is returned as it is.
        """
        largest = largest_singular_value(weight_DF)
        left_DR, singular_R, right_RF = _singular_values(change)
        over_R = singular_R > largest
        if not over_R.any():
            return change
        constrained_R = torch.where(over_R, (singular_R / largest).log() / math.log(settings.prune_base) + largest, singular_R)
        scaled_DR = left_DR * constrained_R
        if isinstance(change, LowRank):
            return LowRank.of(scaled_DR.to(change.residual_DN), right_RF.T)
        dense_DF = change.dense()
        return Dense((scaled_DR @ right_RF).to(dense_DF))


def _singular_values(change: Change) -> tuple[Tensor, Tensor, Tensor]:
    """U, s, V^T of a change, float64; of a low-rank one from its factors, without forming it."""
    if not isinstance(change, LowRank):
        return torch.linalg.svd(change.dense().double(), full_matrices=False)
    basis_DR, triangle_RN = torch.linalg.qr(change.residual_DN.double())
    other_FR, other_RN = torch.linalg.qr(change.gain_FN.double())
    left, singular_R, right = torch.linalg.svd(triangle_RN @ other_RN.T, full_matrices=False)
    return basis_DR @ left, singular_R, right @ other_FR.T


PRUNING = Pruning()
