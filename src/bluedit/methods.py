"""Methods as values: a prior over keys, a strategy, and settings, put together.

`METHODS` holds the published ones by name. :func:`blue` replaces a method's strategy by BLUE's and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bluedit.errors import SettingsError, did_you_mean
from bluedit.strategies import BOUNDARY, EVEN, Strategy

__all__ = ["MEMIT", "METHODS", "Method", "Settings", "blue", "method"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """What a method leaves open. Names are the published ones; the defaults are the papers' common settings.

    - `lambda` (attribute `lambda_`): weight of the second moment against the new facts (MEMIT eq. 15).
    - `shrinkage`: a in (1 - a) C + a tr(C)/F I; 0 as published.
    - `v_lr`, `v_num_grad_steps`: Adam's step size, and how often the loss is evaluated at most.
    - `v_weight_decay`: weight of ||delta|| / ||h0||^2.
    - `kl_factor`: weight of the KL divergence at the subject's last token of "{subject} is a".
    - `clamp_norm_factor`: ||delta|| stays below this many ||h0||.
    - `early_stop_loss`: a fact is done once its loss is below.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    lambda_: Positive = Field(default=15000.0, alias="lambda")
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.0
    v_lr: Positive = 0.1
    v_num_grad_steps: Annotated[int, Field(ge=1)] = 25
    v_weight_decay: NonNegative = 0.5
    kl_factor: NonNegative = 0.0625
    clamp_norm_factor: Positive = 0.75
    early_stop_loss: NonNegative = 0.05

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The settings by the names users write."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())

    def override(self, values: Mapping[str, Any]) -> Settings:
        """These settings with some replaced; values may be text, as from a command line.

        **Raises** :class:`~bluedit.errors.SettingsError` for an unknown name or a value out of range.
        """
        names = self.names()
        for name in values:
            if name not in names:
                raise SettingsError(did_you_mean(name, names, what="setting"))
        try:
            return Settings.model_validate(self.as_dict() | dict(values))
        except ValidationError as error:
            problems = "; ".join(f"setting {'.'.join(map(str, e['loc']))}={e['input']!r}: {e['msg']}" for e in error.errors())
            raise SettingsError(problems) from error

    def as_dict(self) -> dict[str, Any]:
        """Plain values by the names users write."""
        return self.model_dump(by_alias=True)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of editing: what the loop in :mod:`bluedit.editing` needs to know, and nothing that it does.

    - `strategy`: which layer closes which gap.
    - `noise`: eps of the least-squares form; 1 trades residuals against the prior.
    - `settings`: the settings that apply when a model's own are not known.
    - `reference`: the paper.
    """

    name: str
    strategy: Strategy
    noise: float = 1.0
    settings: Settings = field(default_factory=Settings)
    reference: str = ""

    def with_strategy(self, strategy: Strategy) -> Method:
        """The same method over other steps."""
        return replace(self, strategy=strategy)

    @property
    def label(self) -> str:
        """Name and strategy, for tables."""
        return f"{self.name} + BLUE" if self.strategy == BOUNDARY else f"{self.name}, {self.strategy.name}"


MEMIT = Method(name="memit", strategy=EVEN, reference="Meng et al. 2022b, Mass-Editing Memory in a Transformer, eq. 14")

METHODS: dict[str, Method] = {known.name: known for known in (MEMIT,)}
"""The methods by name."""


def blue(known: Method) -> Method:
    """The method with BLUE's strategy: only the boundary layers, each with its own residual (Li et al. 2025)."""
    return known.with_strategy(BOUNDARY)


def method(name: str | Method) -> Method:
    """A method by name.

    **Raises** :class:`~bluedit.errors.SettingsError` with the nearest known name.
    """
    if isinstance(name, Method):
        return name
    if name not in METHODS:
        raise SettingsError(did_you_mean(name, METHODS, what="method"))
    return METHODS[name]
