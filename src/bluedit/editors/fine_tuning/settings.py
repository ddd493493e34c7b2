"""The settings of fine-tuning within a box."""

from __future__ import annotations

from bluedit.editors.settings import Search, Settings, setting

__all__ = ["FineTuningSettings"]


class FineTuningSettings(Settings):
    """Settings of fine-tuning within a box (Zhu et al. 2020)."""

    ft_lr: float = setting(
        5e-4,
        "Adam's step size.",
        unit="of a weight's entry",
        gt=0,
        search=Search(factor=4, lowest=1e-6, highest=1e-1, usual=1),
    )
    ft_num_steps: int = setting(25, "The maximum number of Adam steps.", unit="steps", ge=1)
    ft_early_stop_loss: float = setting(
        1e-2, "Training stops once the mean loss of the facts is below this.", unit="nats", ge=0
    )
    norm_constraint: float = setting(
        5e-4,
        "No entry of the weight changes by more than this.",
        unit="of a weight's entry",
        gt=0,
        search=Search(factor=4, lowest=1e-6, highest=1, usual=2),
    )
