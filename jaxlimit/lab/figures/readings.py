"""The figure of readings: what each choice makes of one prediction."""

from matplotlib.figure import Figure

from jaxlimit.plotting._style import new_axes


def plot_readings(readings: dict[str, dict[str, float]]) -> Figure:
    """Draw the prediction after each choice, relative to that before any, a line a network.

    Args:
        readings: of each network, the prediction by each reading, in the order they are taken.
    """
    figure, axes = new_axes("From our reading to the published one", "", "ρ* over ours")
    labels = [_plain(label) for label in max(readings.values(), key=len)]
    for name, row in readings.items():
        first = next(iter(row.values()))
        places = [labels.index(_plain(label)) for label in row]
        axes.plot(places, [value / first for value in row.values()], "o-", label=name)
    axes.set_xticks(range(len(labels)), labels, rotation=25, ha="right", fontsize=8)
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _plain(label: str) -> str:
    """Name the step that depths name differently."""
    return "their depth" if label.endswith(" steps") else label
