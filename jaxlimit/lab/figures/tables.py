"""The figure of the paper's tables: prediction and measurement, published and run here."""

from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_panels

_MARKERS = "osD^v"


class MeanAndDeviation(NamedTuple):
    """Mean and standard deviation; no deviation if there was one value, no mean if none."""

    mean: Any
    deviation: Any


class TableRow(NamedTuple):
    """A network with its (prediction, measurement) by where they come from, in per cent."""

    name: str
    pairs: dict[str, tuple[MeanAndDeviation | None, ...]]


def plot_tables(rows: list[TableRow]) -> Figure:
    """Draw prediction and measurement side by side, a line for each source of each row.

    Args:
        rows: drawn from top to bottom, their sources in one order. The markers of what is published
            are hollow; a pair of None is said to be not run yet.
    """
    num_lines = max(len(row.pairs) for row in rows) + 1
    figure, axes = new_panels(1, 1, width=8.5, height=1 + 0.75 * len(rows))
    for place, row in enumerate(rows):
        for line, (source, pair) in enumerate(row.pairs.items()):
            height = place * num_lines + line
            axes.text(1.01, height, source, transform=axes.get_yaxis_transform(), va="center",
                      fontsize=7, color=NEUTRAL)  # fmt: skip
            _draw_pair(axes, height, pair, _MARKERS[line], hollow=source == "published")
    middle = (num_lines - 2) / 2
    names = [row.name.replace("-", "\n", 1) for row in rows]
    axes.set_yticks([place * num_lines + middle for place in range(len(rows))], names, fontsize=8)
    axes.set_ylim(len(rows) * num_lines - 1.5, -0.5)
    axes.set(xscale="log", xlabel="weights kept", title="Theory and practice, row by row")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.xaxis.set_minor_formatter(NullFormatter())
    for color, label in ((PREDICTED, "theory"), (MEASURED, "measured")):
        axes.plot([], [], "o", color=color, label=label)
    axes.plot([], [], "o", color=NEUTRAL, markerfacecolor="none", label="published")
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.04), fontsize=8)
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_pair(axes: Any, height: float, pair: tuple, marker: str, *, hollow: bool) -> None:
    if pair[0] is None:
        axes.text(0.01, height, "not run yet", transform=axes.get_yaxis_transform(), va="center",
                  fontsize=7, color=NEUTRAL, style="italic")  # fmt: skip
        return
    axes.plot([value.mean for value in pair], [height] * 2, color=NEUTRAL, linewidth=0.8, zorder=0)
    # The second lies on the first where they agree, so the first is larger.
    for value, color, size in zip(pair, (PREDICTED, MEASURED), (7, 4), strict=True):
        face = "white" if hollow else color
        axes.errorbar(value.mean, height, xerr=value.deviation, fmt=marker, color=color,
                      markerfacecolor=face, markersize=size, capsize=2)  # fmt: skip
