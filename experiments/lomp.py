"""Prune an l1-trained network in one shot, fine-tune what is left, and compare at each ratio.

python experiments/lomp.py                                # FC5 on digits
python experiments/lomp.py --dataset cifar10 ... --output runs/fc5-cifar10-annealed

Takes the flags of pruning_limit.py for training, and goes on from its run folder if that is there;
its prediction then stands in the figure. Of several processes, which train together, each prunes
and fine-tunes by itself. Writes lomp.json and lomp.png into the run folder.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pruning_limit
import tyro

from jaxlimit import distributed, plotting, training
from jaxlimit.lab import figures
from jaxlimit.lab.reporting import Stages, build, console, environment, sole_writer, write_json
from jaxlimit.pruning import lomp


@dataclasses.dataclass(frozen=True)
class Config(pruning_limit.Config):
    """Train, prune, fine-tune."""

    ratios: tuple[float, ...] = (0.0003, 0.0006, 0.001, 0.002, 0.003, 0.005, 0.008, 0.02)
    """Fractions of the weights kept."""
    finetune_epochs: int = 10
    finetune_rate: float = 0.01
    """First rate of the fine-tuning, which takes it to 0 by a cosine, in float32, without l1."""

    def finetuning(self, seed: int) -> training.TrainingConfig:
        """Select what the fine-tuning is told."""
        return training.TrainingConfig(
            epochs=self.finetune_epochs,
            learning_rate=self.finetune_rate,
            schedule="cosine",
            momentum=self.momentum,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            augment=self.augment,
            seed=seed,
        )


def main(config: Config) -> None:
    """Run the first seed and write its figures."""
    if config.dry_run:
        pruning_limit.print_plan(config)
        return
    if not config.ratios or not all(0 <= ratio <= 1 for ratio in config.ratios):
        raise ValueError(f"ratios must lie in [0, 1], at least one, got {config.ratios}")
    seed = config.seeds[0]
    config.finetuning(seed)  # raises now what it would raise after the training
    folder = config.folder() / f"seed-{seed}"
    with sole_writer(folder):
        fine_tune(config, seed, folder)


def fine_tune(config: Config, seed: int, folder: Path) -> None:
    """Train or go on, prune and fine-tune, and write what came of it into the folder."""
    finetune = config.finetuning(seed)
    with Stages() as stages:
        net = pruning_limit.train(config, seed, folder, stages)
        with stages.time("pruning"):
            rows = prune(net, config, finetune, stages)
    dense = accuracy(net, net.trained, config.images_at_once)
    limits = known_limits(folder, config)
    result = {"dense": dense, "rows": rows, "limits": limits, "config": config, "seed": seed}
    result |= {"environment": environment(), "seconds": stages.seconds}
    if distributed.is_first():
        write_json(folder / "lomp.json", result)
        title = f"Pruned in one shot, {config.model} on {config.dataset}"
        figure = figures.plot_lomp(rows, dense, limits, title=title)
        plotting.save(figure, folder / "lomp.png")
    for kind in ("one_shot", "fine_tuned"):
        fit = [r["ratio"] for r in rows if r[kind] >= dense - config.accuracy_tolerance]
        least = f"{min(fit):.2%}" if fit else "none of the ratios"
        console.print(f"{kind}: test accuracy within {config.accuracy_tolerance:.0%} of the dense "
                      f"{dense:.2%} at {least} kept")  # fmt: skip
    console.print(f"written to {folder}")


def known_limits(folder: Path, config: Config) -> dict[str, float] | None:
    """Read what a run of the same network in this folder predicted and measured, None without."""
    try:
        known = pruning_limit.read_result(folder)
    except FileNotFoundError:
        return None
    made = build(pruning_limit.Config, known["config"], f"the config of {folder / 'result.json'}")
    if made.network() != config.network():
        return None
    return {"predicted": known["prediction"]["ratio"], "measured": known["measured"]["by_loss"]}


def prune(net, config, finetune, stages) -> list[dict[str, float]]:
    """Prune at each ratio, with and without fine-tuning; return the test accuracies."""
    rows = []
    for ratio in np.sort(config.ratios).tolist():
        row = {"ratio": ratio}
        for name, how in {"one_shot": None, "fine_tuned": finetune}.items():
            pruned = lomp.prune(net.module, net.train, net.trained, ratio, finetune=how)
            row[name] = accuracy(net, pruned, config.images_at_once)
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
    pruning_limit.start(tyro.cli(Config), main)
