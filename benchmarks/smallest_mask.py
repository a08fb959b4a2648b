"""Measure what the limit from below costs: the certificate after each product, and the diagonals.

python benchmarks/smallest_mask.py                                    # FC5 on digits
python benchmarks/smallest_mask.py --dataset cifar10 --num-products 300

The certificate is steered by a Gauss-Newton diagonal, as `pruning.smallest_mask` does it, or by the
norms of the operator's rows where there is none. Both ends are told: what the bound has reached,
and above what no z̄ can take it. Seconds are those of the search, its compilation apart.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from jaxlimit import curvature, limits
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment
from jaxlimit.lab.trained import Trained, trained_fc5

MARKS = (10, 20, 30, 45, 60, 80, 100, 150, 200, 250, 300)


@dataclasses.dataclass(frozen=True)
class Config:
    """Certify a trained FC5."""

    dataset: Literal["digits", "cifar10"] = "digits"
    num_images: int = 10_000
    num_products: int = 150
    num_probes: int = 40
    """Of the estimated diagonal."""
    exact: bool = True
    """Time the exact diagonal too."""
    folder: Path = Path("runs/benchmarks")
    """Where the network is trained, and found again."""
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


def main(config: Config) -> None:
    """Train or find the network, measure, and write the results."""
    trained = trained_fc5(config.dataset, config.num_images, config.folder / config.dataset)
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
    result = {
        "config": config,
        "dim": trained.weights.size,
        "epsilon": float(trained.epsilon),
        "num_examples": sum(len(batch[1]) for batch in trained.batches),
        "seconds": seconds,
        "certificates": certificates,
        "environment": environment(),
    }
    write_json(config.output / f"smallest_mask_{config.dataset}.json", result)


if __name__ == "__main__":
    main(tyro.cli(Config))
