"""The figure of every analysis, from its result alone. matplotlib is imported when a figure is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluedit.analysis.hidden_states import BEFORE
from bluedit.analysis.style import (
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    curve,
    layer_axis,
    log_axis,
    new_figure,
    save,
    styled,
)
from bluedit.results import Interval, Record
from bluedit.results.analysis import (
    Bound,
    BoundsResult,
    ContributionResult,
    CosineResult,
    GapResult,
    HiddenStatesResult,
    PairsResult,
    SingleLayerResult,
    StepsResult,
    TablesResult,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "save_figure"]

_SCORES = ("ES", "PS", "NS")
_ANNOTATED = 8
"""Layers of a heat map up to which its cells hold numbers."""


def save_figure(result: Record, folder: Path, name: str) -> list[Path]:
    """Draw a result and write it to the folder as PDF, PNG and SVG; their paths."""
    with styled():
        return save(draw(result), folder / name)


@singledispatch
def draw(result: Record) -> Figure:
    """The figure of a result; inside :func:`~bluedit.analysis.style.styled`."""
    raise TypeError(f"no figure is known for {type(result).__name__}")


@draw.register(StepsResult)
def _(result: StepsResult) -> Figure:
    figure = new_figure(1.9)
    axes = figure.subplots()
    layers = [one.layer for one in result.by_layer]
    values = [one.steps for one in result.by_layer]
    axes.bar(layers, [one.value for one in values], color=BLUE.colour, width=0.62)
    axes.errorbar(layers, *_errors(values), fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    for layer, one in zip(layers, values, strict=True):
        axes.annotate(
            f"{one.value:.2f}", (layer, one.high), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=6.5
        )
    axes.axhline(result.most, color=GREY.colour, linewidth=0.8, linestyle=GREY.line)
    axes.annotate(
        f"at most {result.most}", (1, result.most), xycoords=("axes fraction", "data"), xytext=(0, -2),
        textcoords="offset points", ha="right", va="top", fontsize=6.5, color=GREY.colour,
    )  # fmt: skip
    axes.set_ylim(0, result.most * 1.15)
    axes.set_ylabel("optimisation steps")
    layer_axis(axes, layers)
    return figure


@draw.register(ContributionResult)
def _(result: ContributionResult) -> Figure:
    figure = new_figure(2.0)
    axes = figure.subplots()
    layers = [one.layer for one in result.by_layer]
    curve(axes, layers, [one.computed for one in result.by_layer], BLUE, "computed at the layer")
    curve(axes, layers, [one.distributed for one in result.by_layer], ORANGE, "distributed from the last")
    axes.axhline(0, color="0.6", linewidth=0.6)
    axes.set_ylabel("contribution score\n(percentage points)")
    layer_axis(axes, layers)
    _legend_above(figure, axes)
    return figure


@draw.register(CosineResult)
def _(result: CosineResult) -> Figure:
    figure = new_figure(1.9)
    axes = figure.subplots()
    layers = [one.layer for one in result.by_layer]
    known = [(one.layer, one.cosine) for one in result.by_layer if one.cosine is not None]
    points = [(one.layer, [value for value in one.by_fact if value is not None]) for one in result.by_layer]
    for number, (layer, values) in enumerate(points):
        axes.plot(
            _spread(layer, len(values)), values, ".", color=GREY.colour, markersize=3, alpha=0.45, zorder=1,
            markeredgewidth=0, label=None if number else "single facts",
        )  # fmt: skip
    curve(axes, [layer for layer, _ in known], [cosine for _, cosine in known], BLUE, "mean over facts")
    axes.axhline(0, color="0.6", linewidth=0.6)
    axes.set_ylim(min([0.0, *(value for _, values in points for value in values)]) - 0.05, 1.05)
    axes.set_ylabel("cosine of computed and\ndistributed residual")
    layer_axis(axes, layers)
    _legend_above(figure, axes)
    return figure


@draw.register(GapResult)
def _(result: GapResult) -> Figure:
    figure = new_figure(2.0)
    axes = figure.subplots()
    layers = [one.layer for one in result.by_layer]
    curve(axes, layers, [one.gap for one in result.by_layer], BLUE, "‖δˡ* \N{MINUS SIGN} δᴸ‖, gap")
    curve(axes, layers, [one.computed for one in result.by_layer], GREEN, "‖δˡ*‖, computed residual")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("norm, mean over facts\n(hidden-state units)")
    layer_axis(axes, layers)
    _legend_above(figure, axes)
    return figure


@draw.register(SingleLayerResult)
def _(result: SingleLayerResult) -> Figure:
    names = [name for name in _SCORES if all(name in one.computed and name in one.distributed for one in result.by_layer)]
    figure = new_figure(0.6 + 0.95 * len(names))
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    layers = [one.layer for one in result.by_layer]
    for axes, name in zip(panels, names, strict=True):
        curve(axes, layers, [one.computed[name] for one in result.by_layer], BLUE, "computed")
        curve(axes, layers, [one.distributed[name] for one in result.by_layer], ORANGE, "distributed")
        if name in result.before:
            axes.axhline(result.before[name].value, color=GREY.colour, linewidth=0.8, linestyle=GREY.line, label="unedited")
        axes.set_ylim(-4, 104)
        axes.set_yticks([0, 50, 100])
        axes.set_ylabel(f"{name} (%)")
        layer_axis(axes, layers, label=axes is panels[-1])
    _legend_above(figure, panels[0])
    return figure


@draw.register(BoundsResult)
def _(result: BoundsResult) -> Figure:
    sweeps: list[tuple[str, Sequence[Bound], Callable[[Bound], float]]] = [
        ("critical layers to the last", result.by_layer, lambda one: one.distance),
        ("facts in one batch", result.by_batch, lambda one: one.facts),
        ("batches so far", result.by_sequence, lambda one: one.batches),
    ]
    figure = new_figure(4.3)
    panels = figure.subplots(3, 1)
    for axes, (label, bounds, place) in zip(panels, sweeps, strict=True):
        # On a logarithmic axis there is no place for the last layer, where error and bound are 0.
        shown = [one for one in bounds if one.bound > 0]
        places = [place(one) for one in shown]
        for name, look, said in (("bound", ORANGE, "bound"), ("error", BLUE, "measured error")):
            axes.plot(
                places, [getattr(one, name) for one in shown], color=look.colour, marker=look.marker, linestyle=look.line,
                label=said,
            )  # fmt: skip
        broken = [one for one in shown if not one.holds]
        axes.plot(
            [place(one) for one in broken], [one.error for one in broken], linestyle="none", marker="x", markersize=8,
            color=VERMILION.colour, label="violated" if broken else None,
        )  # fmt: skip
        if bounds is result.by_batch:
            axes.set_xscale("log")
        log_axis(axes)
        axes.set_xlabel(label)
        axes.set_xticks(sorted(set(places)), [f"{one:g}" for one in sorted(set(places))])
    panels[1].set_ylabel("spectral norm of the weight shift")
    _legend_above(figure, panels[0])
    return figure


@draw.register(HiddenStatesResult)
def _(result: HiddenStatesResult) -> Figure:
    figure = new_figure(1.95)
    panels = figure.subplots(1, len(result.by_strategy), sharex=True, sharey=True, squeeze=False)[0]
    size = max(1.0, min(9.0, 1200 / result.prompts))
    for axes, one in zip(panels, result.by_strategy, strict=True):
        look = BLUE if one.strategy == "boundary" else ORANGE
        name = "BLUE" if one.strategy == "boundary" else one.strategy
        # Open markers over dots: neither hides the other.
        for points, style, said in ((BEFORE, GREY, "before"), (one.strategy, look, f"after, {name}")):
            x, y = zip(*result.points[points], strict=True)
            if points == BEFORE:
                axes.scatter(x, y, s=0.8 * size, marker="o", color=style.colour, label=said, alpha=0.7, linewidths=0)
            else:
                axes.scatter(
                    x,
                    y,
                    s=2 * size,
                    marker=style.marker,
                    facecolors="none",
                    edgecolors=style.colour,
                    label=said,
                    linewidths=0.6,
                )
        axes.set_title(f"{name}: shift {one.shift.value:.2f}\n[{one.shift.low:.2f}, {one.shift.high:.2f}]", fontsize=7.5)
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1")
    panels[0].set_ylabel("t-SNE 2")
    handles = [panels[0].get_legend_handles_labels(), panels[-1].get_legend_handles_labels()]
    figure.legend(
        [*handles[0][0], handles[1][0][1]], [*handles[0][1], handles[1][1][1]], loc="outside upper center", ncols=3,
        columnspacing=1.0, handletextpad=0.2, markerscale=1.6,
    )  # fmt: skip
    return figure


@draw.register(PairsResult)
def _(result: PairsResult) -> Figure:
    names = [name for name in (*_SCORES, "S") if all(name in pair.scores for pair in result.pairs)]
    panels: list[tuple[str, dict[tuple[int, int], float], str]] = [
        (f"{name} (%)", {(pair.first, pair.last): pair.scores[name].value for pair in result.pairs}, "viridis")
        for name in names
    ]
    if result.pairs and result.pairs[0].text is not None:
        values = {(pair.first, pair.last): pair.text.kl.value for pair in result.pairs if pair.text is not None}
        panels.append(("KL (nats per token)", values, "viridis_r"))
    rows = -(-len(panels) // 2)
    figure = new_figure(0.2 + 1.5 * rows)
    many = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes, (title, values, colours) in zip(many, panels, strict=False):
        _heat_map(figure, axes, result.layers, values, title, colours)
        if title.startswith("S "):
            best = result.layers.index(result.best[1]), result.layers.index(result.best[0])
            axes.plot(*best, marker="s", markersize=9, markerfacecolor="none", markeredgecolor=VERMILION.colour)
    for axes in many[len(panels) :]:
        axes.set_axis_off()
    return figure


@draw.register(TablesResult)
def _(result: TablesResult) -> Figure:
    looks = {"ES": BLUE, "PS": ORANGE, "NS": GREEN}
    rows = [row for table in result.tables if table.number != 3 for row in table.rows]
    figure = new_figure(0.75 + 0.26 * max(1, len(rows)), COLUMN)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        for shift, name in enumerate(_SCORES):
            if name not in row.gain:
                continue
            gain, look = row.gain[name], looks[name]
            axes.errorbar(
                [gain.value], [place + 0.22 * (shift - 1)], xerr=[[gain.value - gain.low], [gain.high - gain.value]],
                fmt=look.marker, color=look.colour, markersize=3, elinewidth=0.8, capsize=1.5,
                label=name if not place else None,
            )  # fmt: skip
    axes.axvline(0, color="0.4", linewidth=0.7)
    axes.set_yticks(range(len(rows)), [_row_name(row, rows) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("BLUE minus own strategy (points)")
    _legend_above(figure, axes)
    return figure


# -- parts -----------------------------------------------------------------------------------------------------------


def _row_name(row: Any, rows: Sequence[Any]) -> str:
    """A method, with what tells it from the others: model, data set, note."""
    dataset = row.dataset.partition(":")[0] if not row.dataset.startswith("world:") else row.dataset.split(":")[1]
    parts = [row.method, *([row.note] if row.note else [])]
    if len({one.model for one in rows}) > 1:
        parts.append(row.model)
    if len({one.dataset for one in rows}) > 1:
        parts.append(dataset)
    if len({one.batch_size < one.edits for one in rows}) > 1:
        parts.append("sequence" if row.batch_size < row.edits else "batch")
    return ", ".join(parts)


def _errors(values: Sequence[Interval]) -> tuple[list[float], list[list[float]]]:
    """Places and bars of intervals for `errorbar`."""
    return [one.value for one in values], [[one.value - one.low for one in values], [one.high - one.value for one in values]]


def _spread(place: float, count: int) -> list[float]:
    """Places beside a layer for the points of single facts, evenly and in their order."""
    return [place + 0.3 * ((index + 0.5) / count - 0.5) for index in range(count)]


def _legend_above(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), columnspacing=1.2, handletextpad=0.5)


def _heat_map(
    figure: Figure, axes: Axes, layers: Sequence[int], values: dict[tuple[int, int], float], title: str, colours: str
) -> None:
    """Values of pairs, the first layer along y and the last along x; below the diagonal there is none."""
    import numpy as np

    cells = np.array([[values.get((first, last), np.nan) for last in layers] for first in layers])
    image = axes.imshow(cells, cmap=colours, origin="lower", interpolation="nearest")
    every = -(-len(layers) // 8)
    places = list(range(0, len(layers), every))
    axes.set_xticks(places, [str(layers[place]) for place in places])
    axes.set_yticks(places, [str(layers[place]) for place in places])
    axes.set(title=title, xlabel="last layer", ylabel="first layer")
    if len(layers) <= _ANNOTATED:
        low, high = float(np.nanmin(cells)), float(np.nanmax(cells))
        for (row, column), value in np.ndenumerate(cells):
            if not np.isnan(value):
                dark = (value - low) / ((high - low) or 1) < 0.5
                dark = dark if colours == "viridis" else not dark
                text = f"{value:.0f}" if high >= 10 else f"{value:.2g}"
                axes.text(column, row, text, ha="center", va="center", fontsize=5.5, color="white" if dark else "black")
    else:
        figure.colorbar(image, ax=axes, fraction=0.05)
