"""Fine-tuning one weight within a box, as an editor: FT-L and FT-M."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self, cast

from bluedit.editors.base import Edited, Editor, Needs, Part, State, ValueStore
from bluedit.editors.fine_tuning.settings import FineTuningSettings
from bluedit.editors.settings import Settings
from bluedit.errors import SettingsError
from bluedit.strategies import SINGLE, Strategy

if TYPE_CHECKING:
    from bluedit.editors.base import Plan
    from bluedit.models import EditableModel
    from bluedit.progress import Progress

__all__ = ["FT_L", "FT_M", "FineTuning", "FineTuningSettings"]


@dataclass(frozen=True)
class _Training:
    name: ClassVar[str] = "adam-in-a-box"
    settings: ClassVar[type[Settings]] = FineTuningSettings


@dataclass(frozen=True, kw_only=True)
class FineTuning(Editor):
    """Adam on one weight, in place of a value and a closed form.

    - `teacher_forcing`: every target token is asked for after those before it (FT-M); otherwise all of them at the prompt's
      last token (FT-L).
    """

    teacher_forcing: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_strategy(self.name, self.strategy)

    @property
    def parts(self) -> Mapping[str, Part]:
        """The training."""
        return {"training": _Training()}

    def with_strategy(self, strategy: Strategy) -> Self:
        """The same training of another layer.

        **Raises** :class:`~bluedit.errors.SettingsError` for strategies over several layers.
        """
        _check_strategy(self.name, strategy)
        return replace(self, strategy=strategy)

    def needs(self, settings: Settings) -> Needs:
        """Gradients and Adam's moments of one weight."""
        return Needs(trains=True, evaluations=cast("FineTuningSettings", settings).ft_num_steps)

    def edit(
        self, model: EditableModel, plan: Plan, state: State, progress: Progress, store: ValueStore | None = None
    ) -> Edited:
        """One batch, see :func:`~bluedit.editors.fine_tuning.training.edit_batch`."""
        from bluedit.editors.fine_tuning.training import edit_batch

        del state, store
        return edit_batch(model, plan, self, progress)


def _check_strategy(name: str, strategy: Strategy) -> None:
    if not strategy.one_layer:
        raise SettingsError(
            f"{name} trains one weight and has no residual that the strategy {strategy.name!r} could place; it goes with "
            "strategy single"
        )


FT_L = FineTuning(
    name="ft-l",
    strategy=SINGLE,
    teacher_forcing=False,
    summary="one weight fine-tuned within a box; all target tokens asked for at the prompt's last token",
    reference="Zhu et al. 2020, Modifying Memories in Transformer Models; Meng et al. 2022a, appendix E",
)
FT_M = replace(
    FT_L,
    name="ft-m",
    teacher_forcing=True,
    summary="FT-L with teacher forcing over all target tokens",
    reference="Zhang et al. 2024, A Comprehensive Study of Knowledge Editing for Large Language Models",
)
