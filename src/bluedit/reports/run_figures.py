"""Figures of an experiment, as SVG that takes the colours of the page around it.

Text and axes have the page's own colour (`currentColor`), so that one drawing suits light and dark. Marks have colours that
are told apart with any colour vision (Okabe and Ito), and a second sign besides: BLUE is filled and solid, a method's own
strategy is open and dashed. matplotlib is imported when a figure is made, and no state of it is touched.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bluedit.reports.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Drawing", "drawings"]

Run = Mapping[str, Any]
"""A run's entry in `table.json`."""

_INK = "#010203"
"""Stands for the page's colour until the figure is text."""
_FAINT = "#8a8f98"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#a6761d")
_MARKERS = "osD^vPXh"
_SCORES = {"ES": "efficacy (ES)", "PS": "generalisation (PS)", "NS": "specificity (NS)", "S": "harmonic mean (S)"}
_BLUE = "boundary"


@dataclass(frozen=True)
class Drawing:
    """A figure: its name, what stands below it, what it shows in words for those who cannot see it, and the SVG."""

    name: str
    caption: str
    alternative: str
    svg: str


def drawings(table: Mapping[str, Any]) -> list[Drawing]:
    """The figures of an experiment from its `table.json`; those that it has the data for."""
    runs: Sequence[Run] = table["runs"]
    if not runs:
        return []
    makers: tuple[Callable[[Mapping[str, Any], Sequence[Run]], Drawing | None], ...] = (
        _scores,
        _retention,
        _score_against_kl,
        _drift,
        _remaining,
    )
    import matplotlib as mpl

    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripts that the font lacks
        return [made for make in makers if (made := make(table, runs))]


# -- the figures -----------------------------------------------------------------------------------------------------


def _scores(table: Mapping[str, Any], runs: Sequence[Run]) -> Drawing | None:
    names = [name for name in _SCORES if any(name in run["scores"] for run in runs)]
    if not names:
        return None
    figure = _figure(11, 1.0 + 0.27 * len(runs))
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    colours = _by_method(runs)
    for axes, name in zip(panels, names, strict=True):
        unedited = table["before"]["scores"].get(name)
        if unedited:
            axes.axvspan(unedited["low"], unedited["high"], color=_FAINT, alpha=0.18, linewidth=0)
            axes.axvline(unedited["value"], color=_FAINT, linewidth=1, linestyle=":")
        for place, run in enumerate(runs):
            if score := run["scores"].get(name):
                _point(axes, score, place, colours, run)
        axes.set(xlim=(-3, 103), xlabel="percent", title=_SCORES[name])
        axes.set_xticks([0, 50, 100])
    panels[0].set_yticks(range(len(runs)), [_short(run["label"]) for run in runs])
    panels[0].set_ylim(len(runs) - 0.4, -0.6)
    best = max(runs, key=lambda run: run["scores"].get(names[-1], {"value": -1})["value"])
    return _drawing(
        "scores",
        figure,
        "Scores after the last edit, with 95 % intervals. Filled: BLUE; open: the method's own strategy. The dotted line and "
        "its band are the unedited model.",
        f"Dot plot of {', '.join(names)} for {len(runs)} runs. Highest {names[-1]}: {best['label']}, "
        f"{best['scores'].get(names[-1], {'value': 0})['value']:.1f} percent. All numbers are in the table of results.",
    )


def _score_against_kl(table: Mapping[str, Any], runs: Sequence[Run]) -> Drawing | None:
    runs = [run for run in runs if "text" in run and "S" in run["scores"]]
    if not runs:
        return None
    figure = _figure(5.6, 3.6)
    axes = figure.subplots()
    colours = _by_method(runs)
    for run in runs:
        kl, score = run["text"]["kl"], run["scores"]["S"]
        style = _style(colours, run)
        x = max(kl["value"], 1e-6)
        axes.errorbar(
            [x],
            [score["value"]],
            xerr=[[max(0, x - max(kl["low"], 1e-6))], [max(0, kl["high"] - x)]],
            yerr=[[max(0, score["value"] - score["low"])], [max(0, score["high"] - score["value"])]],
            linestyle="",
            elinewidth=0.9,
            label=_short(run["label"]),
            **style,
        )
    values = [max(run["text"]["kl"]["value"], 1e-6) for run in runs]
    scale = "log" if max(values) > 20 * min(values) else "linear"
    axes.set(xscale=scale, xlabel="KL from the unedited model on held-out text, nats per token", ylabel="S, percent")
    axes.xaxis.set_major_formatter("{x:g}")
    if scale == "log":
        axes.xaxis.set_minor_formatter("")
    _legend(figure, axes, side=True)
    return _drawing(
        "score-against-kl",
        figure,
        "Score against side effects: up and to the left is better. 95 % intervals, over cases and over documents.",
        "Scatter plot of the score S against the KL divergence on held-out text: "
        + "; ".join(f"{r['label']} S {r['scores']['S']['value']:.1f}, KL {r['text']['kl']['value']:.4f}" for r in runs),
    )


def _retention(table: Mapping[str, Any], runs: Sequence[Run]) -> Drawing | None:
    along = [run for run in runs if run.get("along")]
    shown = along or [run for run in runs if len(run["seconds"]["batches"]) > 2 and run["retention"]]
    names = [name for name in ("ES", "PS", "NS") if any(name in run["scores"] for run in shown)]
    if not shown or not names:
        return None
    figure = _figure(11, 3.5)
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    colours = _by_method(shown)
    for axes, name in zip(panels, names, strict=True):
        for run in shown:
            _curve(axes, run, name, colours, along=bool(along))
        axes.set(ylim=(-3, 103), title=_SCORES[name])
        if along:
            axes.set_xlabel("facts edited so far")
        else:
            axes.set_xticks(range(3), ["first", "middle", "latest"])
            axes.set_xlabel("batch")
    panels[0].set_ylabel("percent")
    _legend(figure, panels[0])
    what = (
        "The scores of all facts edited so far, along the sequence, with 95 % intervals."
        if along
        else "The scores of the first, the middle and the latest batch after the whole sequence, with 95 % intervals."
    )
    return _drawing(
        "retention",
        figure,
        f"Retention. {what}",
        f"Curves of {', '.join(names)} for {len(shown)} runs. {what}",
    )


def _curve(axes: Axes, run: Run, name: str, colours: Mapping[str, int], *, along: bool) -> None:
    style = _style(colours, run)
    line = "-" if run["strategy"] == _BLUE else "--"
    if along:
        points = [(one["facts"], one["scores"][name]) for one in run["along"] if name in one["scores"]]
    else:
        ends = [run["retention"].get(end, {}).get(name) for end in ("first", "middle", "latest")]
        points = [(place, score) for place, score in enumerate(ends) if score]
    if not points:
        return
    places = [place for place, _ in points]
    axes.plot(places, [score["value"] for _, score in points], line, label=_short(run["label"]), linewidth=1.3, **style)
    low, high = ([score[end] for _, score in points] for end in ("low", "high"))
    axes.fill_between(places, low, high, color=style["color"], alpha=0.10, linewidth=0)


def _drift(table: Mapping[str, Any], runs: Sequence[Run]) -> Drawing | None:
    shown = [run for run in runs if run["drift"]]
    if not shown:
        return None
    figure = _figure(5.6, 3.4)
    axes = figure.subplots()
    colours = _by_method(shown)
    width = 0.6 / len(shown)
    layers: set[int] = set()
    for place, run in enumerate(shown):
        points = sorted((_layer(weight), one["relative_norm"]) for weight, one in run["drift"].items())
        layers |= {layer for layer, _ in points}
        shifted = [layer + (place - (len(shown) - 1) / 2) * width for layer, _ in points]
        axes.plot(shifted, [value for _, value in points], linestyle="", label=_short(run["label"]), **_style(colours, run))
    axes.set(yscale="log", xlabel="layer", ylabel="||D|| / ||W||")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:.2g}" if _narrow(shown) else "")
    axes.set_xticks(sorted(layers))
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
    _legend(figure, axes, side=True)
    largest = max(shown, key=lambda run: max(one["relative_norm"] for one in run["drift"].values()))
    return _drawing(
        "drift",
        figure,
        "Weight drift: the norm of the total change of each edited weight, relative to the weight. Logarithmic.",
        f"Relative weight change by layer for {len(shown)} runs. The largest is of {largest['label']}, "
        f"{max(one['relative_norm'] for one in largest['drift'].values()):.2f} of the weight's norm.",
    )


def _narrow(runs: Sequence[Run]) -> bool:
    """Whether drifts are so alike that powers of ten alone would leave the axis without a number."""
    values = [one["relative_norm"] for run in runs for one in run["drift"].values() if one["relative_norm"] > 0]
    return bool(values) and max(values) < 8 * min(values)


def _remaining(table: Mapping[str, Any], runs: Sequence[Run]) -> Drawing | None:
    shown = [run for run in runs if run.get("remaining")]
    if not shown:
        return None
    figure = _figure(5.6, 0.9 + 0.25 * len(shown))
    axes = figure.subplots()
    colours = _by_method(shown)
    for place, run in enumerate(shown):
        for layer, value in run["remaining"].items():
            axes.plot([100 * value], [place], linestyle="", **_style(colours, run))
            where: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 7}
            axes.annotate(str(layer), (100 * value, place), **where)
    axes.set_yticks(range(len(shown)), [_short(run["label"]) for run in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    highest = max(100 * value for run in shown for value in run["remaining"].values())
    axes.set(xlim=(-3, max(60, highest * 1.12)), xlabel="percent of the asked change that is left open")
    return _drawing(
        "remaining",
        figure,
        "Asked and remaining: what fraction of the change that value optimisation asks for, at its target layer, the written "
        "weights leave open. The numbers are target layers.",
        "Fraction of the asked change left open: "
        + "; ".join(
            f"{run['label']} {', '.join(f'{100 * value:.0f} % at layer {layer}' for layer, value in run['remaining'].items())}"
            for run in shown
        ),
    )


# -- how they look ---------------------------------------------------------------------------------------------------


def _point(axes: Axes, score: Mapping[str, float], place: int, colours: Mapping[str, int], run: Run) -> None:
    error = [[max(0, score["value"] - score["low"])], [max(0, score["high"] - score["value"])]]
    axes.errorbar([score["value"]], [place], xerr=error, linestyle="", elinewidth=1.1, **_style(colours, run))


def _by_method(runs: Sequence[Run]) -> dict[str, int]:
    """A number for each method, for its colour and its mark."""
    return {method: number for number, method in enumerate(dict.fromkeys(run["method"] for run in runs))}


def _style(colours: Mapping[str, int], run: Run) -> dict[str, Any]:
    number = colours[run["method"]]
    colour = _COLOURS[number % len(_COLOURS)]
    filled = run["strategy"] == _BLUE
    return {
        "color": colour,
        "marker": _MARKERS[number % len(_MARKERS)],
        "markersize": 5.5,
        "markerfacecolor": colour if filled else "none",
        "markeredgecolor": colour,
        "markeredgewidth": 1.3,
    }


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _legend(figure: Figure, axes: Axes, *, side: bool = False) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if side else min(4, len(labels))
    place = "outside right center" if side else "outside lower center"
    figure.legend(handles, labels, loc=place, ncols=columns, frameon=False, fontsize=8)


def _layer(weight: str) -> int:
    """The layer of a weight, by its name: the first number in it."""
    found = re.search(r"\d+", weight)
    return int(found[0]) if found else 0


def _short(label: str, limit: int = 34) -> str:
    text = visible(label)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.color": _FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
"""Text stays text: the page's fonts show it, and it can be searched and read aloud."""


def _drawing(name: str, figure: Figure, caption: str, alternative: str) -> Drawing:
    return Drawing(name, caption, visible(alternative), _svg(figure, name))


def _svg(figure: Figure, salt: str) -> str:
    """A figure as an SVG element for a page: no prolog, no metadata, and the page's colour."""
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace(_INK, "currentColor")
