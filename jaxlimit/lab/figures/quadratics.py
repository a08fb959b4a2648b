"""Figures of quadratic losses: what the theory predicts beside what linear algebra finds."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_panels


class QuadraticComparison(NamedTuple):
    """Limits of one spectrum in one dimension, over a grid of ε, all as ratios k/D.

    Attributes:
        dim: D.
        tolerances: [t], ε as a share of the loss at w = 0 that a random basis gives.
        refitted: [trials, t], exact, the kept weights set anew.
        one_shot: [trials, t], exact, the kept weights as they are.
        published: [t], the fixed point of ρ_L.
        corrected: [t], the random-subspace threshold.
    """

    dim: int
    tolerances: np.ndarray
    refitted: np.ndarray
    one_shot: np.ndarray
    published: np.ndarray
    corrected: np.ndarray

    def error(self, name: str) -> np.ndarray:
        """Return by how much a prediction exceeds the mean of `refitted`."""
        return getattr(self, name) - self.refitted.mean(0)

    def width(self) -> np.ndarray:
        """Return the distance from 10 % to 90 % of the trials of `refitted`."""
        low, high = np.quantile(self.refitted, (0.1, 0.9), axis=0)
        return high - low


def plot_quadratic_limits(comparisons: dict[str, list[QuadraticComparison]]) -> Figure:
    """Draw the limits against ε in the largest D, and the errors of the theory over D.

    Args:
        comparisons: by the name of the spectrum, in growing D.
    """
    figure, panels = new_panels(
        2, len(comparisons), width=13, height=6.4, sharey="row", squeeze=False
    )
    for (name, series), above, below in zip(comparisons.items(), *panels, strict=True):
        above.set_title(name)
        _draw_limits(above, series[-1])
        _draw_errors(below, series)
    largest = next(iter(comparisons.values()))[-1].dim
    panels[0, 0].set_ylabel(f"ρ, weights kept, D = {largest}")
    panels[1, 0].set_ylabel("largest error over ε, in ρ")
    for row in panels:
        row[-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.suptitle("Pruning by magnitude on quadratic losses, whose sublevel set is an ellipsoid")
    return figure


def _draw_limits(axes: Axes, at: QuadraticComparison) -> None:
    axes.plot(at.tolerances, at.published, ":", color="black", label="ρ_L as published")
    axes.plot(at.tolerances, at.corrected, color=PREDICTED, label="corrected threshold")
    for name, marker, color, label in (
        ("refitted", "o", MEASURED, "exact, kept weights refitted"),
        ("one_shot", "x", NEUTRAL, "exact, kept weights as they are"),
    ):
        trials = getattr(at, name)
        middle = trials.mean(0)
        ends = np.abs(np.quantile(trials, (0.1, 0.9), axis=0) - middle)
        axes.errorbar(
            at.tolerances, middle, ends, fmt=marker, color=color, markersize=4, linewidth=1,
            label=label,
        )  # fmt: skip
    axes.set(xlabel="ε / (½‖w‖² tr H / D)", xscale="log", ylim=(0, None))
    axes.grid(alpha=0.25)


def _draw_errors(axes: Axes, series: list[QuadraticComparison]) -> None:
    dims = np.array([at.dim for at in series])
    rows = (
        ("ρ_L as published", "black", ".:", lambda at: np.abs(at.error("published")).max()),
        ("corrected threshold", PREDICTED, ".-", lambda at: np.abs(at.error("corrected")).max()),
        ("spread of the truth,\n10 % to 90 %", MEASURED, "o-", lambda at: at.width().max()),
    )
    if not any(at.error("corrected").any() for at in series):
        axes.text(0.5, 0.5, "corrected threshold:\nno error", ha="center", transform=axes.transAxes)
    for label, color, style, value in rows:
        axes.plot(dims, [value(at) for at in series], style, color=color, label=label)
    axes.set(xlabel="D", xscale="log", yscale="log")
    axes.set_xticks(dims, dims.astype(str))
    axes.minorticks_off()
    axes.grid(alpha=0.25)
