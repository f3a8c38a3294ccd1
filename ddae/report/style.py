"""What all figures have in common: size, frame, axes, labels, and how they are written."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAINT = "0.6"
MARKERS = "os^Dv<>pPX"


def make_axes(width: float, height: float, rows: int = 1, **gridspec):
    """A figure of width x height inches that needs no screen, in which $ is a letter."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.subplots(rows, gridspec_kw=gridspec)


def save(figure: "Figure", path: Path) -> "Figure":
    """As a PNG; drawn once, where savefig would draw twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of letters that the font lacks
        FigureCanvasAgg(figure).print_png(path)
    figure.set_layout_engine("none")
    return figure


def open_frame(figure: "Figure") -> "Figure":
    """Without the frame's upper and right side."""
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>":
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def log_axis(axes: "Axes", ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()


def plain_log_axis(axes: "Axes", names: str = "x") -> None:
    """Make x, y or both (xy) logarithmic after all is drawn. Ticks say 0.05, as powers are not typeset: at 1, 2 and 5
    times the powers of ten, or at these alone where they are many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for name in names:
        axes.set(**{f"{name}scale": "log"})
        axis = getattr(axes, f"{name}axis")
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def shortened(name: str, length: int = 14) -> str:
    """One line of at most so many letters."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"


def shortened_path(name: str, length: int = 64) -> str:
    """A module's path of at most so many letters, without its middle."""
    half = length // 2
    return name if len(name) <= length else f"{name[: half - 1]}…{name[-half:]}"


def room_for(names: Sequence[str], size: float = 10) -> float:
    """Inches that the longest of the labels, in letters of so many points, needs beyond ten letters."""
    return 0.0085 * size * max(0, max(map(len, names)) - 10)
