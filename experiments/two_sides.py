"""Lay out both sides of the limit of every network, in one table and one figure.

python experiments/two_sides.py                                     # from the committed results
python experiments/two_sides.py --run fc5-digits --seeds 0 1 2      # train, search, keep, lay out

A run is one of pruning_limit.py, in runs/two_sides/NAME/seed-N, and continues from there when
started again; its result is kept, thinned. The rows of CIFAR-10 are those of tables.py.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from jaxlimit import plotting
from jaxlimit.lab import report, runs, sides_table
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.settings import RunConfig, Training

RESULTS = Path(__file__).parent / "results"
NETWORKS = {
    "fc5-digits": RunConfig(layer_steps=32),
    # At the rate of FC5, 0.05, seed 2 diverges, and seed 0 ends at 82 % test accuracy.
    "fc12-digits": RunConfig(
        model="fc12",
        training=Training(learning_rate=0.02, warmup_epochs=20),
        num_steps=96,
        num_gap_steps=8,
        num_ratios=60,
    ),
    "resnet18-digits": RunConfig(
        model="resnet18",
        training=Training(epochs=200, l1=3e-3),
        images_at_once=479,
        num_steps=96,
        num_gap_steps=8,
        num_ratios=60,
    ),
    # As people train: Adam, no penalty, nothing annealed to zero.
    "cnn-digits": RunConfig(
        model="cnn",
        training=Training(
            epochs=40, learning_rate=2e-3, schedule="constant", l1=0.0, optimizer="adam"
        ),
        layer_steps=32,
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Run networks, and lay out all that have been run."""

    run: tuple[Literal["fc5-digits", "fc12-digits", "resnet18-digits", "cnn-digits"], ...] = ()
    """Networks to run; by default only the table and the figure are made."""
    seeds: tuple[int, ...] = (0,)
    runs: Path = Path("runs/two_sides")
    """Where the runs are, with checkpoints and spectra."""
    results: Path = RESULTS
    """Where the kept results are, and table and figure go."""


def main(config: Config) -> None:
    """Run what is asked for, and lay out what there is."""
    for name in config.run:
        for seed in config.seeds:
            folder = config.runs / name / f"seed-{seed}"
            result = runs.known_or_run(NETWORKS[name], seed, folder)
            report.show(result, folder)
            kept = config.results / "two_sides" / name / f"seed-{seed}" / "result.json"
            write_json(kept, result.thinned())
    networks = sides_table.read(config.results)
    table = sides_table.table(networks)
    figure = plotting.plot_two_sides(sides_table.rows(networks))
    for kind in ("png", "svg"):
        plotting.save(figure, config.results / f"two_sides.{kind}")
    console.print(table, soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
