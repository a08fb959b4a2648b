"""Make the paper's two tables: what theory says and what pruning finds, row by row.

python experiments/tables.py                                  # what would run, and for how long
python experiments/tables.py --rows fc5 fc12 --seeds 0 1 2    # train, predict, prune, tabulate
python experiments/tables.py --run                            # every row
python experiments/tables.py --collect                        # only tabulate what exists

A row is a file of experiments/rows/. A run is one of pruning_limit.py, in runs/ROW-SETTING/seed-N,
and continues from there when started again. Its result.json is kept, thinned, beside the tables.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from jaxlimit.lab import forecast, jobs, paper_tables, report, runs
from jaxlimit.lab.console import console
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.results import known_result, read_result
from jaxlimit.lab.rows import Row, read_rows, select
from jaxlimit.lab.settings import RunConfig

HERE = Path(__file__).parent
ROWS = HERE / "rows"


@dataclasses.dataclass(frozen=True)
class Config:
    """Run rows of the paper's tables, and tabulate all that have been run."""

    rows: tuple[str, ...] = ()
    """Names of rows, or how they begin; to name one is to run it."""
    settings: tuple[Literal["short", "annealed", "paper", "smoke"], ...] = ("paper", "annealed")
    seeds: tuple[int, ...] = (0,)
    run: bool = False
    """Run all rows, where none are named."""
    collect: bool = False
    """Run nothing, tabulate what is there."""
    distributed: bool = False
    """As for `pruning_limit.py`; the first run that fails then ends the job."""
    data_dir: Path | None = None
    """TFDS data directory; else TFDS_DATA_DIR, else TFDS's own default."""
    runs: Path = Path("runs")
    """Where the runs are, with checkpoints and spectra."""
    results: Path = HERE / "results" / "tables"
    """Where the tables and the results that they come from go."""

    def __post_init__(self) -> None:
        """Refuse what would leave nothing to do, or do it twice."""
        for name in ("settings", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be distinct, at least one, got {values}")


class Job(NamedTuple):
    """One seed of one setting of a row."""

    row: Row
    setting: str
    seed: int
    run: RunConfig
    folder: Path

    @property
    def name(self) -> str:
        """Name it in words."""
        return f"{self.row.name}, {self.setting}, seed {self.seed}"


def jobs_of(rows: list[Row], config: Config) -> list[Job]:
    """List what is asked for; a setting that a row lacks is left out."""
    return [
        Job(row, setting, seed, row.config(setting, seed, data_dir=config.data_dir),
            config.runs / f"{row.name}-{setting}" / f"seed-{seed}")
        for row in rows for setting in config.settings if setting in row.settings
        for seed in config.seeds
    ]  # fmt: skip


def done(job: Job, config: Config) -> Path | None:
    """Find the folder that holds the result of a job: of a run here, or kept beside the tables."""
    kept = config.results / job.folder.relative_to(config.runs)
    return next((folder for folder in (job.folder, kept) if known_result(folder, job.run)), None)


def run(job: Job, config: Config) -> None:
    """Run a job, unless its result is there already."""
    if folder := done(job, config):
        console.print(f"{folder / 'result.json'} is there already")
    else:
        report.show(runs.run(job.run, job.seed, job.folder), job.folder)


def list_jobs(jobs: list[Job], config: Config) -> None:
    """Say what would run, how long it will take, and what is there."""
    rate = forecast.matmul_rate()
    columns: dict[str, list[str]] = {"run": [], "training": [], "spectrum": [], "sweep": [],
                                     "in all": [], "there": []}  # fmt: skip
    left = 0.0
    for job in jobs:
        times = forecast.forecast(job.run, rate)
        if folder := done(job, config):
            took = read_result(folder).seconds["total"]
            there = f"done, in {forecast.in_words(took)}"
        else:
            there = "a checkpoint" if (job.folder / "checkpoint").exists() else "nothing"
            left += times.total
        cells = [job.name, *map(forecast.in_words, (*times, times.total)), there]
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    console.print(markdown_table(columns), soft_wrap=True)
    console.print(
        f"{len(jobs)} runs, {forecast.in_words(left)} still to go at {rate / 1e9:.0f} GFLOP/s, "
        f"{forecast.EFFICIENCY:.0%} of the rate of matrix products measured just now. "
        "Nothing was started: name rows with --rows, or give --run for all."
    )


def run_all(jobs: list[Job], rows: list[Row], config: Config) -> list[str]:
    """Run one job after the other, tabulate after each, and return which failed and how."""
    failures = []
    for job in jobs:
        console.rule(job.name)
        try:
            run(job, config)
        except Exception as error:  # whatever it is, the other rows still have to be run
            if config.distributed:  # the others may not have failed, and would wait for this one
                raise
            failures.append(f"{job.name}: {type(error).__name__}: {error}")
            console.print(f"FAILED {failures[-1]}")
            continue
        paper_tables.tabulate(rows, config.runs, config.results)
    return failures


def main(config: Config) -> None:
    """List what there is to run, or run what is asked for and tabulate."""
    rows = read_rows(ROWS)
    chosen = select(rows, config.rows)
    jobs = jobs_of(chosen, config)
    if not (config.rows or config.run or config.collect):
        list_jobs(jobs, config)
        return
    failures = [] if config.collect else run_all(jobs, rows, config)
    for cell in paper_tables.tabulate(rows, config.runs, config.results):
        if cell.row in chosen and cell.setting in config.settings and cell.results:
            theory, measured = map(paper_tables.shown, map(cell.value, ("theory", "measured")))
            console.print(
                f"{cell.row.name}, {cell.setting}, {len(cell.results)} seeds: theory {theory} %, "
                f"measured {measured} %, difference {paper_tables.difference(cell)}"
            )
    console.print(f"written to {config.results}")
    if failures:
        sys.exit("\n".join([f"{len(failures)} of {len(jobs)} runs failed:", *failures]))


if __name__ == "__main__":
    given = tyro.cli(Config)
    jobs.start(lambda: main(given), several=given.distributed)
