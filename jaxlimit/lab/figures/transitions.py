"""Figures of phase transitions: when random subspaces start to hit a set."""

from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_panels


class Transition(NamedTuple):
    """The hits of random subspaces on one set in R^D, as they were and as they were predicted.

    Attributes:
        dim: D.
        first_hits: [trials], the smallest dimension k that hit, for each random rotation.
        exact: [D+1], the exact probability of a hit at k = 0 ... D, or None where it is unknown.
        predicted: k of the transition.
        band: (k_low, k_high), refined.
        plain_band: (k_low, k_high) by Theorem I.
        published: k by the published formula where that differs, or None.
    """

    dim: int
    first_hits: np.ndarray
    exact: np.ndarray | None
    predicted: float
    band: tuple[float, float]
    plain_band: tuple[float, float]
    published: float | None = None

    def probability(self) -> np.ndarray:
        """Return the share of rotations that hit at k = 0 ... D."""
        return (self.first_hits[:, None] <= np.arange(self.dim + 1)).mean(0)

    def width(self) -> float:
        """Return the k/D between 10 % and 90 % of hits."""
        low, high = np.quantile(self.first_hits, (0.1, 0.9))
        return float(high - low) / self.dim


def plot_phase_transitions(transitions: dict[str, list[Transition]], confidence: float) -> Figure:
    """Draw probability of a hit over k/D at growing D, and the width of the transition over D.

    Args:
        transitions: by the name of the set, in growing D.
        confidence: of the bands.
    """
    figure, panels = new_panels(2, len(transitions), width=13, height=6.4, sharey="row")
    for (name, series), above, below in zip(transitions.items(), *panels, strict=True):
        _draw_probabilities(above, series, confidence)
        _draw_widths(below, series)
        above.set_title(name)
    panels[0, 0].set_ylabel("probability of a hit")
    panels[1, 0].set_ylabel("width of the transition, in k/D")
    figure.suptitle(r"When random k-dimensional subspaces of $\mathbb{R}^D$ start to hit a set")
    for row in panels:
        handles = {
            label: handle
            for axes in row
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        row[-1].legend(
            handles.values(), handles.keys(), frameon=False, loc="center left",
            bbox_to_anchor=(1.02, 0.5),
        )  # fmt: skip
    return figure


def _draw_probabilities(axes: Axes, series: list[Transition], confidence: float) -> None:
    shades = colormaps["Blues"](np.linspace(0.4, 1, len(series)))
    for transition, shade in zip(series, shades, strict=True):
        share = np.arange(transition.dim + 1) / transition.dim
        probability = transition.probability()
        open_odds = (probability > 0) & (probability < 1)
        axes.plot(
            share[open_odds],
            probability[open_odds],
            "o",
            markersize=3.5,
            color=shade,
            label=f"measured, D = {transition.dim}",
        )
        if transition.exact is not None:
            axes.plot(share, transition.exact, color=shade, linewidth=1)
    axes.plot([], [], color=MEASURED, linewidth=1, label="exact kinematic formula")
    largest = series[-1]
    at_largest = f"D = {largest.dim}"
    middle = largest.predicted / largest.dim
    low, high = np.array(largest.band) / largest.dim
    axes.axvline(middle, color=PREDICTED, linestyle="--", label=f"predicted, {at_largest}")
    axes.axvspan(
        low,
        high,
        color=PREDICTED,
        alpha=0.12,
        linewidth=0,
        zorder=0,
        label=f"refined band, {confidence:.0%}\non either side, {at_largest}",
    )
    if largest.published is not None:
        axes.axvline(
            largest.published / largest.dim, color="black", linestyle=":", label="as published"
        )
    axes.set(xlabel="k/D", xlim=(0, 1))
    axes.grid(alpha=0.25)


def _draw_widths(axes: Axes, series: list[Transition]) -> None:
    dims = np.array([transition.dim for transition in series])
    bands = np.array([[np.diff(t.plain_band)[0], np.diff(t.band)[0]] for t in series])
    axes.plot(
        dims, bands[:, 0] / dims, color=NEUTRAL, marker=".", label="band by Theorem I,\nat most 1"
    )
    axes.plot(dims, bands[:, 1] / dims, color=PREDICTED, marker=".", label="refined band")
    widths = np.array([transition.width() for transition in series])
    axes.plot(dims, widths, "o-", color=MEASURED, label="measured, 10 % to 90 %")
    axes.plot(
        dims, widths[-1] * (dims[-1] / dims) ** 0.5, color=MEASURED, linestyle=":", label="∝ 1/√D"
    )
    axes.set(xlabel="D", xscale="log", yscale="log")
    axes.set_xticks(dims, dims.astype(str))
    axes.set_yticks(ticks := [0.05, 0.1, 0.2, 0.5, 1], map(str, ticks))
    axes.minorticks_off()
    axes.grid(alpha=0.25)
