"""Methods as values: a prior over keys, a strategy, an objective and a restraint, put together.

`METHODS` holds the published ones by name; :func:`blue` replaces a method's strategy by BLUE's and nothing else. A method
of one's own is another value, put together from these parts or from new ones:

    Method(name="mine", strategy=BOUNDARY, prior=NULL_SPACE, keeps_past=True, objective=TWO_SITES, restraint=RELATIVE_CHANGE)

An installed package adds methods through the entry-point group `bluedit.methods`; they are found by :func:`method` like the
published ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bluedit.errors import SettingsError, did_you_mean, excerpt
from bluedit.restraints import PRUNING, RELATIVE_CHANGE, Restraint
from bluedit.solvers.priors import NULL_SPACE, SECOND_MOMENT, Prior
from bluedit.strategies import BOUNDARY, EVEN, SINGLE, SQUARE_ROOT, Strategy

__all__ = [
    "ALPHAEDIT",
    "EMMET",
    "FT_L",
    "FT_M",
    "HIDDEN_STATE",
    "MEMIT",
    "MEMIT_SEQ",
    "METHODS",
    "MLP_OUTPUT",
    "PMET",
    "PRUNE",
    "RECT",
    "ROME",
    "R_ROME",
    "TWO_SITES",
    "FineTuning",
    "Method",
    "Objective",
    "Settings",
    "blue",
    "installed_methods",
    "method",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


_PUBLISHED_SCALE = ("lambda_scale", "absolute")


class Settings(BaseModel):
    """What a method leaves open. Names are the published ones; the defaults are the papers' common settings.

    Value optimisation

    - `v_lr`, `v_num_grad_steps`: Adam's step size, and how often the loss is evaluated at most.
    - `v_weight_decay`: weight of ||delta|| / ||h0||^2.
    - `kl_factor`: weight of the KL divergence at the subject's last token of "{subject} is a".
    - `clamp_norm_factor`: ||delta|| stays below this many ||h0||.
    - `early_stop_loss`: a fact is done once its loss is below.
    - `v_autocast`: run the model's matrix products in this precision meanwhile; deltas, logits' losses and Adam stay float32.
      Nothing but time is gained where the weights are in half precision already.

    - `v_warm_after`: of a larger batch so many facts, spread evenly, start from 0, and the others with half of the evaluations
      from what a ridge regression on those predicts (:mod:`bluedit.values.starts`); 0, as published: all start from 0.

    The prior over keys

    - `lambda` (attribute `lambda_`): weight of the second moment against the new facts (MEMIT eq. 15).
    - `lambda_scale`: `absolute`, as published; or `relative`, lambda counts in d_ff. E[k^T C^-1 k] over the text is d_ff,
      whatever the keys' size: at a relative lambda of 1 a key like the text's is met by half, in a model of any width.
    - `shrinkage`: a in (1 - a) C + a tr(C)/F I; 0 as published.
    - `L2`: AlphaEdit's ridge, which takes lambda's place.
    - `nullspace_threshold`, `nullspace_scale`: directions with an eigenvalue below count as null space; `absolute`, in C's
      own units (as published), or `relative`, in mean eigenvalues.
    - `metric_dtype`: precision of the inverse metric. float32 halves its memory, and loses what a condition number above
      1e6 leaves.

    Restraints

    - `rect_keep`: the share of entries that RECT keeps.
    - `prune_base`: base of PRUNE's logarithm; e by default, 1.2 in its paper.

    Fine-tuning

    - `ft_lr`, `ft_num_steps`, `ft_early_stop_loss`: Adam's step size, steps at most, and the loss that is low enough.
    - `norm_constraint`: no entry of the weight moves further than this.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    lambda_: Positive = Field(default=15000.0, alias="lambda")
    lambda_scale: Literal["absolute", "relative"] = "absolute"
    shrinkage: Share = 0.0
    L2: Positive = 10.0
    nullspace_threshold: Positive = 2e-2
    nullspace_scale: Literal["absolute", "relative"] = "absolute"
    metric_dtype: Literal["float64", "float32"] = "float64"
    v_lr: Positive = 0.1
    v_num_grad_steps: Annotated[int, Field(ge=1)] = 25
    v_weight_decay: NonNegative = 0.5
    kl_factor: NonNegative = 0.0625
    clamp_norm_factor: Positive = 0.75
    early_stop_loss: NonNegative = 0.05
    v_autocast: Literal["off", "bfloat16", "float16"] = "off"
    v_warm_after: Annotated[int, Field(ge=0)] = 0
    rect_keep: Share = 0.4
    prune_base: Annotated[float, Field(gt=1, allow_inf_nan=False)] = math.e
    ft_lr: Positive = 5e-4
    ft_num_steps: Annotated[int, Field(ge=1)] = 25
    ft_early_stop_loss: NonNegative = 1e-2
    norm_constraint: Positive = 5e-4

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
            return self.model_validate(self.as_dict() | dict(values))
        except ValidationError as error:
            problems = "; ".join(
                f"setting {'.'.join(map(str, e['loc']))}={excerpt(e['input'])}: {e['msg']}" for e in error.errors()
            )
            raise SettingsError(problems) from error

    def as_dict(self) -> dict[str, Any]:
        """Plain values by the names users write."""
        return self.model_dump(by_alias=True)

    def recorded(self, uses: Collection[str]) -> dict[str, Any]:
        """What a result says of these settings: those that were used. `lambda_scale` is named where it is not as published;
        what was written before there was one says the same."""
        return {name: value for name, value in self.as_dict().items() if name in uses and (name, value) != _PUBLISHED_SCALE}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is optimised for a fact, and where it counts.

    - `sites`: where vectors are added, one each; the target is what should stand at the first. `layer`: the layer's output;
      `mlp`, `attention`: the outputs of its two parts.
    - `met_scale`: while the target is the most likely text after every prompt, its loss counts this much in the next step
      (PMET); None for no change.
    - `met_kl`: ... and a fact is done when its KL divergence is below this.
    """

    sites: tuple[Literal["layer", "mlp", "attention"], ...] = ("layer",)
    met_scale: float | None = None
    met_kl: float = 0.0

    uses = (
        "v_lr",
        "v_num_grad_steps",
        "v_weight_decay",
        "kl_factor",
        "clamp_norm_factor",
        "early_stop_loss",
        "v_autocast",
        "v_warm_after",
    )

    def __post_init__(self) -> None:
        if unknown := [site for site in self.sites if site not in ("layer", "mlp", "attention")]:
            raise SettingsError(did_you_mean(unknown[0], ("layer", "mlp", "attention"), what="site"))
        if not self.sites or len(set(self.sites)) < len(self.sites) or ("layer" in self.sites and len(self.sites) > 1):
            raise SettingsError(
                f"an objective has one site, or both of mlp and attention; got {', '.join(self.sites) or 'none'}"
            )


HIDDEN_STATE = Objective()
"""The hidden state after the layer (MEMIT eq. 16)."""

MLP_OUTPUT = Objective(sites=("mlp",))
"""The MLP's output (ROME eq. 4). What it does to the layers above is the same; norms, and with them clamp and decay, are
the MLP's."""

TWO_SITES = Objective(sites=("mlp", "attention"), met_scale=0.1, met_kl=0.01)
"""PMET's: the outputs of MLP and attention are optimised together, and the MLP's alone is what the weight should give
(PMET, section 4)."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Adam on the weight itself, in place of a value and a closed form.

    - `teacher_forcing`: every target token is asked for after those before it (FT-M); otherwise all of them at the prompt's
      last token (FT-L).
    """

    teacher_forcing: bool

    uses = ("ft_lr", "ft_num_steps", "ft_early_stop_loss", "norm_constraint")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of editing: what the loop in :mod:`bluedit.editing` needs to know, and nothing that it does.

    - `strategy`: which layer closes which gap.
    - `prior`: the metric over keys that changes are weighed by.
    - `noise`: eps of the least-squares form; 1 trades residuals against the prior, 0 meets them exactly.
    - `reads_bare_prompt`: residuals are met at the key of the bare prompt, though written to the mean key over contexts (ROME).
    - `keeps_past`: keys of earlier batches of a session join the prior.
    - `objective`: what is optimised for a fact.
    - `restraint`: what is done to the finished change.
    - `largest_batch`: how many facts one solution can take; any number when None.
    - `fine_tuning`: trains the weight instead; prior, noise and objective are then unused.
    - `settings`: the settings that apply when a model's own are not known.
    - `summary`, `reference`: one line for people, and the paper.
    """

    name: str
    strategy: Strategy
    prior: Prior = SECOND_MOMENT
    noise: Literal[0, 1] | float = 1.0
    reads_bare_prompt: bool = False
    keeps_past: bool = False
    objective: Objective = HIDDEN_STATE
    restraint: Restraint | None = None
    largest_batch: int | None = None
    fine_tuning: FineTuning | None = None
    settings: Settings = field(default_factory=Settings)
    summary: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        if self.noise < 0:
            raise SettingsError(
                f"noise={self.noise} of method {self.name!r} is negative; 1 is least squares, 0 meets residuals exactly"
            )
        if self.keeps_past and self.noise != 1:
            raise SettingsError(
                f"method {self.name!r} keeps past keys, which join the prior with noise 1; it has noise {self.noise}"
            )
        if self.fine_tuning and not self.strategy.one_layer:
            raise SettingsError(
                f"{self.name} trains one weight and has no residual that the strategy {self.strategy.name!r} could place; it "
                "goes with strategy single"
            )
        if self.fine_tuning and self.keeps_past:
            raise SettingsError(f"{self.name} trains one weight and has no keys; keeps_past means nothing to it")

    def with_strategy(self, strategy: Strategy) -> Method:
        """The same method over other steps.

        **Raises** :class:`~bluedit.errors.SettingsError` when the method has no residual that a strategy could place.
        """
        return replace(self, strategy=strategy)

    def check_batch(self, facts: int) -> None:
        """**Raises** :class:`~bluedit.errors.SettingsError` when the method cannot take so many facts at once."""
        if self.largest_batch is not None and facts > self.largest_batch:
            raise SettingsError(
                f"{self.name} solves for {self.largest_batch} fact at a time, and was given {facts}; edit them in sequence "
                "(a Session, or --batch-size 1), or use emmet, which is its form for batches"
            )

    @property
    def uses(self) -> tuple[str, ...]:
        """The settings that make a difference to this method, by the names users write."""
        if self.fine_tuning:
            parts: list[tuple[str, ...]] = [self.fine_tuning.uses]
        else:
            parts = [self.prior.uses, self.objective.uses]
        wanted = {*(name for part in parts for name in part), *(self.restraint.uses if self.restraint else ())}
        if not self.noise:
            wanted -= {"lambda", "lambda_scale", "L2"}  # the scale of the metric cancels where residuals are met exactly
        return tuple(name for name in self.settings.names() if name in wanted)

    def override(self, *layers: Mapping[str, Any]) -> Settings:
        """The method's settings with some replaced, the last mapping's counting most.

        **Raises** :class:`~bluedit.errors.SettingsError` for a value out of range, and for a name in the last mapping that
        is unknown or that this method does not use.
        """
        names = self.settings.names()
        for name in layers[-1]:
            if name in names and name not in self.uses:
                raise SettingsError(f"{self.name} does not use the setting {name!r}; it uses {', '.join(self.uses)}")
        return self.settings.override({name: value for layer in layers for name, value in layer.items()})

    @property
    def label(self) -> str:
        """Name and strategy, for tables."""
        return f"{self.name} + BLUE" if self.strategy.name == BOUNDARY.name else f"{self.name}, {self.strategy.name}"


MEMIT = Method(
    name="memit",
    strategy=EVEN,
    summary="least squares against the second moment of keys",
    reference="Meng et al. 2022b, Mass-Editing Memory in a Transformer, eq. 14",
)
MEMIT_SEQ = replace(
    MEMIT,
    name="memit-seq",
    keeps_past=True,
    summary="MEMIT that keeps the keys of earlier batches",
    reference="Li et al. 2025, Rethinking Residual Distribution in Locate-then-Edit Model Editing, eq. 8",
)
RECT = replace(
    MEMIT,
    name="rect",
    restraint=RELATIVE_CHANGE,
    summary="MEMIT that keeps only the entries that change most, relative to the weight",
    reference="Gu et al. 2024, Model Editing Harms General Abilities of Large Language Models",
)
PRUNE = replace(
    MEMIT,
    name="prune",
    restraint=PRUNING,
    summary="MEMIT whose total change has its largest singular values restrained at the end of the sequence",
    reference="Ma et al. 2024, Perturbation-Restrained Sequential Model Editing",
)
ALPHAEDIT = Method(
    name="alphaedit",
    strategy=EVEN,
    prior=NULL_SPACE,
    keeps_past=True,
    summary="changes only in the null space of the keys, past keys kept",
    reference="Fang et al. 2024, AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models",
)
PMET = Method(
    name="pmet",
    strategy=SQUARE_ROOT,
    objective=TWO_SITES,
    summary="values optimised at MLP and attention together; the MLP's output is the target",
    reference="Li et al. 2024, PMET: Precise Model Editing in a Transformer",
)
EMMET = Method(
    name="emmet",
    strategy=EVEN,
    noise=0.0,
    summary="residuals met exactly, for a batch",
    reference="Gupta et al. 2024, A Unified Framework for Model Editing",
)
ROME = Method(
    name="rome",
    strategy=SINGLE,
    noise=0.0,
    reads_bare_prompt=True,
    objective=MLP_OUTPUT,
    largest_batch=1,
    settings=Settings(v_lr=0.5, v_num_grad_steps=20, clamp_norm_factor=4.0),
    summary="one fact, one layer, its residual met exactly at the bare prompt",
    reference="Meng et al. 2022a, Locating and Editing Factual Associations in GPT, eq. 2 to 4",
)
R_ROME = replace(
    ROME,
    name="r-rome",
    reads_bare_prompt=False,
    summary="ROME with the mean key in both of its places",
    reference="Gupta et al. 2024, Rebuilding ROME: Resolving Model Collapse during Sequential Model Editing",
)
FT_L = Method(
    name="ft-l",
    strategy=SINGLE,
    fine_tuning=FineTuning(teacher_forcing=False),
    summary="one weight fine-tuned within a box; all target tokens asked for at the prompt's last token",
    reference="Zhu et al. 2020, Modifying Memories in Transformer Models; Meng et al. 2022a, appendix E",
)
FT_M = replace(
    FT_L,
    name="ft-m",
    fine_tuning=FineTuning(teacher_forcing=True),
    summary="FT-L with teacher forcing over all target tokens",
    reference="Zhang et al. 2024, A Comprehensive Study of Knowledge Editing for Large Language Models",
)

METHODS: dict[str, Method] = {
    known.name: known for known in (MEMIT, MEMIT_SEQ, RECT, PRUNE, ALPHAEDIT, PMET, EMMET, ROME, R_ROME, FT_L, FT_M)
}
"""The published methods by name."""

_ENTRY_POINTS = "bluedit.methods"


@cache
def installed_methods() -> dict[str, Method]:
    """Methods of other installed packages, by name, from the entry-point group `bluedit.methods`.

    An entry point is a :class:`Method`; its name is the method's.

    **Raises** :class:`~bluedit.errors.SettingsError` naming the package when one cannot be loaded, is no method, or takes a
    name that is taken.
    """
    found: dict[str, Method] = {}
    for entry in entry_points(group=_ENTRY_POINTS):
        package = entry.dist.name if entry.dist else "an installed package"
        try:
            value = entry.load()
        except Exception as error:
            raise SettingsError(
                f"the method {entry.name!r} of {package} cannot be loaded ({error}); mend or uninstall {package}"
            ) from error
        if not isinstance(value, Method):
            raise SettingsError(
                f"{entry.value} of {package}, named as a method, is a {type(value).__name__}; it must be a bluedit.Method"
            )
        if value.name in METHODS or value.name in found:
            raise SettingsError(
                f"{package} brings a method named {value.name!r}, which exists already; rename it or uninstall {package}"
            )
        found[value.name] = value
    return found


def blue(known: Method) -> Method:
    """The method with BLUE's strategy: only the boundary layers, each with its own residual (Li et al. 2025).

    **Raises** :class:`~bluedit.errors.SettingsError` for methods without residuals (fine-tuning).
    """
    return known.with_strategy(BOUNDARY)


def method(name: str | Method) -> Method:
    """A method by name, published or installed.

    **Raises** :class:`~bluedit.errors.SettingsError` with the nearest known name.
    """
    if isinstance(name, Method):
        return name
    if name in METHODS:
        return METHODS[name]
    known = installed_methods()
    if name not in known:
        raise SettingsError(did_you_mean(name, (*METHODS, *known), what="method"))
    return known[name]
