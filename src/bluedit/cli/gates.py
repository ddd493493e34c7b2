"""The gates of `bluedit edit`: what is said before an edit, what is measured after it, and the plan of `--dry-run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bluedit.errors import SettingsError

if TYPE_CHECKING:
    from bluedit.datasets import Case
    from bluedit.editors.base import Setup
    from bluedit.evaluation import Verdict
    from bluedit.evaluation.gates import Caution, Damage, DamageGate
    from bluedit.facts import Fact
    from bluedit.models import EditableModel
    from bluedit.progress import Progress

__all__ = ["Gates", "show_plan"]

_SHOWN = 10


@dataclass
class Gates:
    """What an edit has to pass: made on the unedited model, asked again on the edited one.

    - `facts`: those that are edited; `cases`: what they are scored by.
    - `limit`: of `--max-damage`; None measures no damage. `text`: the held-out text to measure it on.

    **Raises** :class:`~bluedit.errors.SettingsError` for options that do not go together.
    """

    facts: Sequence[Fact]
    cases: Sequence[Case]
    limit: float | None = None
    text: str | None = None
    cautions: tuple[Caution, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    damage: Damage | None = None
    _gate: DamageGate | None = None

    def __post_init__(self) -> None:
        if self.text and self.limit is None:
            raise SettingsError("--text is read to measure damage; say how much is allowed with --max-damage")

    def before(self, model: EditableModel, setup: Setup, batch_size: int | None, progress: Progress) -> None:
        """Look at the facts, and at the unedited model.

        **Raises** :class:`~bluedit.errors.InputError` for facts that cannot be edited.
        """
        from bluedit.cli import console
        from bluedit.evaluation.gates import DamageGate, cautions
        from bluedit.statistics import read_corpus

        progress("looking at the facts", 0, None)
        size = batch_size or max(1, len(self.facts))
        for start in range(0, len(self.facts), size):
            setup.plan(model, self.facts[start : start + size])
        self.cautions = cautions(model, self.facts, batch_size)
        for one in self.cautions:
            console.say(f"note: {one.text}")
        if self.limit is not None:
            texts = read_corpus(self.text).documents() if self.text else None
            self._gate = DamageGate(
                model, self.cases, texts, progress=lambda done, total: progress("scoring, unedited", done, total)
            )

    def after(self, model: EditableModel, progress: Progress) -> str | None:
        """Measure the edited model. **Returns** why the edit failed, or None."""
        from bluedit.evaluation import verify_facts
        from bluedit.facts import settle

        current = [self.facts[place] for place in settle(self.facts)]
        self.verdicts = verify_facts(model, current, progress=lambda done, total: progress("asking the facts", done, total))
        if self._gate is None or self.limit is None:
            return None
        self.damage = self._gate.measure(model, progress=lambda done, total: progress("measuring damage", done, total))
        return self.damage.exceeds(self.limit)

    def as_dict(self) -> dict[str, Any]:
        """The entries of the JSON document."""
        failing = [one for one in self.verdicts if not one.holds]
        document: dict[str, Any] = {
            "cautions": [{"kind": one.kind, "facts": list(one.facts), "text": one.text} for one in self.cautions],
            "holding": len(self.verdicts) - len(failing),
            "not_taken": [{"id": one.fact.id, "log_prob": one.log_prob, "says": one.says} for one in failing],
        }
        return document | ({"damage": self.damage.as_dict()} if self.damage else {})

    def show(self) -> None:
        """Print what became of the facts, and the damage."""
        from bluedit.cli import console

        failing = [one for one in self.verdicts if not one.holds]
        if failing:
            table = console.Table(["id", "prompt", "target", "the model says"], title="facts that did not take", text=4)
            for one in failing[:_SHOWN]:
                table.add(one.fact.id, one.fact.text, one.fact.target, one.says or "")
            console.show(table)
            if len(failing) > _SHOWN:
                console.show(f"and {len(failing) - _SHOWN} more; --json lists all")
        console.show(f"{len(self.verdicts) - len(failing)} of {len(self.verdicts)} facts hold")
        if self.damage:
            for name, unit, value in (
                ("specificity lost", "points", self.damage.specificity),
                ("perplexity", "%", self.damage.perplexity),
                ("KL divergence", "nats per token", self.damage.kl),
            ):
                if value is not None:
                    console.show(f"{name}: {value.value:.4g} [{value.low:.4g}, {value.high:.4g}] {unit}")


def show_plan(model: EditableModel, setup: Setup, facts: int, batch_size: int | None, gates: Gates, as_json: bool) -> None:
    """What an edit would do, and what it would take: the answer of `--dry-run`."""
    from bluedit.cli import console
    from bluedit.doctor.cost import estimate_time, plan_for, plan_line

    network, structure = model.model, model.structure
    memory = plan_for(network, structure, setup.method, setup.layers, setup.settings, model.dtype)
    taken = estimate_time(network, structure, setup.method, setup.layers, setup.settings, model.device, model.dtype)
    size = batch_size or max(1, facts)
    batches = -(-facts // size) if facts else 0
    seconds = taken.details.get("seconds_per_fact")
    total = None if seconds is None else seconds * facts + taken.details.get("seconds_inverting", 0.0)
    corpus = setup.statistics.corpus.name if setup.statistics.corpus else None
    if as_json:
        from bluedit.results.edits import EditPlanResult

        console.emit(
            EditPlanResult.of(
                {
                    "facts": facts,
                    "batches": batches,
                    "method": setup.method.name,
                    "strategy": setup.method.strategy.name,
                    "layers": list(setup.layers),
                    "settings": setup.settings.recorded(setup.method.uses),
                    "corpus": corpus,
                    "bytes": memory.as_dict(),
                    "seconds": total,
                    "cautions": gates.as_dict()["cautions"],
                }
            )
        )
        return
    steps = setup.method.strategy.steps(setup.layers)
    console.show(f"{facts} facts in {batches} batch{'es' * (batches != 1)} with {setup.method.label}")
    for step in steps:
        part = "" if step.fraction == 1 else f"{step.fraction:.3g} of "
        console.show(f"  layer {step.layer}: closes {part}the gap at layer {step.target_layer}")
    values = setup.settings.recorded(setup.method.uses)
    console.show(", ".join(f"{name}={value}" for name, value in values.items()))
    console.show(f"second moments: {corpus or 'none'}")
    console.show(plan_line(memory, model.device))
    console.show(f"time: {taken.message}" + ("" if total is None else f"; {total:,.0f} s in all"))
    console.say("nothing was edited (--dry-run)")
