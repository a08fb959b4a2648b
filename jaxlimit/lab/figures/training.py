"""Figure of trainings, epoch by epoch."""

from collections.abc import Mapping
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from jaxlimit.plotting._style import new_panels


def plot_training(runs: Mapping[str, Any], *, title: str = "") -> Figure:
    """Draw loss and accuracy against the epoch, on the images that were trained on.

    The loss with its penalty is dotted: how far it lies above is what the weights cost.

    Args:
        runs: for each name lists `epoch`, `loss`, `data_loss` and `accuracy`, as `lab.results`
            keeps them.
        title: of the figure.
    """
    figure, (losses, accuracies) = new_panels(1, 2, width=9, height=3.8)
    for place, (name, run) in enumerate(runs.items()):
        colour = colormaps["viridis"](0.85 * place / max(len(runs) - 1, 1))
        losses.plot(run.epoch, run.data_loss, color=colour, label=name)
        losses.plot(run.epoch, run.loss, ":", color=colour, linewidth=1)
        accuracies.plot(run.epoch, run.accuracy, color=colour)
    losses.set(yscale="log", ylabel="training loss (dotted: with its penalty)", xlabel="epoch")
    accuracies.set(ylim=(0, 1), ylabel="training accuracy", xlabel="epoch")
    for axes in (losses, accuracies):
        axes.set_xscale("log")  # runs of six epochs stand beside runs of two hundred
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    losses.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure
