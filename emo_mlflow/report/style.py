"""How every figure looks: one set of sizes, fonts and colours, readable in greyscale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from emo_mlflow.common.names import printable

DIVERGING = "PuOr_r"  # its two ends differ in lightness as printed, its middle is white
INK, MUTED, BASELINE, PATCHED, RANDOM, GRID = "#222222", "#777777", "#5b6c7d", "#b35806", "#9aa5b1", "#e3e3e3"
FOR_PAPERS = {".svg": "Date", ".pdf": "CreationDate"}  # with the entry that would say when it was made
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "figure.labelsize": 9,
    "figure.dpi": 110,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # fonts as journals take them
    "svg.hashsalt": "emo_mlflow",
    "figure.constrained_layout.use": True,
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches, with a canvas of its own: no global state, safe in threads."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG for the screen, and beside it SVG and PDF for a paper. A name with dollar signs in it is no formula.

    Equal figures are equal bytes: no file says when it was made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(STYLE):
        _take_literally(figure)
        figure.savefig(path)
        figure.set_layout_engine("none")  # it is laid out, which takes a while
        for suffix, undated in FOR_PAPERS.items():
            figure.savefig(path.with_suffix(suffix), metadata={undated: None})


def _take_literally(figure: Figure) -> None:
    """Shows every text as it is, but for the powers of ten that matplotlib itself writes beside a logarithmic axis."""
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    powers = {id(text) for axis in axes if axis.get_scale() == "log" for text in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and id(text) not in powers:
            text.set_text(printable(text.get_text()))
            text.set_parse_math(False)
