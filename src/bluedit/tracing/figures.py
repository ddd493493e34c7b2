"""Figures of a trace. The format follows from the file's suffix: .png, .svg, .pdf.

matplotlib is imported when a figure is made, and no state of it (backend, current figure) is touched.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bluedit.editors.layer_cache import Choice
from bluedit.storage.files import atomic_file
from bluedit.tracing.restoring import FactTrace
from bluedit.tracing.trace import GROUPS, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["average_figure", "fact_figure", "layers_figure", "save_figures"]

_TITLES = {"layer": "hidden state", "mlp": "MLP", "attention": "attention"}
_COLOURS = {"layer": "tab:purple", "mlp": "tab:green", "attention": "tab:red"}


def save_figures(trace: Trace, folder: Path, choice: Choice | None = None, examples: int = 3) -> list[Path]:
    """The average heat map, the effects by layer, and heat maps of the first few facts, as PNG; gives their paths."""
    average_figure(trace, folder / "average.png")
    layers_figure(trace, folder / "layers.png", choice)
    paths = [folder / "average.png", folder / "layers.png"]
    for number, fact in enumerate(trace.facts[:examples], start=1):
        fact_figure(fact, folder / f"fact-{number}.png")
        paths.append(folder / f"fact-{number}.png")
    return paths


def fact_figure(fact: FactTrace, path: Path) -> None:
    """p*(i, l) of one fact, tokens by layers, a panel per component; a star marks the subject's tokens."""
    labels = [f"{token.strip() or repr(token)}{'*' if i in fact.subject else ''}" for i, token in enumerate(fact.tokens)]
    panels = [(_TITLES[component], values) for component, values in fact.restored.items()]
    title = f"p({fact.object.split()[0]}...): {fact.clean:.2f} clean, {fact.corrupted:.2f} corrupted"
    _heat_maps(panels, labels, title, "p restored", path)


def average_figure(trace: Trace, path: Path) -> None:
    """The average indirect effect by part of the prompt and layer, a panel per component."""
    panels = [(_TITLES[component], 100 * trace.heat_map(component)) for component in trace.settings.components]
    _heat_maps(panels, GROUPS, f"average indirect effect, {len(trace.facts)} facts", "percentage points", path)


def layers_figure(trace: Trace, path: Path, choice: Choice | None = None) -> None:
    """The average indirect effect at the subject's last token by layer, with 95 % intervals; the chosen layers shaded."""
    figure = _figure(5.0, 3.2)
    axes = figure.subplots()
    layers = np.arange(trace.depth)
    for component in trace.settings.components:
        average = trace.average(component)
        if average:
            axes.plot(layers, [one.value for one in average], color=_COLOURS[component], label=_TITLES[component], marker=".")
            low, high = [one.low for one in average], [one.high for one in average]
            axes.fill_between(layers, low, high, color=_COLOURS[component], alpha=0.2, linewidth=0)
    if choice is not None:
        first, last = choice.boundary
        axes.axvspan(first - 0.4, last + 0.4, color="0.9", zorder=0, label=f"chosen: {choice}")
    axes.axhline(0, color="0.5", linewidth=0.5)
    axes.set(xlabel="layer", ylabel="percentage points", title="average indirect effect, last subject token")
    axes.set_xticks(_ticks(trace.depth))
    if trace.settings.components:
        axes.legend(frameon=False, fontsize="small")
    _save(figure, path)


def _heat_maps(panels: Sequence[tuple[str, np.ndarray]], labels: Sequence[str], title: str, unit: str, path: Path) -> None:
    count, depth = panels[0][1].shape
    figure = _figure(2.2 + len(panels) * max(2.0, 0.12 * depth), 1.3 + 0.22 * count)
    low = min(float(np.nanmin(values)) for _, values in panels)
    high = max(float(np.nanmax(values)) for _, values in panels)
    many = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    image: Any = None
    for axes, (name, values) in zip(many, panels, strict=True):
        image = axes.imshow(values, aspect="auto", cmap="Purples", vmin=low, vmax=high, interpolation="nearest")
        axes.set(title=name, xlabel="layer")
        axes.set_xticks(_ticks(depth))
    many[0].set_yticks(range(count), labels)
    figure.colorbar(image, ax=list(many), label=unit, fraction=0.05)
    figure.suptitle(title, fontsize="medium")
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=100)


def _ticks(depth: int) -> list[int]:
    """At most a dozen layers to name."""
    return list(range(0, depth, -(-depth // 12)))


def _save(figure: Figure, path: Path) -> None:
    import matplotlib as mpl

    # Tokens may hold dollar signs, which are not formulas, and scripts that the font lacks.
    with mpl.rc_context({"text.parse_math": False}), warnings.catch_warnings(), atomic_file(path) as temporary:
        warnings.simplefilter("ignore")
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png")
