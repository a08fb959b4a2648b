"""The main job, as the script and the command run it."""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np

from jaxlimit._core.checks import check_seed
from jaxlimit.lab import jobs, report, runs
from jaxlimit.lab.console import console
from jaxlimit.lab.settings import FLAT, RunConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """Train, predict, prune, compare."""

    run: Annotated[RunConfig, FLAT] = dataclasses.field(default_factory=RunConfig)
    seeds: tuple[int, ...] = (0,)
    dry_run: bool = False
    """Say what memory the spectrum will take and how, and stop."""
    distributed: bool = False
    """This process is one of several, found by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, or by SLURM; they share the devices of all, the data and the run folder."""
    output: Path | None = None
    """Run folder; default runs/MODEL-DATASET-DIGEST, the digest that of the training settings."""

    def __post_init__(self) -> None:
        """Check the seeds before anything runs."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be distinct, at least one, got {self.seeds}")
        for seed in self.seeds:
            check_seed("seeds", seed)


def main(config: Config) -> None:
    """Run every seed and, for several, their mean and spread."""
    if config.dry_run:
        runs.print_plan(config.run)
        return
    output = config.output or Path("runs") / config.run.name()
    results = []
    for seed in config.seeds:
        folder = output / f"seed-{seed}"
        results.append(runs.run(config.run, seed, folder))
        report.show(results[-1], folder)
    if len(results) > 1:
        predicted = np.array([result.prediction.ratio for result in results])
        measured = np.array([result.measured.by_loss for result in results])
        console.print(
            f"{len(results)} seeds: predicted {predicted.mean():.3%} ± {predicted.std(ddof=1):.3%},"
            f" measured {measured.mean():.3%} ± {measured.std(ddof=1):.3%}"
        )


def start(config: Config) -> None:
    """Run the job alone, or as one of several processes."""
    jobs.start(lambda: main(config), several=config.distributed)
