"""How work over a mesh scales with its devices."""

from typing import Any

from matplotlib.figure import Figure

from jaxlimit.plotting._style import MEASURED, NEUTRAL, PREDICTED, new_axes


def plot_scaling(results: list[dict[str, Any]], *, cores: int) -> Figure:
    """Draw times, memory and arithmetic a device against the devices, relative to one device.

    Args:
        results: the cases of `benchmarks/mesh_scaling.py`.
        cores: that the process may use; with more virtual devices no time can fall.
    """
    figure, axes = new_axes("Scaling over a mesh", "devices", "relative to one device")
    strong = [case for case in results if case["kind"] == "strong"]
    weak = [case for case in results if case["kind"] == "weak"]
    devices = [case["num_devices"] for case in strong]
    seconds = lambda what: lambda case: case[f"{what}_seconds"]["minimum"]  # noqa: E731
    lines = (
        ("product, strong", strong, seconds("product"), MEASURED, "o-"),
        ("Lanczos step, strong", strong, seconds("step"), PREDICTED, "o-"),
        ("product, weak", weak, seconds("product"), MEASURED, "s:"),
        ("Lanczos step, weak", weak, seconds("step"), PREDICTED, "s:"),
        ("operations a device, strong", strong, lambda c: c["flops_a_device"], NEUTRAL, "^--"),
        (
            "vectors and basis a device",
            strong,
            lambda c: c["vector_and_basis_bytes_a_device"],
            "#15803d",
            "v--",
        ),
    )
    for label, cases, value, color, style in lines:
        values = [value(case) for case in cases]
        if all(values):
            axes.plot(devices, [v / values[0] for v in values], style, color=color, label=label)
    axes.plot(devices, [1 / n for n in devices], color="black", lw=0.8, label="1/devices")
    axes.axvline(cores, color=NEUTRAL, lw=0.8, alpha=0.6)
    label = f" {cores} core{'s' if cores > 1 else ''}"
    axes.annotate(label, (cores, 0.02), xycoords=("data", "axes fraction"), fontsize=8)
    axes.set(xscale="log", yscale="log", xticks=devices, xticklabels=devices)
    ticks = [2**k for k in range(-6, 7) if axes.get_ylim()[0] <= 2**k <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in ticks])
    axes.minorticks_off()
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=3)
    return figure
