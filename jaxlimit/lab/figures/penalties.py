"""The figure of penalties: what can be pruned against the accuracy that is left."""

from typing import Any

from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_panels, percent_axis

_COLORS = (NEUTRAL, MEASURED, "#0f766e", PREDICTED, "#7e22ce", "#a16207")
_MARKERS = "osD^vP"


def plot_penalties(rows: list[dict[str, Any]], chosen: dict[str, float]) -> Figure:
    """Draw mask and certificate of every training against its pruned network's test accuracy.

    Args:
        rows: `way`, `strength`, `seed`, `dim`, `found`, `certified` and `pruned_accuracy` of each.
        chosen: the strength of each way at which all seeds were run; drawn filled.

    Networks more than 10 points below the best are left out.
    """
    least = max(row["pruned_accuracy"] for row in rows) - 0.1
    rows = [row for row in rows if row["pruned_accuracy"] >= least]
    figure, panels = new_panels(1, 2, width=12, height=4.6, sharey=True)
    titles = {"found": "smallest mask found", "certified": "no smaller mask, certified"}
    for axes, (name, label) in zip(panels, titles.items(), strict=True):
        for (way, strength), color, marker in zip(chosen.items(), _COLORS, _MARKERS, strict=False):
            for row in (row for row in rows if row["way"] == way and row[name]):
                filled = color if row["strength"] == strength else "none"
                axes.plot(row["pruned_accuracy"], row[name] / row["dim"], marker, color=color,
                          markerfacecolor=filled, linestyle="none")  # fmt: skip
            axes.plot([], [], marker, color=color, linestyle="none", label=f"{way}, {strength:g}")
        axes.set(xlabel="test accuracy of the pruned network", ylabel="weights kept", title=label)
        percent_axis(axes, "y")
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        axes.grid(alpha=0.25, which="both")
    panels[0].legend(frameon=False, fontsize=8)
    return figure
