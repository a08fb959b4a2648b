"""Figures of how well quadrature reads a spectrum."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_panels

_COLOURS = (NEUTRAL, "#a16207", MEASURED, PREDICTED)


def plot_rule_errors(
    errors: dict[str, np.ndarray], depths: Sequence[int], rules: Sequence[str], *, level: float
) -> Figure:
    """Draw the root-mean-square error of each rule against depth, one panel a spectrum.

    Args:
        errors: relative errors [depths, rules] by the name of the spectrum.
        depths: Lanczos steps.
        rules: names, the best last.
        level: the error that is aimed at, drawn dotted.
    """
    columns = min(len(errors), 3)
    rows = -(-len(errors) // columns)
    figure, panels = new_panels(
        rows, columns, width=2.45 * columns, height=2.1 * rows + 0.8, sharex=True, sharey=True,
        squeeze=False,
    )  # fmt: skip
    for axes, (name, table) in zip(panels.flat, errors.items(), strict=False):
        for error, rule, colour in zip(table.T, rules, _COLOURS, strict=True):
            axes.loglog(depths, np.maximum(error, 1e-4), ".-", color=colour, label=rule)
        axes.axhline(level, color="black", linewidth=0.8, linestyle=":")
        axes.set_title(name, fontsize=10)
        axes.set_xticks(depths[::2], [str(depth) for depth in depths[::2]])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    for i, axes in enumerate(panels.flat):
        axes.set_visible(i < len(errors))
        if i < len(errors) <= i + columns:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("products, one probe")
    figure.supylabel("relative error, root mean square")
    figure.suptitle(f"Error of (1/D) tr f(H) by each rule; dotted: {level:.0%}")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(rules))
    return figure
