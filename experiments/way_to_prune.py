"""Our whole way to prune beside common ones: what is kept at equal accuracy and cost?

python experiments/way_to_prune.py                                # FC5 on digits, three seeds
python experiments/way_to_prune.py --smoke                        # in seconds, that it runs

- ours: train with the best penalty of `regularisation.py`, search for the smallest mask within some
  ε by saliency and the greedy order, and fine-tune what it keeps. In rounds, `prune_to` goes on
  with the fine-tuned network; its conjugate gradients cost many times the budget.
- LOMP: train with plain l1, prune by magnitude in one shot, fine-tune; and the same with the
  penalty of ours, which tells the mask's part from the penalty's.
- WoodFisher-like: the same training, pruned by ½w²/(F⁻¹)ᵢᵢ in steps with fine-tuning between.
- gradual magnitude (Zhu, Gupta 2017): prune by a cubic schedule while training, no penalty.
- iterative magnitude with rewinding (Frankle, Dziugaite, Roy, Carbin 2020): train, prune, rewind,
  repeat, no penalty.

All have one budget of gradient evaluations, `epochs` of the whole network; a pass over a network
cut to its live units counts by its share of the weights, a product of the curvature for two
gradients, and a search for a mask for its 32 probes of the diagonal and a gradient an output. A way
keeps, in a seed, the fewest weights at which its test accuracy is still at least that of the plain
l1 network less a point, here and at all larger ratios that it tried.

Written down before the runs: at equal accuracy ours keeps the fewest weights in the mean over
seeds, within the budget; where it does not, that is said.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxlimit
from jaxlimit import curvature, flatten_weights, pruning, training
from jaxlimit.lab import figures, live, peer_masks, runs
from jaxlimit.lab.console import Stages
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.outcome import finish
from jaxlimit.lab.points import known_or_made
from jaxlimit.lab.settings import TRIAL, RunConfig
from jaxlimit.pruning import retraining

OURS, OURS_IN_ROUNDS = "ours", "ours, in rounds"
# Searches without a certificate, whose matrix holds some 8,000 of the most salient weights.
SEARCH = {
    "methods": ("live magnitude", "absolute saliency", "greedy"),
    "budget": pruning.Budget(flops=1e12),
}
TOLERATED = 0.01


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare ways to prune."""

    run: RunConfig = dataclasses.field(default_factory=lambda: RunConfig().replace(l1=1e-3))
    """Data, network and plain l1 training, but for the epochs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 160
    """The budget."""
    finetune_epochs: int = 40
    """Of the budget, for what comes after the training."""
    finetune_rate: float = 0.02
    l1: float = 8e-4
    """Of the best penalty."""
    l1_delta: float = 0.1
    l1_by: str = "magnitude"
    ratios: tuple[float, ...] = (0.004, 0.002, 0.0012, 0.0008, 0.0005, 0.0003, 0.0002)
    """Fractions kept at which the others are tried."""
    tolerances: tuple[float, ...] = (16.0, 4.0, 1.0, 0.25)
    """ε of ours, in units of the published one."""
    round_tolerances: tuple[float, ...] = (1.0,)
    """And of ours in rounds."""
    steps: int = 3
    """Rounds of the WoodFisher-like way."""
    num_rounds: int = 5
    """Rounds of the iterative way, of the gradual one, and at most of ours in rounds."""
    smoke: bool = False
    """A tiny network: shows that the command runs, and nothing else."""
    output: Path = Path("runs/way_to_prune")

    def before(self, **changes: Any) -> RunConfig:
        """Return the settings of a training before what is fine-tuned."""
        return self.run.replace(epochs=self.epochs - self.finetune_epochs, **changes)

    def finetuning(self, seed: int, epochs: int) -> training.TrainingConfig:
        """Return the settings of a fine-tuning."""
        return training.TrainingConfig(
            epochs=epochs, learning_rate=self.finetune_rate, schedule="cosine", seed=seed,
            batch_size=self.run.training.batch_size,
        )  # fmt: skip


class Bench:
    """One seed: the data, the networks that several ways begin with, and what a way reaches."""

    def __init__(self, config: Config, seed: int, stages: Stages) -> None:
        self.config, self.seed, self.stages = config, seed, stages
        self.key = jax.random.fold_in(jax.random.key(seed), 6)

    def trained(self, **changes: Any) -> live.Live:
        """Train, and cut to the live units."""
        run = self.config.before(**changes)
        folder = self.config.output / run.name() / f"seed-{self.seed}"
        return live.cut(runs.train(run, self.seed, folder, self.stages), self.key)

    def by_best_penalty(self) -> live.Live:
        """Train with the best penalty."""
        config = self.config
        return self.trained(l1=config.l1, l1_delta=config.l1_delta, l1_by=config.l1_by)

    def of_search(self, part: live.Live) -> float:
        """Return the cost of a search for a mask."""
        return (32 + part.net.train.num_classes) * self.share(part)

    def finetune(self, part: live.Live, params: Any, mask: Any, epochs: int) -> Any:
        """Train what a mask keeps, without penalty."""
        trained = part.net.trained
        start = training.Start(params, trained.state, trained.normalization)
        told = self.config.finetuning(self.seed, epochs)
        net = part.net
        return training.fit(net.module, net.train, told, start=start, mask=mask).params

    def row(self, part: live.Live, kept: int, params: Any, cost: float) -> dict[str, float]:
        """Return what a pruned network keeps, its accuracy, and its cost in epochs."""
        return {"ratio": kept / part.dim, "accuracy": part.accuracy(params), "cost": cost}

    def share(self, part: live.Live) -> float:
        """Return the cost of a pass over the network of live units."""
        return flatten_weights(part.net.trained.params)[0].size / part.dim


def ours(bench: Bench) -> list[dict[str, float]]:
    """Train with the best penalty, find the mask, fine-tune."""
    config, part = bench.config, bench.by_best_penalty()
    net, rows = part.net, []
    for tolerance in config.tolerances:
        found = pruning.smallest_mask(
            *part.problem, epsilon=tolerance * part.epsilon, key=bench.key, **SEARCH
        )
        params = pruning.apply_mask(net.trained.params, found.mask)
        tuned = bench.finetune(part, params, found.mask, config.finetune_epochs)
        small = pruning.compress(net.module, params, net.trained.state)
        share = flatten_weights(small.params)[0].size / part.dim
        cost = config.epochs - config.finetune_epochs * (1 - share) + bench.of_search(part)
        rows.append(bench.row(part, found.num_kept, tuned, cost))
    return rows


def in_rounds(bench: Bench) -> list[dict[str, float]]:
    """Go on from the fine-tuned network while the loss stays within ε."""
    config, part = bench.config, bench.by_best_penalty()
    epochs, rows = max(1, config.finetune_epochs // 2), []
    for tolerance in config.round_tolerances:
        cost = config.epochs - config.finetune_epochs + 2 * bench.of_search(part)

        def trained_on(params: Any, mask: Any) -> Any:
            nonlocal cost
            cost += epochs * bench.share(part)
            return bench.finetune(part, params, mask, epochs)

        found = jaxlimit.prune_to(
            *part.problem, epsilon=tolerance * part.epsilon, key=bench.key, refit=trained_on,
            num_rounds=config.num_rounds, **SEARCH,
        )  # fmt: skip
        cost += 2 * found.num_products * bench.share(part)
        rows.append(bench.row(part, found.rounds[-1], found.params, cost))
    return rows


def lomp(bench: Bench, part: live.Live) -> list[dict[str, float]]:
    """Prune an l1 network by magnitude in one shot and fine-tune."""
    params, rows = part.net.trained.params, []
    for ratio in bench.config.ratios:
        mask = retraining.shrink_mask(params, None, min(1.0, ratio / bench.share(part)))
        epochs = bench.config.finetune_epochs
        tuned = bench.finetune(part, params, mask, epochs)
        cost = bench.config.epochs - epochs + epochs * bench.share(part)
        rows.append(bench.row(part, count(mask), tuned, cost))
    return rows


def wood_fisher(bench: Bench) -> list[dict[str, float]]:
    """Prune the l1 network by its inverse Fisher matrix, in steps with fine-tuning between."""
    part, config = bench.trained(), bench.config
    rows, per_step = [], config.finetune_epochs // config.steps
    for ratio in config.ratios:
        params = part.net.trained.params
        dim = flatten_weights(params)[0].size
        mask = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
        for i in range(1, config.steps + 1):
            weights = np.asarray(flatten_weights(params)[0])
            kept = np.flatnonzero(weights)
            pieces = curvature.factor_rows(*part.at(params), mask=weights != 0, matrix="fisher")
            scores = peer_masks.wood_fisher(weights[kept], pieces)
            number = round(ratio * part.dim * (dim / (ratio * part.dim)) ** (1 - i / config.steps))
            chosen = np.zeros(dim, bool)
            chosen[kept[np.argsort(-scores)[:number]]] = True
            mask = pruning.mask_tree(chosen, params)
            params = bench.finetune(part, params, mask, max(1, per_step))
        cost = config.epochs - config.finetune_epochs * (1 - bench.share(part))
        rows.append(bench.row(part, count(mask), params, cost))
    return rows


def gradual(bench: Bench) -> list[dict[str, float]]:
    """Prune while training."""
    config = bench.config
    part, net = whole(bench)
    rows = []
    for ratio in config.ratios:
        told = config.run.replace(epochs=config.epochs, l1=0.0).train(bench.seed)
        folder = config.output / "gradual" / f"seed-{bench.seed}-{ratio:g}"
        found = retraining.gradual(
            net.module, net.train, told, ratio, num_rounds=config.num_rounds,
            prune_until=config.epochs * 3 // 4, checkpoint_dir=folder,
        )  # fmt: skip
        rows.append(bench.row(part, count(found.mask), found.params, config.epochs))
    return rows


def iterative(bench: Bench) -> list[dict[str, float]]:
    """Train, prune, rewind, train again; the last round is within the budget, the others below."""
    config = bench.config
    part, net = whole(bench)
    per_round = max(2, config.epochs // (config.num_rounds + 1))
    told = config.run.replace(epochs=per_round, l1=0.0).train(bench.seed)
    found = retraining.iterative(
        net.module, net.train, told, min(config.ratios), num_rounds=config.num_rounds,
        rewind_epoch=1, checkpoint_dir=config.output / "iterative" / f"seed-{bench.seed}",
    )  # fmt: skip
    return [
        bench.row(part, count(network.mask), network.params, per_round * (i + 2))
        for i, network in enumerate(found)
    ]


def whole(bench: Bench) -> tuple[live.Live, runs.Net]:
    """Return the network of plain l1, uncut: its accuracy is the mark, the others use its data."""
    run = bench.config.before()
    folder = bench.config.output / run.name() / f"seed-{bench.seed}"
    net = runs.train(run, bench.seed, folder, bench.stages)
    dim = flatten_weights(net.trained.params)[0].size
    return live.Live(net, dim, 0.0, 0.0), net


def dense_accuracy(bench: Bench) -> dict[str, float]:
    """Return the accuracy of the network of plain l1 before pruning."""
    part, net = whole(bench)
    return {"accuracy": part.accuracy(net.trained.params)}


def count(mask: Any) -> int:
    """Count what a mask keeps."""
    return int(sum(np.sum(leaf) for leaf in jax.tree.leaves(mask)))


WAYS = {
    OURS: ours,
    OURS_IN_ROUNDS: in_rounds,
    "LOMP": lambda bench: lomp(bench, bench.trained()),
    "LOMP, penalty of ours": lambda bench: lomp(bench, bench.by_best_penalty()),
    "WoodFisher-like": wood_fisher,
    "iterative magnitude, rewinding": iterative,
    "gradual magnitude": gradual,
}


def kept_at(rows: list[dict[str, float]], accuracy: float) -> float:
    """Return the smallest ratio that is as accurate, as are all larger ones; 1 if none is."""
    best = 1.0
    for row in sorted(rows, key=lambda row: -row["ratio"]):
        if row["accuracy"] < accuracy:
            break
        best = row["ratio"]
    return best


def summarise(
    results: dict[str, list[list[dict[str, Any]]]], targets: list[float]
) -> dict[str, dict]:
    """Return mean and spread over seeds of what each way keeps, and the most it cost."""
    summary = {}
    for way, by_seed in results.items():
        kept = [kept_at(rows, at) for rows, at in zip(by_seed, targets, strict=True)]
        spread = float(np.std(kept, ddof=1)) if len(kept) > 1 else 0.0
        cost = max(row["cost"] for rows in by_seed for row in rows)
        summary[way] = {"kept": kept, "mean": float(np.mean(kept)), "spread": spread, "cost": cost}
    return summary


def conclude(summary: dict[str, dict[str, Any]], config: Config) -> str:
    """Say whether the claim held, and where ours loses."""
    others = {way: row for way, row in summary.items() if way not in (OURS, OURS_IN_ROUNDS)}
    best = min(others, key=lambda way: others[way]["mean"])
    mine, slow = summary[OURS], summary[OURS_IN_ROUNDS]
    held = mine["mean"] < others[best]["mean"] and mine["cost"] <= config.epochs
    lost = [
        f"{way} in seed {seed}"
        for way, row in others.items()
        for seed, theirs, own in zip(config.seeds, row["kept"], mine["kept"], strict=True)
        if theirs < own
    ]
    return (
        "At the accuracy of the plain l1 network less a point, ours keeps "
        f"{shown(mine)} for a budget of {config.epochs} epochs (it took "
        f"{mine['cost']:.0f}), {shown(slow)} in rounds (at {slow['cost']:.0f}); "
        f"the best of the others, {best}, {shown(others[best])}. "
        f"Claimed: ours the fewest within the budget; the claim {'holds' if held else 'fails'}. "
        f"Within the budget it loses to: "
        f"{', '.join(lost) or 'none'}."
    )


def shown(row: dict[str, Any]) -> str:
    """Show what a way keeps, and in how many seeds something it tried was as accurate."""
    reached = [kept for kept in row["kept"] if kept < 1]
    if not reached:
        return "nothing that is as accurate"
    spread = f" ± {np.std(reached, ddof=1):.3%}" if len(reached) > 1 else ""
    seeds = len(row["kept"])
    note = "" if len(reached) == seeds else f" (as accurate in {len(reached)} of {seeds} seeds)"
    return f"{np.mean(reached):.3%}{spread}{note}"


def main(config: Config) -> None:
    """Run every way on every seed, write, draw, and say what came out."""
    if not config.seeds or not config.ratios:
        raise ValueError("seeds and ratios must hold at least one each, got none")
    if config.smoke:
        config = dataclasses.replace(
            config, run=TRIAL, seeds=(0,), epochs=6, finetune_epochs=2, ratios=(0.3,),
            tolerances=(1.0,), steps=1, num_rounds=1,
        )  # fmt: skip
    told = dataclasses.replace(config, seeds=(), output=Path())
    results: dict[str, list] = {way: [] for way in WAYS}
    targets = []
    with Stages() as stages:
        for seed in config.seeds:
            bench = Bench(config, seed, stages)
            folder = config.output / "points"
            dense = known_or_made(
                folder / f"dense-{seed}.json", {"config": told, "seed": seed},
                lambda bench=bench: dense_accuracy(bench),
            )  # fmt: skip
            targets.append(dense["accuracy"] - TOLERATED)
            for way, run in WAYS.items():
                with stages.time(way):
                    found = known_or_made(
                        folder / f"{way}-{seed}.json".replace(" ", "-"),
                        {"config": told, "seed": seed, "way": way},
                        lambda run=run, bench=bench: {"rows": run(bench)},
                    )  # fmt: skip
                results[way].append(found["rows"])
    summary = summarise(results, targets)
    sentence = conclude(summary, config)
    table = markdown_table({
        "way": list(summary),
        "kept": [shown(row) for row in summary.values()],
        "gradient evaluations, epochs": [f"{row['cost']:.0f}" for row in summary.values()],
    })  # fmt: skip
    finish(
        config.output / "result.json",
        config,
        sentence,
        table=table,
        figures={"way_to_prune.png": figures.plot_ways(results, targets)},
        results=results,
        targets=targets,
        summary=summary,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
