"""The figure of ways to prune: test accuracy over what is kept."""

from itertools import cycle
from typing import Any

from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_axes, percent_axis

_STYLES = (
    (PREDICTED, "o-"), (PREDICTED, "s--"), (MEASURED, "D-"), ("#0f766e", "^-"),
    ("#7e22ce", "v-"), ("#a16207", "P-"), (NEUTRAL, "X-"),
)  # fmt: skip


def plot_ways(results: dict[str, list[list[dict[str, Any]]]], targets: list[float]) -> Figure:
    """Draw each way's test accuracy over the ratio, a line a seed.

    Args:
        results: by way, for every seed, rows with `ratio` and `accuracy`.
        targets: of each seed, the accuracy that counts as equal; their mean is drawn.
    """
    figure, axes = new_axes("Ways to prune", "weights kept", "test accuracy")
    for (way, by_seed), (color, style) in zip(results.items(), cycle(_STYLES), strict=False):
        for i, rows in enumerate(by_seed):
            rows = sorted(rows, key=lambda row: row["ratio"])
            axes.plot([row["ratio"] for row in rows], [row["accuracy"] for row in rows], style,
                      color=color, alpha=0.75, markersize=4, label=None if i else way)  # fmt: skip
    axes.axhline(sum(targets) / len(targets), color=NEUTRAL, linestyle=":", label="counts as equal")
    percent_axis(axes)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.legend(frameon=False, fontsize=8)
    return figure
