"""Objectives: what value optimisation looks for, and at which component of a layer it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from bluedit.editors.settings import Search, Settings, setting
from bluedit.errors import SettingsError, did_you_mean

__all__ = ["HIDDEN_STATE", "MLP_AND_ATTENTION", "MLP_OUTPUT", "Objective", "ValueSettings"]

_COMPONENTS = ("layer", "mlp", "attention")


class ValueSettings(Settings):
    """Settings of value optimisation (MEMIT eq. 16); the defaults are the papers' common ones."""

    v_lr: float = setting(
        0.1, "Adam's step size.", unit="of the hidden state", gt=0, search=Search(factor=2, lowest=1e-3, highest=10, usual=4)
    )
    v_num_grad_steps: int = setting(25, "How often the loss of a fact is evaluated at most.", unit="evaluations", ge=1)
    v_weight_decay: float = setting(
        0.5,
        "Weight of ||delta|| / ||h0||^2 in the loss.",
        ge=0,
        search=Search(factor=4, lowest=1e-4, highest=10, heading=-1),
    )
    kl_factor: float = setting(
        0.0625,
        'Weight of the KL divergence at the subject\'s last token of "{subject} is a".',
        ge=0,
        search=Search(factor=4, lowest=1e-3, highest=10),
    )
    clamp_norm_factor: float = setting(
        0.75,
        "||delta|| stays below this many ||h0||.",
        unit="||h0||",
        gt=0,
        search=Search(factor=2, lowest=0.05, highest=50, usual=3),
    )
    early_stop_loss: float = setting(0.05, "A fact is done once its loss is below.", unit="nats", ge=0)
    v_autocast: Literal["off", "bfloat16", "float16"] = setting(
        "off",
        "Precision of the model's matrix products in the optimisation. Deltas, losses and Adam stay float32. Nothing but "
        "time is gained where the weights are in half precision already.",
    )
    warm_start_after: int = setting(
        0,
        "In a larger batch, this many facts, spread evenly, start from 0; the others start from what a ridge regression on "
        "these predicts, with half of the evaluations. 0, as published: all start from 0.",
        unit="facts",
        ge=0,
    )


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is optimised for a fact, and where it counts.

    - `components`: where vectors are added, one each; the target is what should stand at the first. `layer`: the layer's
      output; `mlp`, `attention`: the outputs of its two parts.
    - `met_scale`: while the target is the most likely text after every prompt, its loss counts this much in the next step
      (PMET); None for no change.
    - `met_kl`: ... and a fact is done when its KL divergence is below this.
    """

    components: tuple[Literal["layer", "mlp", "attention"], ...] = ("layer",)
    met_scale: float | None = None
    met_kl: float = 0.0

    name: ClassVar[str] = "values"
    settings: ClassVar[type[Settings]] = ValueSettings

    def __post_init__(self) -> None:
        found = self.components
        if unknown := [component for component in found if component not in _COMPONENTS]:
            raise SettingsError(did_you_mean(unknown[0], _COMPONENTS, what="component"))
        if not found or len(set(found)) < len(found) or ("layer" in found and len(found) > 1):
            raise SettingsError(
                f"an objective has one component, or both of mlp and attention; got {', '.join(found) or 'none'}"
            )


HIDDEN_STATE = Objective()
"""The hidden state after the layer (MEMIT eq. 16)."""

MLP_OUTPUT = Objective(components=("mlp",))
"""The MLP's output (ROME eq. 4). What it does to the layers above is the same; norms, and with them clamp and decay, are
the MLP's."""

MLP_AND_ATTENTION = Objective(components=("mlp", "attention"), met_scale=0.1, met_kl=0.01)
"""PMET's: the outputs of MLP and attention are optimised together, and the MLP's alone is what the weight should give
(PMET, section 4)."""
