"""Figures of the key factors: the limit against flatness and magnitude, and gradual pruning."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter, NullLocator

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_figure, new_panels

Row = dict[str, Any]
MARKERS = "os^Dv*XP"


def plot_factors(rows: Sequence[Row], base: dict[str, Any], *, title: str) -> Figure:
    """Draw both limits against each factor, and against flatness and weight magnitude over all.

    Args:
        rows: of each run its `factor` ("base" for that which all differ from, the first) and
            `value`, the limits `predicted` (with `interval`) and `measured`, and its
            `absolute_trace`, `norm`, `epsilon` and `support`.
        base: the value of every factor in the base run.
        title: of the figure.
    """
    figure = new_figure(13, 9.5)
    top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(1.25, 1)))
    names = [name for name in base if any(row["factor"] == name for row in rows)]
    grid = top.subplots(2, len(names), sharex="col", sharey="row", squeeze=False)
    for name, above, below in zip(names, *grid, strict=True):
        series = [row | {"value": base[name]} for row in rows if row["factor"] == "base"]
        series += [row for row in rows if row["factor"] == name]
        series.sort(key=lambda row: row["value"])
        _draw_limits(above, np.arange(len(series)), series)
        for key, label, style in (("absolute_trace", "tr|H|", "o-"), ("norm", "‖w‖", "s--"),
                                  ("epsilon", "ε", "^:")):  # fmt: skip
            relative = [row[key] / rows[0][key] for row in series]
            below.plot(relative, style, color=NEUTRAL, markersize=5, label=label)
        below.set_xticks(range(len(series)), [f"{row['value']:g}" for row in series])
        below.set(xlabel=name.replace("_", " "), yscale="log")
        above.set_xlim(-0.2, len(series) - 0.8)
        below.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        below.yaxis.set_major_formatter("{x:g}")
        below.yaxis.set_minor_formatter(NullFormatter())
        below.grid(alpha=0.25)
    grid[0, 0].set_ylabel("ρ*, fraction kept")
    grid[1, 0].set_ylabel("relative to the base run")
    grid[0, -1].legend(frameon=False)
    grid[1, -1].legend(frameon=False)
    causes = {
        "absolute_trace": "tr|H|, smaller is flatter",
        "norm": "‖w‖",
        "support": "support, share of weights that hold all but 10⁻³ of ‖w‖",
    }
    panels = bottom.subplots(1, 3, sharey=True)
    for axes, (key, label) in zip(panels, causes.items(), strict=True):
        for name, marker in zip(["base", *names], MARKERS, strict=False):
            series = [row for row in rows if row["factor"] == name]
            x = [row[key] for row in series]
            label_of = name.replace("_", " ")
            axes.plot(x, [row["predicted"] for row in series], marker, color=PREDICTED)
            axes.plot(x, [row["measured"] for row in series], marker, color=MEASURED,
                      fillstyle="none")  # fmt: skip
            axes.plot([], [], marker, color=NEUTRAL, label=label_of)
        axes.set(xlabel=label, xscale="log", yscale="log")
        axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        axes.grid(alpha=0.25, which="both")
    panels[0].set_ylabel("ρ*, predicted (full) and measured (open)")
    panels[2].legend(frameon=False)
    figure.suptitle(f"What the pruning limit follows, {title}")
    return figure


def _draw_limits(axes, x: np.ndarray, series: Sequence[Row]) -> None:
    predicted = np.array([row["predicted"] for row in series])
    ends = np.array([row["interval"] for row in series]).T
    axes.errorbar(x, predicted, np.abs(ends - predicted), fmt="o-", color=PREDICTED, capsize=3,
                  label="predicted, 95 %")  # fmt: skip
    axes.plot(x, [row["measured"] for row in series], "D--", color=MEASURED, fillstyle="none",
              label="measured")  # fmt: skip
    axes.set(yscale="log")
    axes.grid(alpha=0.25, which="both")


def plot_rounds(rounds: dict[str, Any], epsilon: float, *, title: str) -> Figure:
    """Draw loss, norm removed and curvature of pruning in rounds beside that in one shot.

    Args:
        rounds: the `dense` network's `loss`, and for `gradual` and `one_shot` a row a ratio with
            `ratio`, `radius`, the `loss` of `pruned` and `retrained`, and of the network `after`
            its `absolute_trace`.
        epsilon: ε of the dense network.
        title: of the figure.
    """
    figure, panels = new_panels(1, 3, width=13, height=4.3)
    dense, ratios = rounds["dense"]["loss"], [row["ratio"] for row in rounds["gradual"]]
    for arm, color, marker in (("gradual", PREDICTED, "o"), ("one_shot", MEASURED, "D")):
        name = {"gradual": "in rounds", "one_shot": "in one shot"}[arm]
        curves = (
            ([row["retrained"]["loss"] for row in rounds[arm]], "-", f"{name}, retrained"),
            ([row["pruned"]["loss"] for row in rounds[arm]], ":", f"{name}, just pruned"),
        )
        for values, line, label in curves:
            panels[0].plot(ratios, values, marker + line, color=color, label=label)
        panels[1].plot(ratios, [row["radius"] for row in rounds[arm]], marker + "-", color=color,
                       label=name)  # fmt: skip
        panels[2].plot(ratios, [row["after"]["absolute_trace"] for row in rounds[arm]],
                       marker + "-", color=color, label=name)  # fmt: skip
    panels[0].axhspan(dense, dense + epsilon, color=NEUTRAL, alpha=0.3, label="dense loss to + ε")
    labels = ("training loss", "R, norm of what the step removes", "tr|H| after retraining")
    for axes, label in zip(panels, labels, strict=True):
        axes.set(xlabel="ρ, fraction kept", ylabel=label, xscale="log", yscale="log")
        axes.set_xticks(ratios, [f"{ratio:.2%}" for ratio in ratios])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        axes.invert_xaxis()
        axes.grid(alpha=0.25)
    panels[1].legend(frameon=False)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower left", ncols=3)
    figure.suptitle(f"Pruning in rounds and in one shot, {title}")
    return figure
