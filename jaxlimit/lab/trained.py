"""The trained FC5 networks that accuracy is measured on."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxlimit import datasets, flatten_weights, limits, models, training

CONFIGS = {
    "digits": training.TrainingConfig(epochs=400, learning_rate=0.05, schedule="cosine", l1=3e-4),
    "cifar10": training.TrainingConfig(epochs=20, learning_rate=0.05, schedule="cosine", l1=2e-4),
}


class Trained(NamedTuple):
    """A trained network as the analysis takes it.

    Attributes:
        loss: `loss(params, batch)`.
        params: w*.
        batches: the Hessian's images, normalised, with their labels.
        epsilon: ε over all training images.
        weights: w*, flat.
        num_classes: logits.
    """

    loss: Callable
    params: Any
    batches: list
    epsilon: Any
    weights: Any
    num_classes: int


def trained_fc5(dataset: str, num_images: int, folder: Path, *, seed: int = 0) -> Trained:
    """Train FC5 to its l1 minimum, or continue from the checkpoint in `folder`."""
    train = datasets.load(dataset, "train")
    module = models.create("fc5", num_classes=train.num_classes)
    told = dataclasses.replace(CONFIGS[dataset], seed=seed)
    done = training.fit(module, train, told, monitor=training.Monitor(checkpoint_dir=folder))
    mean, std = (np.asarray(value, np.float32) for value in done.normalization)
    batches = [
        (jnp.asarray((images - mean) / std), jnp.asarray(labels))
        for images, labels in datasets.to_batches(train)
    ]
    loss = training.make_loss(module)
    return Trained(
        loss=loss,
        params=done.params,
        batches=batches[: -(-num_images // len(batches[0][1]))],
        epsilon=limits.loss_tolerance(loss, done.params, batches),
        weights=flatten_weights(done.params)[0],
        num_classes=train.num_classes,
    )


def reading(measure: Any, weights: Any, epsilon: Any) -> dict[str, float]:
    """Return three numbers of a spectrum: λ_max, tr H by its probes, ρ*."""
    limit = limits.pruning_limit(measure, jnp.asarray(weights, measure.nodes.dtype), epsilon)
    first = jnp.sum(measure.weights * measure.nodes, axis=1).mean()
    return {
        "largest": float(measure.nodes.max()),
        "trace": float(first) * measure.dim,
        "ratio": float(limit.ratio),
        "width": float(limit.upper - limit.lower),
    }


def relative(reading: dict[str, float], truth: dict[str, float]) -> dict[str, float]:
    """Return the relative error of each figure."""
    return {name: value / truth[name] - 1 for name, value in reading.items() if name != "width"}
