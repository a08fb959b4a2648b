"""`jaxlimit run`: train a network of the zoo, predict, prune, compare."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxlimit.cli.errors import UsageError
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
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be distinct and not negative, at least one, "
                             f"got {self.seeds}")  # fmt: skip


def run(arguments: Sequence[str]) -> int:
    """Run the experiment with its own options.

    Raises:
        UsageError: for a setting that cannot be.
    """
    try:
        config = tyro.cli(Config, args=list(arguments), prog="jaxlimit run")
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    jobs.start(lambda: main(config), several=config.distributed)
    return 0


def main(config: Config) -> None:
    """Run every seed and show each."""
    if config.dry_run:
        runs.print_plan(config.run)
        return
    output = config.output or Path("runs") / config.run.name()
    for seed in config.seeds:
        folder = output / f"seed-{seed}"
        report.show(runs.run(config.run, seed, folder), folder)
    if len(config.seeds) > 1:
        console.print(f"{len(config.seeds)} seeds, one folder each, in {output}")
