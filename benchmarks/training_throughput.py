"""Time an epoch of training: `training.fit` against a plain loop over host batches.

python benchmarks/training_throughput.py                                    # FC5 on CIFAR-10
python benchmarks/training_throughput.py --model resnet18 --num-images 512

The plain loop is what most JAX tutorials show: NumPy draws and normalises each batch on the host,
and a jitted optax step, called once a batch, updates the network. Both train the same network on
the same images with the same SGD, l1 subgradient included; the plain loop knows no augmentation,
so `--augment` only adds work to the side of `fit`. Epochs of the two take turns in one process,
so that whatever else the machine does falls on both; each turn gives one ratio.
"""

import dataclasses
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxlimit import datasets, models, training
from jaxlimit.lab.console import console
from jaxlimit.lab.content import write_json
from jaxlimit.lab.environment import environment


@dataclasses.dataclass
class Args:
    """Settings of the comparison."""

    model: str = "fc5"
    num_epochs: int = 5
    """Epochs timed on each side, after one of each to compile."""
    num_images: int | None = None
    """Training images; all of CIFAR-10 if not given."""
    synthetic: bool = False
    """Use random pixels of CIFAR-10's shape, for a machine without the data."""
    augment: bool = False
    """Let `fit` crop and flip."""
    l1: float = 5e-5
    output: Path = Path("benchmarks/results")


def load(args: Args) -> tuple[np.ndarray, np.ndarray]:
    if args.synthetic:
        rng = np.random.default_rng(0)
        num = args.num_images or 50_000
        images = rng.integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
        return images, rng.integers(0, 10, num).astype(np.int32)
    images, labels, _ = datasets.load("cifar10", "train")
    return images[: args.num_images], labels[: args.num_images]


def make_plain_epoch(network, images, labels, config, normalization):
    """Return a function that trains one epoch by the plain loop and returns its mean loss."""
    optimizer = optax.sgd(config.learning_rate, config.momentum)
    mean, std = (np.asarray(value, np.float32) for value in normalization)
    state = dict(network.init(jax.random.key(config.seed), jnp.zeros((1, *images.shape[1:]))))
    params = state.pop("params")
    opt_state = optimizer.init(params)
    rng = np.random.default_rng(config.seed)

    @jax.jit
    def step(params, state, opt_state, batch, labels):
        def objective(params):
            logits, after = network.apply(
                {"params": params, **state}, batch, train=True, mutable=list(state)
            )
            data = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            penalty = config.l1 * sum(jnp.abs(w).sum() for w in jax.tree.leaves(params))
            return data + penalty, (data, dict(after))

        gradient, (loss, state) = jax.grad(objective, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), state, opt_state, loss

    def epoch() -> float:
        nonlocal params, state, opt_state
        order = rng.permutation(len(images))
        losses = []
        for start in range(0, len(images) - config.batch_size + 1, config.batch_size):
            rows = order[start : start + config.batch_size]
            batch = (images[rows].astype(np.float32) - mean) / std
            params, state, opt_state, loss = step(params, state, opt_state, batch, labels[rows])
            losses.append(loss)
        return float(jnp.stack(losses).mean())

    return epoch


def compare(args: Args) -> dict:
    """Let the two take turns: `fit` calls back after each of its epochs, and the plain one runs."""
    images, labels = load(args)
    network = models.create(args.model, num_classes=10)
    config = training.TrainingConfig(
        epochs=args.num_epochs + 1, learning_rate=0.01, l1=args.l1, augment=args.augment
    )
    normalization = training.channel_statistics(images)
    plain_epoch = make_plain_epoch(network, images, labels, config, normalization)
    ours, plain, losses = [], [], {"fit": [], "plain": []}
    mark = time.perf_counter()

    def take_turn(metrics: training.Metrics) -> None:
        nonlocal mark
        now = time.perf_counter()
        ours.append(now - mark)
        losses["fit"].append(float(metrics.data_loss))
        losses["plain"].append(plain_epoch())
        mark = time.perf_counter()
        plain.append(mark - now)
        console.print(f"epoch {metrics.epoch}: fit {ours[-1]:.2f} s, plain {plain[-1]:.2f} s")

    training.fit(
        network,
        (images, labels),
        config,
        start=training.Start(normalization=normalization),
        monitor=training.Monitor(on_epoch=take_turn),
    )
    seen = len(images) // config.batch_size * config.batch_size
    ratios = [b / a for a, b in zip(ours[1:], plain[1:], strict=True)]
    return {
        "benchmark": "training_throughput",
        "settings": {**dataclasses.asdict(args), "output": None, "num_images": len(images)},
        "ratio": {"minimum": min(ratios), "median": statistics.median(ratios), "all": ratios},
        "images_per_second": {"fit": seen / min(ours[1:]), "plain": seen / min(plain[1:])},
        "seconds": {"fit": ours[1:], "plain": plain[1:]},
        "first_epoch_seconds": {"fit": ours[0], "plain": plain[0]},
        "mean_loss": losses,
        "environment": environment(),
    }


def main(args: Args) -> None:
    result = compare(args)
    name = "training_throughput" + ("" if args.model == "fc5" else f"_{args.model}")
    write_json(args.output / f"{name}.json", result)
    ratio = result["ratio"]
    console.print(f"plain/fit: minimum {ratio['minimum']:.2f}, median {ratio['median']:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Args))
