"""The look that all figures share."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def save(figure: Figure, path: Any) -> None:
    """Write a figure as PNG and close it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
