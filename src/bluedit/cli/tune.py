"""`bluedit tune`: the settings to edit a model with, by a short search on held-out facts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bluedit.cli.options import (
    AsJson,
    Chat,
    CorpusName,
    Device,
    Dtype,
    Force,
    Layers,
    Limit,
    MethodName,
    Model,
    ModuleMap,
    Quiet,
    Samples,
    Seed,
    StrategyName,
    Templates,
    TraceFacts,
    TrustRemoteCode,
    layers_asked,
    parse_assignments,
    read_method,
    read_templates,
)

if TYPE_CHECKING:
    from bluedit.cli.console import Table
    from bluedit.tuning import Trial, Tuning

__all__ = ["tune"]

_SCORES = ("ES", "PS", "NS", "S")


def tune(
    model: Model,
    facts: Annotated[
        str,
        typer.Option(
            "--facts",
            "-f",
            help="Facts to try settings on, not those to be edited later: an edits file, CounterFact, zsRE, or facts that the "
            "model knows (known_1000), which are given other objects.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Save the trials and the settings in this file; the same command resumes the search."),
    ] = None,
    method: MethodName = "memit",
    strategy: StrategyName = None,
    layers: Layers = None,
    trace_facts: TraceFacts = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="NAME",
            help="A setting to vary; repeat it for several. By default lambda, shrinkage, clamp_norm_factor and v_lr, or "
            "their equivalents in the method, unless set.",
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Fix a setting, or start from it with --vary, e.g. shrinkage=0.1."),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="The maximum number of trials.")] = 32,
    count: Annotated[
        int, typer.Option("--count", min=1, metavar="N", help="Use at most N facts: 60 % for the search, 40 % for validation.")
    ] = 100,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, metavar="N", help="Facts per edit, as in your own edits; all at once by default."),
    ] = None,
    corpus: CorpusName = None,
    samples: Samples = None,
    templates: Templates = None,
    limit: Limit = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    force: Force = False,
    chat: Chat = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Search for settings to edit a model with. Every trial is printed; the result is validated on held-out facts."""
    from bluedit.cli import console

    console.load()
    critical, automatic = layers_asked(layers, trace_facts)
    overrides = parse_assignments(assignments or [])
    chosen = read_method(method, strategy)
    chosen.override(overrides)
    from bluedit.datasets import read_known
    from bluedit.storage.files import writable_target
    from bluedit.tuning.file import TUNING, read_tuning

    cases = read_known(facts, limit)
    traced = read_known(trace_facts) if trace_facts else None
    contexts = read_templates(templates)
    if out and (force or not out.exists()):
        writable_target(out, replace=force, kind=TUNING)
    elif out and out.is_file():
        read_tuning(out)  # says what is wrong with it before a model is loaded

    from bluedit.cli.automatic import traced_layers
    from bluedit.models import load_model
    from bluedit.statistics import Statistics, read_corpus
    from bluedit.tuning import tune

    source = Statistics(read_corpus(corpus), samples) if corpus else None
    shown: list[Trial] = []

    def show(trial: Trial) -> None:
        shown.append(trial)
        console.say(f"{len(shown):3}  {_line(trial)}")

    with console.bars(f"loading {model}") as bars:
        editable = load_model(
            model, device=device, dtype=dtype, module_map=module_map, trust_remote_code=trust_remote_code, chat=chat,
            progress=bars,
        )  # fmt: skip
        if automatic and chosen.strategy.fixed_layers is None:
            critical = traced_layers(editable, model, chosen, traced, seed, bars)
        bars("preparing the search", 0, None)
        found = tune(
            editable, cases, vary=vary, trials=trials, count=count, batch_size=batch_size,
            out=out, replace=force, on_trial=show, progress=bars,
            method=chosen, layers=critical, settings=overrides, corpus=source, templates=contexts, seed=seed,
        )  # fmt: skip
    if as_json:
        from bluedit.results.commands import TuneResult

        asked = {"model": model, "facts_file": facts, "out": str(out) if out else None}
        console.emit(TuneResult.of({**asked, **found.model_dump(mode="json")}))
        return
    console.show(_table(found))
    console.show(_counts(found))
    console.show(_outcome(found))
    used = " ".join(f"--set {name}={found.settings[name]:g}" for name in found.varied)
    console.say(f"edit with: --settings {out}" if out else f"edit with: {used}")


def _line(trial: Trial) -> str:
    """A trial in one line, as it is done."""
    tried = "  ".join(f"{name}={value:g}" for name, value in trial.settings.items())
    if trial.problem:
        return f"{tried}  failed: {trial.problem}"
    scores = "  ".join(f"{name} {trial.scores[name]['value']:.1f}" for name in _SCORES if name in trial.scores)
    return f"{tried}  {scores}  objective {trial.objective:.1f}  change {trial.relative_norm:.2g}  {trial.seconds:.1f} s"


def _table(found: Tuning) -> Table:
    from bluedit.cli.console import Table

    layers = f", layers {', '.join(map(str, found.layers))}" if found.layers else ""
    title = f"{found.method} with strategy {found.strategy}{layers}; * moved to, > chosen"
    table = Table(["", *found.varied, *_SCORES, "objective", "||D||/||W||", "s"], title=title, text=0)
    for number, trial in enumerate(found.trials):
        mark = ">" if number == found.chosen else "*" if number in found.moves else ""
        table.add(f"{mark}{number + 1}", *_cells(trial, found.varied))
    if found.check:
        table.rows.append(None)
        for label, trial in (("check: start", found.check.start), ("check: chosen", found.check.chosen)):
            table.add(label, *_cells(trial, found.varied))
    return table


def _cells(trial: Trial, varied: Sequence[str]) -> list[str]:
    settings = [f"{trial.settings[name]:g}" for name in varied]
    scores = [f"{trial.scores[name]['value']:.1f}" if name in trial.scores else "-" for name in _SCORES]
    if trial.objective is None:
        return [*settings, *scores, "failed", "-", f"{trial.seconds:.1f}"]
    return [*settings, *scores, f"{trial.objective:.1f}", f"{trial.relative_norm:.2g}", f"{trial.seconds:.1f}"]


def _counts(found: Tuning) -> str:
    left_out = found.facts["left_out"]
    reasons = "; ".join(f"{number} {reason}" for reason, number in left_out.items())
    return (
        f"facts edited: {found.facts['search']} for the search, {found.facts['check']} for validation, at most "
        f"{found.batch_size} at once{f'; left out: {reasons}' if reasons else ''}"
    )


def _outcome(found: Tuning) -> str:
    chosen = ", ".join(f"{name}={found.settings[name]:g}" for name in found.varied)
    check = found.check
    if check is None or check.difference is None:
        return f"settings: {chosen}"
    gain = "{value:+.1f} [{low:.1f}, {high:.1f}]".format(**check.difference)
    if check.difference["value"] < 0:
        return f"settings: {chosen}, the starting point: on the validation facts, the search's best has {gain} points of S"
    return f"settings: {chosen}; on the validation facts {gain} points of S against the start"
