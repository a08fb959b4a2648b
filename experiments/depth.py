"""How the bound closes with the Lanczos depth, from the spectra of existing runs.

python experiments/depth.py experiments/results/fc5-cifar10-paper
python experiments/depth.py runs/fc5-cifar10-paper/seed-0 runs/fc5-cifar10-2000/seed-0

At the radius and ε of the first run's prediction it computes ρ_L from the first 16, 24, ... steps
of every run: the bracket, the extrapolated value, and plain Gauss quadrature. Runs of one network
on different numbers of images show the effect of the sample, compared with that of the depth.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from jaxlimit import limits, spectrum
from jaxlimit.lab import figures
from jaxlimit.lab.outcome import finish
from jaxlimit.lab.results import read_result, read_spectrum

STEPS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


@dataclasses.dataclass(frozen=True)
class Config:
    """Show the bound against depth."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders with result.json and spectrum.npz."""
    output: Path | None = None
    """Where depth.json and depth.png go; by default the first of `runs`."""


def evaluate(measure: spectrum.SpectralMeasure, radius: float, epsilon: float) -> list[dict]:
    """Compute the bound from the first steps, for more and more of them."""
    share = partial(limits.curvature_share, ridge=limits.ridge(radius, epsilon))
    full = measure.nodes.shape[-1]
    rows = []
    for depth in [*(depth for depth in STEPS if depth < full), full]:
        shorter = spectrum.truncate(measure, depth)
        bound = limits.lower_bound(shorter, radius, epsilon)
        gauss = spectrum.trace_function(shorter, share).value
        rows.append({"depth": depth, "gauss": gauss, **bound._asdict()})
    return rows


def conclude(name: str, rows: list[dict[str, Any]]) -> str:
    """Say where the bound stands at the greatest depth, and from where on it stood there."""
    last = rows[-1]
    value = float(last["value"])
    drift = [abs(float(row["value"]) / value - 1) for row in rows]
    settled = next(i for i in range(len(rows)) if max(drift[i:]) <= 0.1)
    deep = [row for row in rows if row["depth"] >= 64] or rows[-1:]
    gauss = [float(row["gauss"]) / value for row in deep]
    return (
        f"{name}: {value:.3%} [{float(last['lower']):.3%}, {float(last['upper']):.3%}] at depth "
        f"{last['depth']}; the extrapolated value stays within a tenth of it from depth "
        f"{rows[settled]['depth']} on, plain Gauss from depth {deep[0]['depth']} on lies "
        f"between {min(gauss):.2f} and {max(gauss):.2f} times it."
    )


def main(config: Config) -> None:
    """Read, evaluate, write and draw."""
    results = [read_result(run) for run in config.runs]
    radius, epsilon = results[0].prediction.radius, results[0].epsilon
    names = [f"{result.hessian_images:,} images" for result in results]
    if len(set(names)) < len(names):
        raise ValueError(f"runs must differ in the images of their Hessians, got {names}")
    series = {
        name: evaluate(read_spectrum(run, result), radius, epsilon)
        for name, run, result in zip(names, config.runs, results, strict=True)
    }
    sentences = [conclude(name, rows) for name, rows in series.items()]
    output = config.output or config.runs[0]
    first = results[0].config
    title = f"The bound against Lanczos depth, {first.model} on {first.dataset}"
    finish(
        output / "depth.json",
        config,
        sentences,
        figures={"depth.png": figures.plot_depth(series, title=title)},
        radius=radius,
        epsilon=epsilon,
        series=series,
        runs=dict(zip(names, config.runs, strict=True)),
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
