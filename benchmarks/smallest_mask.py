"""Measure the smallest mask beside what others would prune by, and what its certificate costs.

python benchmarks/smallest_mask.py                                    # FC5 on digits, three seeds
python benchmarks/smallest_mask.py --dataset cifar10 --seeds 0 --num-products 300

Every way of choosing is judged alike: how few weights it keeps with the true loss over all examples
within ε. The certificate is steered by a Gauss-Newton diagonal, as `pruning.smallest_mask` does it,
or by the norms of the operator's rows where there is none. Both ends are told: what the bound has
reached, and above what no z̄ can take it. Seconds are those of the search, its compilation apart.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from jaxlimit import curvature, limits, pruning
from jaxlimit.lab import peer_masks, sides_table
from jaxlimit.lab.console import console
from jaxlimit.lab.content import without_paths, write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.trained import Trained, trained_fc5

MARKS = (10, 20, 30, 45, 60, 80, 100, 150, 200, 250, 300)


@dataclasses.dataclass(frozen=True)
class Config:
    """Find masks of a trained FC5, and certify it."""

    dataset: Literal["digits", "cifar10"] = "digits"
    seeds: tuple[int, ...] = (0, 1, 2)
    """Networks; the certificate's course and the diagonals are timed on the first."""
    num_images: int = 10_000
    num_products: int = 150
    """Of the certificate whose course is followed; 0 leaves that and the diagonals out."""
    num_probes: int = 40
    """Of the estimated diagonal."""
    exact: bool = True
    """Time the exact diagonal too."""
    folder: Path = Path("runs/benchmarks")
    """Where the networks are trained, and found again."""
    output: Path = Path("benchmarks/results")


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Run once for the compilation and once for the seconds."""
    jax.block_until_ready(function())
    start = time.perf_counter()
    return jax.block_until_ready(function()), time.perf_counter() - start


def certify(source: tuple, trained: Trained, config: Config, diagonal: Any) -> dict[str, Any]:
    """Run the certificate, and read it off after some numbers of products."""
    operator = curvature.gauss_newton_matvec(*source)
    gradient = curvature.mean_gradient(*source)
    problem = operator, gradient, trained.weights, trained.epsilon
    limits.certificate(*problem, num_products=12, diagonal=diagonal)
    start, seconds = time.perf_counter(), []
    found = limits.certificate(
        *problem,
        num_products=config.num_products,
        diagonal=diagonal,
        on_progress=lambda *_: seconds.append(time.perf_counter() - start),
    )
    steps = found.num_products - 2  # the last two check the bound
    return {
        "num_kept": found.num_kept,
        "ratio": found.ratio,
        "open": found.open,
        "slack": found.slack,
        "num_products": found.num_products,
        "seconds": time.perf_counter() - start,
        "after": {
            str(n): {"num_kept": found.history[n - 1], "seconds": seconds[n - 1]}
            for n in (*(mark for mark in MARKS if mark < steps), steps)
        },
    }


def diagonals(source: tuple, config: Config) -> tuple[dict[str, float], Any]:
    """Time a gradient, a probe and the exact diagonal; return the estimated diagonal too."""
    key = jax.random.key(0)
    _, gradient = timed(lambda: curvature.mean_gradient(*source))
    probes = {"num_probes": config.num_probes, "key": key}
    estimated, seconds = timed(lambda: curvature.diagonal(*source, **probes))
    found = {"gradient": gradient, "probe": seconds / config.num_probes}
    if config.exact:
        found["exact"] = timed(lambda: curvature.diagonal(*source))[1]
    return found, estimated


def costs(trained: Trained, config: Config) -> dict[str, Any]:
    """Time the diagonals, and follow the certificate with each metric."""
    source = trained.loss, trained.params, trained.batches
    seconds, diagonal = diagonals(source, config)
    certificates = {
        "diagonal": certify(source, trained, config, diagonal),
        "row norms": certify(source, trained, config, None),
    }
    for name, found in certificates.items():
        console.print(
            f"{name}: {found['ratio']:.4%} ({found['num_kept']:,}) in {found['num_products']} "
            f"products and {found['seconds']:.1f} s, at most {found['open']:,} more to be had"
        )
    return {"seconds": seconds, "certificates": certificates}


def peers(trained: Trained) -> dict[str, Callable[[], Any]]:
    """Make the scores of others [D], by name; the larger, the longer a weight stays."""
    source = trained.loss, trained.params, trained.batches
    weights = trained.weights
    images = np.concatenate([np.asarray(batch[0]) for batch in trained.batches])
    layers = peer_masks.layers_of(trained.params, images)

    def by_layer(score: Callable) -> Any:
        return peer_masks.flat(trained.params, layers, [score(layer) for layer in layers])

    def of_fisher() -> Any:
        every = np.ones(weights.size, bool)
        rows = curvature.factor_rows(*source, mask=every, matrix="fisher")
        return jax.numpy.asarray(peer_masks.wood_fisher(np.asarray(weights), rows))

    return {
        "magnitude": lambda: abs(weights),
        "OBD": lambda: weights**2 * curvature.diagonal(*source) / 2,
        "Wanda, as published": lambda: by_layer(lambda x: peer_masks.evenly(peer_masks.wanda(x))),
        "Wanda's score over all weights": lambda: by_layer(peer_masks.wanda),
        "layer-wise OBS": lambda: by_layer(peer_masks.layer_obs),
        "WoodFisher": of_fisher,
    }


def sparse_gpt(trained: Trained, limit: float) -> int:
    """Find how few weights SparseGPT keeps within a loss; what it keeps, it also changes."""
    images = np.concatenate([np.asarray(batch[0]) for batch in trained.batches])
    layers = peer_masks.layers_of(trained.params, images)
    sizes = np.array([len(batch[1]) for batch in trained.batches])
    loss = jax.jit(trained.loss)

    def prune(threshold: float) -> tuple[float, int]:
        values = [peer_masks.sparse_gpt(layer, threshold) for layer in layers]
        params = peer_masks.assemble(trained.params, layers, values)
        losses = np.array([float(loss(params, batch)) for batch in trained.batches])
        return sizes @ losses / sizes.sum(), sum(int((value != 0).sum()) for value in values)

    low, high, kept = -30.0, 10.0, trained.weights.size
    for _ in range(16):
        middle = (low + high) / 2
        rise, left = prune(np.exp(middle))
        low, high, kept = (middle, high, left) if rise <= limit else (low, middle, kept)
    return kept


def masks(trained: Trained, seed: int) -> dict[str, Any]:
    """Find the smallest mask by every way of choosing, at the same ε by the true loss."""
    source = trained.loss, trained.params, trained.batches
    kept, seconds = {}, {}
    for name, scores in peers(trained).items():
        start = time.perf_counter()
        order = pruning.order_by(scores())
        end = pruning.smallest_of_order(*source, order=order, epsilon=trained.epsilon)
        kept[name], seconds[name] = end.num_kept, time.perf_counter() - start
    start = time.perf_counter()
    key = jax.random.fold_in(jax.random.key(seed), 2)
    found = pruning.smallest_mask(*source, epsilon=trained.epsilon, key=key)
    seconds["smallest mask"] = time.perf_counter() - start
    start, name = time.perf_counter(), "SparseGPT, kept weights changed"
    kept[name] = sparse_gpt(trained, found.dense_loss + found.epsilon)
    seconds[name] = time.perf_counter() - start
    certificate = found.certificate
    return {
        "seed": seed,
        "dim": trained.weights.size,
        "epsilon": found.epsilon,
        "num_examples": sum(len(batch[1]) for batch in trained.batches),
        "kept": kept | {c.method: c.num_kept for c in found.candidates},
        "smallest": {"method": found.method, "num_kept": found.num_kept},
        "certified": None if certificate is None else certificate.num_kept,
        "seconds": seconds,
    }


def main(config: Config) -> None:
    """Train or find the networks, measure, and write the results, after each network anew."""
    path = config.output / f"smallest_mask_{config.dataset}.json"
    content: dict[str, Any] = {
        "config": without_paths(config),
        "networks": [],
        "environment": environment(),
    }
    first = None
    for seed in config.seeds:
        folder = config.folder / config.dataset / f"seed-{seed}" / "checkpoint"
        trained = trained_fc5(config.dataset, config.num_images, folder, seed=seed)
        first = first or trained
        content["networks"].append(masks(trained, seed))
        write_json(path, content)
    console.print(sides_table.peers(content["networks"]), soft_wrap=True)
    if first is not None and config.num_products:
        write_json(path, content | costs(first, config))


if __name__ == "__main__":
    main(tyro.cli(Config))
