"""Figures that put runs or settings side by side: depth, the gap of the bounds, sensitivity."""

from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_axes, percent_axis

_SERIES = (PREDICTED, MEASURED, NEUTRAL)


def plot_depth(series: dict[str, list[dict[str, Any]]], *, title: str) -> Figure:
    """Draw the bound against the Lanczos depth.

    Args:
        series: by name, rows with `depth`, the bracket from `lower` to `upper`, the extrapolated
            `value` and plain `gauss`.
        title: of the figure.
    """
    figure, axes = new_axes(title, "Lanczos steps", "ρ_L at one R, not ρ*")
    ticks: set[int] = set()
    for (name, rows), color in zip(series.items(), cycle(_SERIES), strict=False):
        column = {key: np.array([float(row[key]) for row in rows]) for key in rows[0]}
        depths = column["depth"]
        ticks |= {int(depth) for depth in depths}
        axes.fill_between(depths, column["lower"], column["upper"], color=color, alpha=0.15,
                          label=f"{name}: bracket")  # fmt: skip
        axes.plot(depths, column["value"], "o-", color=color, label=f"{name}: extrapolated")
        axes.plot(depths, column["gauss"], ".:", color=color, label=f"{name}: plain Gauss")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(sorted(ticks), map(str, sorted(ticks)), rotation=45)
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize="small")
    return figure


def plot_gaps(rows: list[dict[str, Any]], *, title: str) -> Figure:
    """Draw the two bounds of each network, and what pruning found.

    Args:
        rows: with `name`, (`ratio`, `lower`, `upper`) of ρ_L and `upper_bound` with the same of
            ρ_U, `measured`.
        title: of the figure.
    """
    figure, axes = new_axes(title, "weights kept", "")
    figure.set_figheight(1.6 + 0.55 * len(rows))
    places = np.arange(len(rows))[::-1]
    ends = [(row["ratio"], row["upper_bound"]["ratio"]) for row in rows]
    axes.hlines(places, *np.array(ends).T, color=PREDICTED, alpha=0.3, linewidth=6, label="gap Δ")
    for select, marker, label in (
        (lambda row: row, "o", "lower bound ρ_L = ρ*"),
        (lambda row: row["upper_bound"], "s", "upper bound ρ_U"),
    ):
        _draw_intervals(axes, places, [select(row) for row in rows], marker, PREDICTED, label)
    measured = [row["measured"] for row in rows]
    axes.plot(measured, places, "D", color=MEASURED, label="measured, by training loss")
    percent_axis(axes)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks(places, [row["name"] for row in rows])
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def plot_sensitivity(knobs: dict[str, dict[str, dict[str, Any]]], *, title: str) -> Figure:
    """Draw the prediction under each setting of each knob, the others at their baseline.

    Args:
        knobs: by knob and setting, `ratio`, `lower` and `upper`, and whether it is the `baseline`.
        title: of the figure.
    """
    figure, axes = new_axes(title, "predicted ρ*, fraction of weights kept", "")
    labels, places, place = [], [], 0.0
    for knob, settings in knobs.items():
        for setting, limit in settings.items():
            color = NEUTRAL if limit["baseline"] else PREDICTED
            _draw_intervals(axes, [place], [limit], "o", color, None)
            labels.append(f"{knob}: {setting}" if setting == next(iter(settings)) else setting)
            places.append(place)
            place -= 1
        place -= 0.6
    baseline = next(x for s in knobs.values() for x in s.values() if x["baseline"])
    axes.axvline(baseline["ratio"], color=NEUTRAL, linestyle="--", label="baseline")
    axes.set_yticks(places, labels)
    axes.legend(frameon=False)
    figure.set_figheight(1.2 - 0.22 * place)
    return figure


def _draw_intervals(axes, places, limits, marker, color, label) -> None:
    """Draw points with their 95 % intervals; an interval that misses its point is cut there."""
    ratio, lower, upper = (
        np.array([float(limit[key]) for limit in limits]) for key in ("ratio", "lower", "upper")
    )
    arms = np.maximum([ratio - lower, upper - ratio], 0)
    axes.errorbar(ratio, places, xerr=arms, fmt=marker, color=color, capsize=3, label=label)
