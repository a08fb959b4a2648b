"""How the bound closes with the Lanczos depth, from the spectrum of a run that is there already.

python experiments/depth.py experiments/results/fc5-cifar10-paper

At the radius and ε of the run's own prediction it reads ρ_L off the first 16, 24, ... steps:
the bracket, the value extrapolated, and plain Gauss quadrature. Writes depth.json and depth.png.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from jaxlimit import limits, plotting, spectrum
from jaxlimit.reporting import console, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    """Show the bound against depth."""

    run: tyro.conf.Positional[Path]
    """Folder with result.json and spectrum.npz."""


def main(config: Config) -> None:
    """Read, evaluate, write and draw."""
    result = json.loads((config.run / "result.json").read_text())
    measure = spectrum.load(config.run / "spectrum.npz")
    radius, epsilon = result["prediction"]["radius"], result["epsilon"]
    share = partial(limits.curvature_share, ridge=limits.ridge(radius, epsilon))
    full = measure.nodes.shape[-1]
    steps = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    depths = [*(depth for depth in steps if depth < full), full]
    rows = []
    for depth in depths:
        shorter = spectrum.truncate(measure, depth)
        bound = limits.lower_bound(shorter, radius, epsilon)
        gauss = spectrum.trace_function(shorter, share).value
        rows.append({"depth": depth, "gauss": gauss, **bound._asdict()})
        console.print(
            f"depth {depth:4d}: {float(bound.value):.3%} [{float(bound.lower):.3%}, "
            f"{float(bound.upper):.3%}], plain Gauss {float(gauss):.3%}"
        )
    write_json(config.run / "depth.json", {"radius": radius, "epsilon": epsilon, "rows": rows})
    column = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    title = "{model} on {dataset}".format(**result["config"])
    figure, axes = plotting.new_axes(
        f"The bound against Lanczos depth, {title}", "Lanczos steps", "ρ_L at the prediction"
    )
    axes.fill_between(
        depths, column["lower"], column["upper"], color=plotting.PREDICTED, alpha=0.2,
        label="bracket",
    )  # fmt: skip
    axes.plot(depths, column["value"], "o-", color=plotting.PREDICTED, label="extrapolated")
    axes.plot(depths, column["gauss"], ".--", color=plotting.NEUTRAL, label="plain Gauss")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    axes.legend(frameon=False)
    plotting.save(figure, config.run / "depth.png")


if __name__ == "__main__":
    main(tyro.cli(Config))
