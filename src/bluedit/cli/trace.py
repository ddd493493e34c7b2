"""`bluedit trace`: where a model stores its facts, and which layers to edit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bluedit.cli.options import (
    AsJson,
    Chat,
    Device,
    Dtype,
    Force,
    Limit,
    Model,
    ModuleMap,
    Quiet,
    Seed,
    TrustRemoteCode,
    given_as,
)

if TYPE_CHECKING:
    from bluedit.cli.console import Table
    from bluedit.editors.layer_cache import Choice
    from bluedit.tracing.trace import Trace

__all__ = ["trace"]


def trace(
    model: Model,
    facts: Annotated[
        str,
        typer.Option(
            "--facts", "-f", help="Facts that the model may know: known_1000, CounterFact, an edits file, or world:counterfact."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Save the trace and its figures in this folder, fact by fact; the same command resumes it."
        ),
    ] = None,
    components: Annotated[
        str, typer.Option("--components", help="The components to restore: layer (the hidden state), mlp, attention.")
    ] = "layer,mlp,attention",
    sites: Annotated[str | None, typer.Option("--sites", hidden=True)] = None,
    noise: Annotated[
        float,
        typer.Option(
            "--noise", min=0.0, help="Standard deviation of the noise, in standard deviations of the subjects' embeddings."
        ),
    ] = 3.0,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Noise samples per fact.")] = 10,
    window: Annotated[
        int | None,
        typer.Option("--window", min=1, help="MLP or attention layers restored together; by default 10 for 48 layers, scaled."),
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Draw heat maps of the first N known facts.")] = 3,
    choice_only: Annotated[
        bool,
        typer.Option(
            "--choice-only", help="Restore only at the subject's last token: enough to choose layers, and ten times as fast."
        ),
    ] = False,
    limit: Limit = None,
    device: Device = None,
    dtype: Dtype = None,
    seed: Seed = 0,
    force: Force = False,
    module_map: ModuleMap = None,
    trust_remote_code: TrustRemoteCode = False,
    chat: Chat = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find the layers that store what a model knows, and choose those to edit. Facts that it does not know are skipped."""
    from bluedit.cli import console

    console.load()
    from bluedit.datasets import read_known
    from bluedit.tracing.restoring import TraceSettings

    settings = TraceSettings(
        components=tuple(name.strip() for name in given_as("--sites", sites, components).split(",") if name.strip()),
        noise=noise, samples=samples, window=window, seed=seed, choice_only=choice_only,
    )  # fmt: skip
    cases = read_known(facts, limit)

    from bluedit.editors.layer_cache import remember
    from bluedit.errors import SettingsError
    from bluedit.models import load_model
    from bluedit.storage.files import writable_target
    from bluedit.tracing.choice import choose_layers
    from bluedit.tracing.trace import TRACE, trace_cases

    if out and force and out.exists():
        writable_target(out, replace=True, kind=TRACE)
    with console.bars(f"loading {model}") as bars:
        editable = load_model(
            model, device=device, dtype=dtype, module_map=module_map, trust_remote_code=trust_remote_code, chat=chat,
            progress=bars,
        )  # fmt: skip
        started = time.monotonic()
        bars("looking for known facts", 0, None)
        traced = trace_cases(editable, cases, settings, out, replace=force, progress=bars)
        seconds = round(time.monotonic() - started, 3)
        try:
            choice, problem = choose_layers(traced), ""
            remember(choice, traced.model, editable.text.chat)
        except SettingsError as error:
            choice, problem = None, str(error)
        figures: list[Path] = []
        if out:
            from bluedit.tracing.figures import save_figures

            figures = save_figures(traced, out, choice, examples)
    if as_json:
        document: dict[str, Any] = {
            "model": model,
            "facts": facts,
            "out": str(out) if out else None,
            **traced.summary(),
            "choice": choice.as_dict() if choice else None,
            "figures": [str(path) for path in figures],
            "seconds": seconds,
        }
        from bluedit.results.commands import TraceResult

        console.emit(TraceResult.of(document))
        return
    console.show(_table(traced, facts))
    console.show(_counts(traced))
    console.show(_said(choice) if choice else f"no layers chosen: {problem}")
    if out:
        console.say(f"written to {out}: trace.json, restored.safetensors, {', '.join(path.name for path in figures)}")


def _table(traced: Trace, facts: str) -> Table:
    from bluedit.cli.console import Table

    components = traced.settings.components
    averages = {component: traced.average(component) for component in components}
    table = Table(
        ["layer", *({"layer": "hidden state"}.get(component, component) for component in components)],
        title=f"{facts}: average indirect effect at the subject's last token, percentage points [95 % interval]",
        text=0,
    )
    for layer in range(traced.depth):
        table.add(str(layer), *(f"{averages[component][layer]:}" if averages[component] else "-" for component in components))
    return table


def _counts(traced: Trace) -> str:
    lines = f"{len(traced.facts)} facts known and traced, {len(traced.unknown)} unknown, {len(traced.refused)} refused"
    refused = "".join(f"\n  {name}: {reason}" for name, reason in traced.refused.items())
    return f"{lines}{refused}\ntotal effect {traced.total()}"


def _said(choice: Choice) -> str:
    first, last = choice.boundary
    return (
        f"critical layers {choice}, boundary pair {first} and {last}, one layer {choice.peak} "
        f"({choice.facts} facts; {choice.agreement:.0%} of resamples choose the same range)"
    )
