"""Prune an l1-trained network in one shot, fine-tune what is left, and compare at each ratio.

python experiments/lomp.py                                # FC5 on digits
python experiments/lomp.py --dataset cifar10 ... --output runs/fc5-cifar10-annealed

Takes the flags of pruning_limit.py for training, and continues from its run folder if that exists;
the figure then has its prediction. Several processes train together, but each prunes and fine-tunes
by itself. Writes lomp.json and lomp.png to the run folder.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxlimit import distributed, plotting, training
from jaxlimit.lab import figures, jobs, runs
from jaxlimit.lab.console import Stages, console
from jaxlimit.lab.content import without_paths, write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.results import read_result
from jaxlimit.lab.settings import FLAT, RunConfig
from jaxlimit.pruning import lomp


@dataclasses.dataclass(frozen=True)
class Config:
    """Train, prune, fine-tune."""

    run: Annotated[RunConfig, FLAT] = dataclasses.field(default_factory=RunConfig)
    seed: int = 0
    ratios: tuple[float, ...] = (0.0003, 0.0006, 0.001, 0.002, 0.003, 0.005, 0.008, 0.02)
    """Fractions of the weights kept."""
    finetune_epochs: int = 10
    finetune_rate: float = 0.01
    """First rate of the fine-tuning, which takes it to 0 by a cosine, in float32, without l1."""
    dry_run: bool = False
    """Say what memory the spectrum will take and how, and stop."""
    distributed: bool = False
    """This process is one of several, as for `pruning_limit.py`."""
    output: Path | None = None
    """Run folder; by default that of `pruning_limit.py` with the same flags."""

    def finetuning(self) -> training.TrainingConfig:
        """Return the settings of the fine-tuning."""
        return training.TrainingConfig(
            epochs=self.finetune_epochs,
            learning_rate=self.finetune_rate,
            schedule="cosine",
            momentum=self.run.training.momentum,
            batch_size=self.run.training.batch_size,
            accumulate=self.run.training.accumulate,
            augment=self.run.training.augment,
            seed=self.seed,
        )


def main(config: Config) -> None:
    """Train or continue, prune, and write the result."""
    if config.dry_run:
        runs.print_plan(config.run)
        return
    if not config.ratios or not all(0 <= ratio <= 1 for ratio in config.ratios):
        raise ValueError(f"ratios must lie in [0, 1], at least one, got {config.ratios}")
    config.finetuning()  # raises now what it would raise after the training
    folder = (config.output or Path("runs") / config.run.name()) / f"seed-{config.seed}"
    with jobs.sole_writer(folder):
        fine_tune(config, folder)


def fine_tune(config: Config, folder: Path) -> None:
    """Train or continue, prune and fine-tune, and write the result to the folder."""
    finetune = config.finetuning()
    with Stages() as stages:
        net = runs.train(config.run, config.seed, folder, stages)
        with stages.time("pruning"):
            rows = prune(net, config, finetune, stages)
    dense = accuracy(net, net.trained, config.run.images_at_once)
    limits = known_limits(folder, config.run)
    result = {"dense": dense, "rows": rows, "limits": limits, "config": without_paths(config)}
    result |= {"environment": environment(), "seconds": stages.seconds}
    if distributed.is_first():
        write_json(folder / "lomp.json", result)
        title = f"Pruned in one shot, {config.run.model} on {config.run.dataset}"
        figure = figures.plot_lomp(rows, dense, limits, title=title)
        plotting.save(figure, folder / "lomp.png")
    tolerated = config.run.accuracy_tolerance
    for kind in ("one_shot", "fine_tuned"):
        fit = [r["ratio"] for r in rows if r[kind] >= dense - tolerated]
        least = f"{min(fit):.2%}" if fit else "none of the ratios"
        console.print(f"{kind}: test accuracy within {tolerated:.0%} of the dense {dense:.2%} "
                      f"at {least} kept")  # fmt: skip
    console.print(f"written to {folder}")


def known_limits(folder: Path, config: RunConfig) -> dict[str, float] | None:
    """Read what a run of the same network in this folder predicted and measured, None without."""
    try:
        known = read_result(folder)
    except FileNotFoundError:
        return None
    if known.config.network() != config.network():
        return None
    return {"predicted": known.prediction.ratio, "measured": known.measured.by_loss}


def prune(net, config, finetune, stages) -> list[dict[str, float]]:
    """Prune at each ratio, with and without fine-tuning; return the test accuracies."""
    rows = []
    for ratio in np.sort(config.ratios).tolist():
        row = {"ratio": ratio}
        for name, how in {"one_shot": None, "fine_tuned": finetune}.items():
            pruned = lomp.prune(net.module, net.train, net.trained, ratio, finetune=how)
            row[name] = accuracy(net, pruned, config.run.images_at_once)
        rows.append(row)
        stages.show("pruning", len(rows), len(config.ratios))
    return rows


def accuracy(net, network, batch_size: int) -> float:
    """Measure the test accuracy of a network as trained or pruned."""
    return float(
        training.evaluate(
            net.module,
            network.params,
            network.state,
            net.test,
            normalization=net.trained.normalization,
            batch_size=batch_size,
        ).accuracy
    )


if __name__ == "__main__":
    given = tyro.cli(Config)
    jobs.start(lambda: main(given), several=given.distributed)
