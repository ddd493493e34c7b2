"""How figures look and are written: one column of a two-column paper, told apart without colour, the same bytes again.

Colours are Okabe and Ito's, which people of every colour vision tell apart; each comes with a marker and a line of its own, so
that a grey print will do. Sizes are in inches, text is 7 to 8 points at the width it is printed at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluedit.results import Interval
from bluedit.storage.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "COLUMN",
    "GREEN",
    "GREY",
    "ORANGE",
    "VERMILION",
    "Look",
    "curve",
    "layer_axis",
    "log_axis",
    "new_figure",
    "save",
    "styled",
]

COLUMN = 3.3
"""The width of a column."""

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "pdf.fonttype": 42,  # TrueType, embedded: publishers refuse Type 3
    "text.parse_math": False,
    "svg.hashsalt": "bluedit",
}
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": "bluedit", "Producer": None},
    "png": {"Software": None},
}


@dataclass(frozen=True)
class Look:
    """A colour with the marker and the line that go with it."""

    colour: str
    marker: str
    line: str


BLUE = Look("#0072B2", "o", "-")
ORANGE = Look("#E69F00", "s", "--")
GREEN = Look("#009E73", "^", "-.")
VERMILION = Look("#D55E00", "D", ":")
GREY = Look("#666666", "x", ":")


@contextlib.contextmanager
def styled() -> Generator[None]:
    """Inside, matplotlib draws in this style; its state outside is not touched."""
    import matplotlib as mpl

    with mpl.rc_context(_RC):
        yield


def new_figure(height: float, width: float = COLUMN) -> Figure:
    """An empty figure, laid out when it is drawn."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=100)


def curve(axes: Axes, places: Sequence[float], values: Sequence[Interval], look: Look, label: str) -> None:
    """Values with their 95 % intervals over places."""
    axes.plot(
        places,
        [one.value for one in values],
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        label=label,
        markeredgewidth=0.8,
        zorder=3,
    )
    low, high = [one.low for one in values], [one.high for one in values]
    axes.fill_between(places, low, high, color=look.colour, alpha=0.18, linewidth=0)


def layer_axis(axes: Axes, layers: Sequence[int], *, label: bool = True) -> None:
    """Layers along x, at most a dozen of them named."""
    every = -(-len(layers) // 12)
    axes.set_xticks(list(layers)[::every])
    if label:
        axes.set_xlabel("layer")


def log_axis(axes: Axes) -> None:
    """A logarithmic axis along y with plain numbers at 1, 2 and 5 of every power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set_yscale("log")
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PATH.pdf, PATH.png and PATH.svg, without dates; the paths."""
    paths = [path.with_suffix(f".{kind}") for kind in _METADATA]
    for one, (kind, metadata) in zip(paths, _METADATA.items(), strict=True):
        with atomic_file(one) as temporary:
            figure.savefig(temporary, format=kind, dpi=300, metadata=metadata)
    return paths
