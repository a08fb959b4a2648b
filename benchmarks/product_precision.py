"""Measure what bfloat16 products change of λ_max, tr H and ρ*, on a trained FC5.

python benchmarks/product_precision.py                                  # digits, about a minute
python benchmarks/product_precision.py --dataset cifar10 --epochs 200 --l1 2e-4 --num-steps 96

The same probe goes through both runs, so that all that differs is the rounding of the products'
operands; the primal pass is float32 in both.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from jaxlimit import curvature, datasets, flatten_weights, limits, models, spectrum, training
from jaxlimit.reporting import console, environment, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare precisions."""

    dataset: str = "digits"
    epochs: int = 400
    learning_rate: float = 0.05
    schedule: Literal["constant", "cosine"] = "cosine"
    l1: float = 3e-4
    augment: bool = False
    checkpoint_dir: Path | None = None
    """Resume training from here, with the same settings."""
    num_images: int = 10_000
    """Training images in the Hessian, at most."""
    num_steps: int = 128
    output: Path = Path("benchmarks/results")


def readings(measure: spectrum.SpectralMeasure, weights: Any, epsilon: Any) -> dict[str, float]:
    """Read off the numbers that are compared."""
    limit = limits.pruning_limit(measure, weights, epsilon)
    trace = spectrum.trace_function(measure, lambda x: x).value * measure.dim
    return {
        "largest": float(measure.nodes.max()),
        "trace": float(trace),
        "ratio": float(limit.ratio),
        "lower": float(limit.lower),
        "upper": float(limit.upper),
    }


def main(config: Config) -> None:
    """Train or resume, run both, compare and write."""
    data = datasets.load(config.dataset, "train")
    module = models.create("fc5", num_classes=data.num_classes)
    names = ("epochs", "learning_rate", "schedule", "l1", "augment")
    settings = training.TrainingConfig(**{name: getattr(config, name) for name in names})
    trained = training.fit(module, data, settings, checkpoint_dir=config.checkpoint_dir)
    loss = training.make_loss(module, trained.normalization)
    size = min(config.num_images, len(data.labels))
    batches = (jnp.asarray(data.images[None, :size]), jnp.asarray(data.labels[None, :size]))
    weights, _ = flatten_weights(trained.params)
    epsilon = limits.loss_tolerance(loss, trained.params, batches, trained.state)
    found = {}
    for name, dtype in (("float32", None), ("bfloat16", jnp.bfloat16)):
        matvec = curvature.hessian_matvec(
            loss, trained.params, batches, trained.state, mode="linearized", product_dtype=dtype
        )
        measure = spectrum.run_probes(
            matvec, jax.random.key(0), dim=weights.size, num_steps=config.num_steps
        )
        found[name] = readings(measure, weights, epsilon)
        console.print(name, found[name])
    errors = {n: found["bfloat16"][n] / value - 1 for n, value in found["float32"].items()}
    console.print("relative error of bfloat16:", errors)
    content = {
        "benchmark": "product_precision",
        "settings": {**dataclasses.asdict(config), "output": None, "checkpoint_dir": None},
        "dim": weights.size,
        "epsilon": epsilon,
        "readings": found,
        "relative_error": errors,
        "environment": environment(),
    }
    write_json(config.output / f"product_precision_{config.dataset}.json", content)


if __name__ == "__main__":
    main(tyro.cli(Config))
