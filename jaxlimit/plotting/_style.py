"""The look that all figures share."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PREDICTED, MEASURED, NEUTRAL = "#c2410c", "#1d4ed8", "#57534e"


def new_axes(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    """Make one pair of axes with the house look."""
    figure, axes = plt.subplots(figsize=(7, 4.3), layout="constrained")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def percent_axis(axes: Axes) -> None:
    """Show ratios along x in per cent, on a logarithmic axis with few labels."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda ratio, _: f"{100 * ratio:g} %")
    axes.xaxis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Any) -> None:
    """Write a figure as PNG and close it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
