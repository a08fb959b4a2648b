"""Does the limit of each layer say which layers a small mask keeps?

python experiments/adaptive_ratio.py                             # FC5 on digits, three seeds
python experiments/adaptive_ratio.py --run.model fc12
python experiments/adaptive_ratio.py --smoke                     # in a minute, that it runs

Written down before the runs: (1) the ratios by layer that `limits.by_layer` asks for rank like
those of the smallest mask found, Spearman's correlation at least 0.8 in every seed; (2) pruned by
its budgets, weights of a layer by magnitude, a network stays within ε with fewer weights than by
one ratio for all layers, and than by magnitude over all layers at once.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxlimit import datasets, flatten_weights, limits, plotting, pruning, studies
from jaxlimit.lab import runs
from jaxlimit.lab.console import Stages
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.outcome import finish
from jaxlimit.lab.settings import TRIAL, RunConfig
from jaxlimit.lab.statistics import rank_correlation

LEAST_CORRELATION = 0.8


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare budgets by layer."""

    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    """Settings of the training, those of `pruning_limit.py`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    num_steps: int = 64
    """Lanczos steps for each layer."""
    num_budgets: int = 24
    """Total ratios at which budgets are drawn up, from 1e-4 to 1."""
    smoke: bool = False
    """A tiny network: shows that the command runs, and nothing else."""
    output: Path = Path("runs/adaptive_ratio")


def budgets(study: studies.LayerStudy, masks: dict, weights: Any, number: int) -> list:
    """Draw up a budget of `limits.by_layer` at each of several total ratios, sparse to dense."""
    layers = {name: jnp.asarray(weights[mask]) for name, mask in masks.items()}
    least = np.zeros(len(masks), int)
    drawn = []
    for ratio in np.geomspace(1e-4, 1, number):
        found = limits.by_layer(study.measures, layers, ratio=ratio)
        kept = np.array([int(found.limits[name].num_kept) for name in masks])
        least = np.maximum(least, kept)  # rounding may take a weight back
        drawn.append(dict(zip(masks, least.tolist(), strict=True)))
    return drawn


def analyse(config: Config, seed: int) -> dict[str, Any]:
    """Train one seed and compare the budgets on it."""
    run = TRIAL if config.smoke else config.run
    with Stages() as stages:
        net = runs.train(run, seed, config.output / run.name() / f"seed-{seed}", stages)
        problem = (*net.args, datasets.to_batches(net.train), net.trained.state)
        epsilon = limits.loss_tolerance(*problem)
        key = jax.random.fold_in(jax.random.key(seed), 3)
        with stages.time("layers"):
            steps = 8 if config.smoke else config.num_steps
            study = studies.layer_limits(*problem, epsilon=epsilon, key=key, num_steps=steps)
        methods = ("live magnitude",) if config.smoke else pruning.METHODS
        with stages.time("smallest mask"):
            found = pruning.smallest_mask(*problem, epsilon=epsilon, key=key, methods=methods)
    params = net.trained.params
    masks, weights = pruning.layer_masks(params), flatten_weights(params)[0]
    number = 6 if config.smoke else config.num_budgets
    asked = {name: int(limit.num_kept) for name, limit in study.limits.limits.items()}
    even = [{n: round(r * m.sum()) for n, m in masks.items()} for r in np.geomspace(1e-5, 1, 200)]
    orders = {
        "by_layer": pruning.order_by_counts(weights, masks, budgets(study, masks, weights, number)),
        "one ratio": pruning.order_by_counts(weights, masks, even),
        "magnitude": pruning.order_by(jnp.abs(weights)),
        "LAMP": pruning.order_by(pruning.lamp_scores(params)),
    }
    ends = {
        name: pruning.smallest_of_order(*problem, order=order, epsilon=epsilon)
        for name, order in orders.items()
    }
    both = {"found": found.mask, "by_magnitude": ends["magnitude"].mask}
    kept = {
        way: {name: count for name, (count, _) in pruning.kept_by_layer(mask, params).items()}
        for way, mask in both.items()
    }
    return kept | {
        "seed": seed,
        "epsilon": float(epsilon),
        "sizes": study.sizes,
        "asked": asked,
        "smallest": {"method": found.method, "num_kept": found.num_kept},
        "kept": {name: end.num_kept for name, end in ends.items()},
        "correlation": correlation(study.sizes, asked, kept["found"]),
    }


def correlation(sizes: dict[str, int], asked: dict[str, int], found: dict[str, int]) -> float:
    """Rank the ratios of the layers in both, and correlate."""
    first, second = ([kept[name] / size for name, size in sizes.items()] for kept in (asked, found))
    return rank_correlation(first, second)


def conclude(results: list[dict[str, Any]]) -> str:
    """Say whether the claims held."""
    ranks = [r["correlation"] for r in results]
    kept = [r["kept"] for r in results]
    fewer = {n: [k["by_layer"] / k[n] for k in kept] for n in ("one ratio", "magnitude")}
    one, magnitude = (f"{min(f):.2f} to {max(f):.2f} times" for f in fewer.values())
    return (
        f"Over {len(results)} seeds the layers' ratios rank with Spearman's correlation "
        f"{min(ranks):.2f} to {max(ranks):.2f} (claimed: at least {LEAST_CORRELATION}); by its "
        f"budgets the network keeps {one} the weights of one ratio for all layers, and "
        f"{magnitude} those of magnitude (claimed: below 1)."
    )


def main(config: Config) -> None:
    """Run every seed, write, draw, and say what came out."""
    if not config.seeds:
        raise ValueError("seeds must name at least one, got none")
    results = [analyse(config, seed) for seed in config.seeds[: 1 if config.smoke else None]]
    sentence, first = conclude(results), results[0]
    shares = {
        label: [first[name][layer] / size for layer, size in first["sizes"].items()]
        for label, name in (("smallest mask", "found"), ("magnitude", "by_magnitude"),
                            ("by_layer", "asked"))
    }  # fmt: skip
    dim = sum(first["sizes"].values())
    names = list(first["kept"])
    table = markdown_table(
        {"seed": [str(r["seed"]) for r in results],
         "smallest mask": [f"{r['smallest']['num_kept'] / dim:.3%}" for r in results]}
        | {name: [f"{r['kept'][name] / dim:.3%}" for r in results] for name in names}
        | {"correlation": [f"{r['correlation']:.2f}" for r in results]}
    )  # fmt: skip
    figure = plotting.plot_layers(list(first["sizes"]), shares)
    path, drawn = config.output / "result.json", {"layers.png": figure}
    finish(path, config, sentence, table=table, figures=drawn, results=results)


if __name__ == "__main__":
    main(tyro.cli(Config))
