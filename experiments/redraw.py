"""Draw the figures of runs anew, from their results and spectra.

python experiments/redraw.py                                  # those of experiments/results/
python experiments/redraw.py --folders runs/A/seed-0
"""

import dataclasses
from pathlib import Path

import tyro

from jaxlimit import plotting
from jaxlimit.lab import report
from jaxlimit.lab.console import console
from jaxlimit.lab.results import SPECTRA, read_result, read_spectrum

RESULTS = Path(__file__).parent / "results"
TITLES = {
    "fc5-digits": "FC5, digits",
    "fc12-digits": "FC12, digits",
    "resnet18-digits": "ResNet18, digits",
    "fc5-cifar10-annealed": "FC5, CIFAR-10, annealed",
    "fc12-cifar10-annealed": "FC12, CIFAR-10, annealed",
    "fc5-cifar10-paper": "FC5, CIFAR-10, paper's setting",
    "fc12-cifar10-paper": "FC12, CIFAR-10, paper's setting",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Draw the figures of runs anew."""

    folders: tuple[Path, ...] = ()
    """Run folders with a spectrum; by default those that results/ keeps."""


def main(config: Config) -> None:
    """Draw every run that has a spectrum, and by default all networks side by side."""
    named = [RESULTS / name for name in TITLES]
    for folder in config.folders or [f for f in named if (f / SPECTRA["measure"]).exists()]:
        result = read_result(folder)
        report.draw(folder, read_spectrum(folder, result), result, kinds=("png",))
        console.print(f"drew the figures of {folder}")
    if not config.folders:
        rows = {TITLES[folder.name]: report.sides_of(read_result(folder)) for folder in named}
        figure = plotting.plot_two_sides(rows)
        for kind in ("png", "svg"):
            plotting.save(figure, RESULTS / f"two_sides.{kind}")


if __name__ == "__main__":
    main(tyro.cli(Config))
