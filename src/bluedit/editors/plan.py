"""What determines an edit but the model: the options, checked and filled in, and then the facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, Unpack, cast

from bluedit.editors.base import Editor
from bluedit.editors.closed_form.keys import check_templates, context_templates
from bluedit.editors.layers import choose_layers, unknown_layers
from bluedit.editors.presets import find_preset
from bluedit.editors.settings import Settings
from bluedit.errors import FactError, excerpt
from bluedit.facts import Fact, OnConflict, check_facts, check_on_conflict
from bluedit.methods import MEMIT, blue, find_method
from bluedit.models import EditableModel
from bluedit.statistics import Statistics, read_corpus
from bluedit.strategies import Step, Strategy, find_strategy

__all__ = ["EditOptions", "Facts", "Plan", "Setup", "prepare"]

Facts = Iterable[Fact | dict[str, Any]] | Fact | dict[str, Any]


class EditOptions(TypedDict, total=False):
    """What :func:`bluedit.edit` takes beside model and facts, all of it optional."""

    method: Editor | str | None
    strategy: Strategy | str | None
    layers: Sequence[int] | Literal["auto"] | None
    settings: Settings | Mapping[str, Any] | None
    corpus: str | Statistics | None
    templates: Sequence[str] | None
    seed: int
    on_conflict: OnConflict


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


def prepare(
    model: EditableModel,
    *,
    method: Editor | str | None = None,
    strategy: Strategy | str | None = None,
    layers: Sequence[int] | Literal["auto"] | None = None,
    settings: Settings | Mapping[str, Any] | None = None,
    corpus: str | Statistics | None = None,
    templates: Sequence[str] | None = None,
    seed: int = 0,
    on_conflict: OnConflict = "error",
) -> Setup:
    """Check the options of an edit and fill in what was left out; see :func:`bluedit.edit`. Computes nothing expensive."""
    chosen = blue(MEMIT) if method is None else find_method(method)
    if strategy is not None:
        chosen = chosen.with_strategy(find_strategy(strategy))
    preset = find_preset(model.model.config)
    if layers == "auto":
        from bluedit.editors.layer_cache import recall

        fixed = chosen.strategy.fixed_layers
        layers = recall(model).layers_for(chosen.strategy) if fixed is None else fixed
    choice = choose_layers(chosen, model.structure, preset, layers)
    if choice is None:
        raise unknown_layers(chosen, model.structure)
    if isinstance(settings, Settings):
        settings = settings if type(settings) is type(chosen.settings) else chosen.override(settings.as_dict())
    else:
        known = preset.settings_for(chosen.name, chosen.strategy.name) if preset else {}
        settings = chosen.override(known, settings or {})
    if not isinstance(corpus, Statistics):
        name = corpus or (preset.corpus if preset else None)
        corpus = Statistics(read_corpus(name) if name else None)
    return Setup(
        method=chosen,
        layers=choice.layers,
        settings=settings,
        statistics=corpus,
        templates=check_templates(templates) if templates is not None else context_templates(model, seed),
        seed=seed,
        on_conflict=check_on_conflict(on_conflict),
    )


def plan_edit(model: EditableModel, facts: Facts, **options: Unpack[EditOptions]) -> Plan:
    """The plan of one edit; see :func:`prepare` and :meth:`Setup.plan`."""
    return prepare(model, **options).plan(model, facts)
