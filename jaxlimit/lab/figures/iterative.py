"""The figure of pruning in rounds beside its forecast."""

from typing import Any

from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_panels, percent_axis


def plot_iterative(result: dict[str, Any]) -> Figure:
    """Draw the loss over the rounds, and how few weights could be kept from each round on.

    Args:
        result: `dim`, `epsilon`, `limit`, the `rounds` with `num_kept` and `loss`, in some of them
            `found`, `certified` and `predicted`; the `forecast` by order with `num_kept`; `end`;
            the `one_shot` and the `refits`, each with how many are kept.
    """
    figure, (left, right) = new_panels(1, 2, width=12, height=4.6)
    dim, rows = result["dim"], result["rounds"]
    left.plot([r["num_kept"] / dim for r in rows], [r["loss"] for r in rows], "o-", color=MEASURED,
              label="rounds with training")  # fmt: skip
    low = result["limit"] - result["epsilon"]
    left.axhspan(low, result["limit"], color=NEUTRAL, alpha=0.3, label="L(w*) to L(w*) + ε")
    styles = {"magnitude": "-", "saliency": "--", "rounds": ":"}
    for name, style in styles.items():
        count = result["forecast"][name]["num_kept"]
        if count:
            left.axvline(count / dim, color=PREDICTED, linestyle=style, linewidth=1.2,
                         label=f"forecast at w*, {name}")  # fmt: skip
    left.axvline(result["refits"]["num_kept"] / dim, color=MEASURED, linestyle="--",
                 label="rounds with refits of the loss")  # fmt: skip
    left.axvline(result["one_shot"]["found"] / dim, color=NEUTRAL, linestyle="--",
                 label="one shot, best mask found")  # fmt: skip
    left.set(yscale="log", xlabel="weights kept", ylabel="training loss")
    some = [row for row in rows if "found" in row]
    places = [row["num_kept"] / dim for row in some]
    for name, color, marker in (("predicted", PREDICTED, "s"), ("found", MEASURED, "o"),
                                ("certified", NEUTRAL, "^")):  # fmt: skip
        label = {"predicted": "ρ*", "found": "mask found", "certified": "no mask, certified"}[name]
        right.plot(places, [row[name] / dim for row in some], marker + "-", color=color,
                   label=label)  # fmt: skip
    if places:
        right.plot(places, places, color=NEUTRAL, linewidth=0.8, linestyle=":", label="all kept")
        percent_axis(right)
        percent_axis(right, "y")
    right.set(xlabel="weights kept by the rounds so far", ylabel="weights to keep from there on")
    percent_axis(left)
    for axes in (left, right):
        axes.invert_xaxis()
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    return figure
