"""What an editor is: the contract between a way of editing and everything that works with any of them.

An :class:`Editor` turns a model, facts and a :class:`State` into an :class:`~bluedit.edits.base.Edit` and what the state should
remember of it. Sessions, tuning, experiments, the doctor and the command line know these classes and no family of editors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast, runtime_checkable

from bluedit.editors.settings import Settings, current_names, declared_names, union
from bluedit.errors import FactError, PatchError, SettingsError, excerpt
from bluedit.facts import Fact, OnConflict, check_facts, check_on_conflict
from bluedit.strategies import BOUNDARY, Step, Strategy

if TYPE_CHECKING:
    from torch import Tensor

    from bluedit.edits.base import Edit
    from bluedit.models import EditableModel
    from bluedit.progress import Progress
    from bluedit.statistics import Statistics

__all__ = ["Edited", "Editor", "Facts", "Needs", "Part", "Plan", "Setup", "State", "Storable", "ValueStore"]

Facts = Iterable[Fact | dict[str, Any]] | Fact | dict[str, Any]


@runtime_checkable
class Part(Protocol):
    """A piece that an editor is built from: a frozen value.

    - `name`: what files call it; it stays when the class is renamed.
    - `settings`: the class of its settings.
    """

    name: ClassVar[str]
    settings: ClassVar[type[Settings]]


@dataclass(frozen=True)
class Edited:
    """One batch, done: its edit, and what the sequence should remember of it, tensors by name (a layer, for keys)."""

    edit: Edit
    memory: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an edit needs in addition to the weights of the model, for estimates of memory and time.

    - `second_moments`: inverses of second moments at the edited layers, of `metric_bytes` a number; stored twice with
      `keeps_initial`.
    - `trains`: gradients and Adam's moments of the edited weights.
    - `evaluations`: how often the loss of a fact is evaluated, at every target layer.
    """

    second_moments: bool = False
    metric_bytes: int = 8
    keeps_initial: bool = False
    trains: bool = False
    evaluations: int = 0


class Storable(Protocol):
    """What an editor optimises for facts at one layer, as a :class:`ValueStore` keeps it. :meth:`Editor.restore_values` makes
    them again."""

    def tensors(self) -> dict[str, Tensor]:
        """Their tensors by name."""
        ...

    def record(self) -> dict[str, Any]:
        """The rest, for JSON."""
        ...


class ValueStore(Protocol):
    """What runs on one model share: values optimised once for the same facts at the same layer of the same edited state.

    :meth:`Editor.value_identity` tells values of different editors and settings apart.
    """

    def recall(self, model: EditableModel, plan: Plan, layer: int) -> tuple[Any, float] | None:
        """What was optimised for the plan's facts at `layer` of the model as it is now, and the seconds it took then."""
        ...

    def keep(self, model: EditableModel, plan: Plan, layer: int, values: Storable, seconds: float) -> None:
        """Keep what was just optimised."""
        ...


class State:
    """What a sequence of edits remembers in addition to its edits. This one remembers nothing.

    - `constant`: the names of :meth:`tensors` that :meth:`absorb` never changes.
    """

    constant: ClassVar[frozenset[str]] = frozenset()

    def absorb(self, memory: Mapping[str, Tensor]) -> None:
        """Take in what a batch left (:attr:`Edited.memory`), in place."""

    def after(self, memories: Iterable[Mapping[str, Tensor]]) -> State:
        """The state after these batches, from the one before the first."""
        del memories
        return self

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a saved session stores of it, file by file."""
        return {}

    def record(self) -> dict[str, Any]:
        """What a saved session stores of it in JSON."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Editor(ABC):
    """A way of editing: a frozen value.

    - `name`: what users and files call it. `summary`, `reference`: one line for people, and the paper.
    - `strategy`: which layers it changes.
    - `settings`: the settings that apply when a model's own are not known.
    - `largest_batch`: how many facts it takes at once; any number when None.

    A new family subclasses it as a frozen dataclass; its fields beyond these are what it is made of.
    """

    name: str
    strategy: Strategy
    largest_batch: int | None = None
    settings: Settings = field(default_factory=Settings)
    summary: str = ""
    reference: str = ""

    larger_batches: ClassVar[str] = ""
    """Advice for those who give too many facts at once: ", or use ..."."""

    def __post_init__(self) -> None:
        kind = union(*(part.settings for part in self.parts.values()))
        if type(self.settings) is not kind:
            object.__setattr__(self, "settings", self.settings.carried(kind))

    # -- what it is made of ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, Part]:
        """Its parts by what they are for; their settings together are its settings."""

    @property
    def unused(self) -> frozenset[str]:
        """Settings of its parts that make no difference to it."""
        return frozenset()

    @property
    def uses(self) -> tuple[str, ...]:
        """The settings that make a difference to it, by the names users write."""
        return tuple(name for name in self.settings.names() if name not in self.unused)

    def record(self) -> dict[str, Any]:
        """What it is made of, but for its name, strategy and settings; for files: parts by their registered names."""
        common = {one.name for one in fields(Editor)} - {"largest_batch"}
        return {one.name: _record(getattr(self, one.name)) for one in fields(self) if one.name not in common}

    @property
    def caches_keys(self) -> bool:
        """Whether keys of earlier batches of a sequence shape the later ones."""
        return False

    @property
    def label(self) -> str:
        """Name and strategy, for tables."""
        return f"{self.name} + BLUE" if self.strategy.name == BOUNDARY.name else f"{self.name}, {self.strategy.name}"

    def with_strategy(self, strategy: Strategy) -> Self:
        """The same editor over other steps.

        **Raises** :class:`~bluedit.errors.SettingsError` when it cannot follow that strategy.
        """
        return replace(self, strategy=strategy)

    # -- checks ----------------------------------------------------------------------------------------------

    def check_batch(self, facts: int) -> None:
        """**Raises** :class:`~bluedit.errors.SettingsError` when it cannot edit this many facts at once."""
        if self.largest_batch is not None and facts > self.largest_batch:
            raise SettingsError(
                f"{self.name} solves for {self.largest_batch} fact at a time, and was given {facts}; edit them in sequence "
                f"(a Session, or --batch-size 1){self.larger_batches}"
            )

    def override(self, *layers: Mapping[str, Any]) -> Settings:
        """Its settings with some replaced, the last mapping's counting most.

        Mappings before the last may hold settings that other editors use.

        **Raises** :class:`~bluedit.errors.SettingsError` for a value out of range, and for a name in the last mapping that
        is unknown or that this editor does not use.
        """
        *presets, asked = layers
        known, own = declared_names(), self.settings.names()
        chosen = current_names(asked)
        for name in chosen:
            if name in known and name not in self.uses:
                raise SettingsError(f"{self.name} does not use the setting {name!r}; it uses {', '.join(self.uses)}")
        # A name that no editor knows is for the settings to refuse.
        preset = {name: value for one in presets for name, value in one.items() if name in own or name not in known}
        return self.settings.override(preset | chosen)

    # -- values that runs share ------------------------------------------------------------------------------

    def value_identity(self, settings: Settings) -> dict[str, Any]:
        """All of the editor that its optimised values depend on, for JSON: by default everything it is made of. Editors whose
        values depend on less, and are equal then, say so here."""
        return {"name": self.name, "record": self.record(), "settings": settings.as_dict()}

    def restore_values(self, model: EditableModel, layer: int, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
        """The values at `layer` that :meth:`Storable.record` and :meth:`Storable.tensors` stand for.

        **Raises** `KeyError` or `ValueError` when they are not whole.
        """
        del model, layer, record, tensors
        raise ValueError(f"{self.name} stores no values")

    # -- editing ---------------------------------------------------------------------------------------------

    def needs(self, settings: Settings) -> Needs:
        """What an edit with these settings takes."""
        del settings
        return Needs()

    def prepare(self, model: EditableModel, setup: Setup, progress: Progress) -> Setup:
        """The setup with everything computed that edits of any facts with it share (second moments)."""
        del model, progress
        return setup

    def begin(self, setup: Setup) -> State:
        """The state before the first batch."""
        del setup
        return State()

    @abstractmethod
    def edit(
        self, model: EditableModel, plan: Plan, state: State, progress: Progress, store: ValueStore | None = None
    ) -> Edited:
        """The edit of one batch of facts. The model is left as it was, bit for bit, also when this fails; `state` may only be
        added to by what does not depend on the facts."""

    def stored_values(self, edit: Edit, columns: Sequence[int]) -> ValueStore:
        """What an earlier edit stored of some of its facts, by their places in it, to solve for them again without optimising.

        **Raises** :class:`~bluedit.errors.PatchError` where nothing was stored.
        """
        del edit, columns
        raise PatchError(
            f"{self.name} trains all facts together and stores nothing of a single one: its edits cannot be solved again "
            "without some facts. Revert the edit, and edit again with the facts that shall stay"
        )

    @property
    def ends_sequence(self) -> bool:
        """Whether :meth:`finish` does anything."""
        return False

    def finish(self, edit: Edit, setup: Setup, originals: Mapping[str, Tensor]) -> Edit:
        """What becomes of the edit of a whole sequence at its end. `originals`: the weights from before it, d_model x d_ff."""
        del setup, originals
        return edit

    def restore(
        self, setup: Setup, record: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]], model: EditableModel
    ) -> State:
        """The state that a saved session holds, from :meth:`State.record` and :meth:`State.tensors`.

        **Raises** `ValueError` when they do not fit the model.
        """
        del record, tensors, model
        return self.begin(setup)

    def check_memory(self, memory: Mapping[str, Tensor], edit: Edit, model: EditableModel) -> None:
        """**Raises** `ValueError` when what a saved session remembers of a batch is not that batch's."""
        del edit, model
        if memory:
            raise ValueError(f"{self.name} stores nothing for a batch, but the file holds something")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything that determines an edit but model and facts: checked, defaults filled in."""

    method: Editor
    layers: tuple[int, ...]
    settings: Settings
    statistics: Statistics
    templates: tuple[str, ...]
    seed: int = 0
    on_conflict: OnConflict = "error"

    def plan(self, model: EditableModel, facts: Facts, start: int = 0, on_conflict: OnConflict | None = None) -> Plan:
        """The plan for facts, checked; those without an id are numbered from `start`.

        `on_conflict`: for these facts, instead of the setup's.

        **Raises** :class:`~bluedit.errors.FactError` and :class:`~bluedit.errors.SettingsError` for facts that cannot be
        edited so.
        """
        given = cast("Iterable[Fact]", [facts] if isinstance(facts, Fact | dict) else facts)
        checked = check_facts(given, start, check_on_conflict(on_conflict or self.on_conflict))
        self.method.check_batch(len(checked))
        for fact in checked:
            try:
                row = model.text.row(fact, with_target=True)  # says now what no token can be found for
            except FactError as error:
                raise FactError(f"fact {excerpt(fact.id)}: {error}") from error
            if len(row.ids) > model.context_length:
                raise FactError(
                    f"fact {excerpt(fact.id)} takes {len(row.ids):,} tokens with its target; the model takes "
                    f"{model.context_length:,}: shorten its prompt"
                )
        return Plan(**{one.name: getattr(self, one.name) for one in fields(Setup)}, facts=checked)


@dataclass(frozen=True, kw_only=True)
class Plan(Setup):
    """A setup, and the facts of one batch."""

    facts: tuple[Fact, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the strategy; none where there are no facts."""
        return self.method.strategy.steps(self.layers) if self.facts else ()


def _record(value: Any) -> Any:
    """A part as its registered name and the numbers it was made with; plain values as they are."""
    if isinstance(value, Part):
        numbers = {one.name: getattr(value, one.name) for one in fields(value)} if is_dataclass(value) else {}
        return {"name": value.name} | {name: list(one) if isinstance(one, tuple) else one for name, one in numbers.items()}
    return value
