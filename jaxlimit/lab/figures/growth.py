"""Figures of how costs grow."""

import numpy as np
from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_panels


def plot_growth(sweeps: dict[str, dict[str, dict[str, list]]]) -> Figure:
    """Draw seconds against what is changed, one panel a sweep, with cost in proportion dotted.

    Args:
        sweeps: for each name of an axis its lines by label, each with `x` and `seconds`.
    """
    figure, panels = new_panels(1, len(sweeps), width=3.1 * len(sweeps), height=3.6)
    for axes, (name, lines) in zip(panels, sweeps.items(), strict=True):
        for colour, (label, line) in zip(
            (PREDICTED, MEASURED, NEUTRAL), lines.items(), strict=False
        ):
            axes.plot(line["x"], line["seconds"], "o-", markersize=4, color=colour, label=label)
        last = list(lines.values())[-1]
        x = np.array(last["x"])
        seconds = last["seconds"][-1] * x / x[-1]
        axes.plot(x, seconds, ":", color="black", linewidth=0.9, label="in proportion")
        axes.set(xlabel=name, xscale="log", yscale="log")
        axes.set_xticks(x, [f"{value:,}" if value < 1e5 else f"{value / 1e6:.2g}M" for value in x])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("seconds")
    return figure
