"""The figure of one-shot pruning with and without fine-tuning."""

from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_axes, percent_axis


def plot_lomp(
    rows: list[dict[str, float]], dense: float, limits: dict[str, float] | None, *, title: str
) -> Figure:
    """Draw test accuracy over the ratio, as pruned and fine-tuned.

    Args:
        rows: `ratio`, `one_shot` and `fine_tuned` of each.
        dense: test accuracy of the unpruned network.
        limits: the `predicted` and `measured` limit of pruning without fine-tuning, if known.
        title: of the figure.
    """
    figure, axes = new_axes(title, "weights kept", "test accuracy")
    ratios = [row["ratio"] for row in rows]
    axes.plot(ratios, [row["fine_tuned"] for row in rows], "s--", color=NEUTRAL,
              label="fine-tuned, mask fixed")  # fmt: skip
    axes.plot(ratios, [row["one_shot"] for row in rows], "o-", color=MEASURED, label="one shot")
    axes.axhline(dense, color=NEUTRAL, linewidth=1, linestyle=":", label="dense")
    for name, color in (("predicted", PREDICTED), ("measured", MEASURED)):
        if limits is not None:
            axes.axvline(limits[name], color=color, linewidth=1, linestyle="--",
                         label=f"limit by loss, {name}")  # fmt: skip
    percent_axis(axes)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8)
    return figure
