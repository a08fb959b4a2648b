"""The published prediction, read as its authors read it, from spectra that are there already.

python experiments/as_published.py experiments/results/fc5-cifar10-paper

From our reading of a run's spectrum to theirs, one choice at a time: Lanczos depth, plain Gauss
quadrature, a smoothed density, R rounded, ρ on a grid. What their training, images, kernels alone
and random ε change is not in a spectrum and not shown here.
"""

import dataclasses
from pathlib import Path

import tyro

from jaxlimit.lab import as_published
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.results import read_result, read_spectrum


@dataclasses.dataclass(frozen=True)
class Config:
    """Read the prediction as published."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders with result.json and spectrum.npz."""
    depths: tuple[int, ...] = (96, 128)
    """Lanczos steps of their reading."""
    smoke: bool = False
    """The committed FC5 on digits, at little depth: shows that the command runs."""
    output: Path = Path("runs/as_published")
    """Where as_published.json goes."""


def read(run: Path, depth: int) -> dict[str, float]:
    """Return the prediction by each reading, from ours to theirs at one depth."""
    result = read_result(run)
    measure, curve = read_spectrum(run, result), result.sweep.loss
    if curve.radii is None:
        raise ValueError(f"{run}: the sweep must hold radii; run it again")
    radius_at = as_published.radius_of_sweep(curve.ratios, curve.radii)
    theirs = dataclasses.replace(as_published.THEIRS, depth=depth)
    return {
        label: as_published.predicted_ratio(measure, radius_at, result.epsilon, reading)
        for label, reading in as_published.one_by_one(theirs).items()
    }


def main(config: Config) -> None:
    """Read every run, write and print."""
    if config.smoke:
        digits = Path(__file__).parent / "results" / "fc5-digits"
        config = dataclasses.replace(config, runs=(digits,), depths=(8, 16))
    if not config.runs:
        raise ValueError("runs must name at least one folder, got none")
    rows = {
        run.name: {str(depth): read(run, depth) for depth in config.depths} for run in config.runs
    }
    content = {"rows": rows, "config": config, "environment": environment()}
    write_json(config.output / "as_published.json", content)
    for depth in map(str, config.depths):
        labels = list(next(iter(rows.values()))[depth])
        columns = {"reading": labels}
        columns |= {run: [f"{row[depth][n]:.3%}" for n in labels] for run, row in rows.items()}
        console.print(markdown_table(columns), highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Config))
