"""How long a run will take on this machine, from its matrix products and convolutions."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlimit import datasets, models, planning, training
from jaxlimit.lab.settings import RunConfig
from jaxlimit.lab.timing import time_in_turns

CONVOLVED = 0.85  # of what dense layers reach: VGG16, ResNets, measured beside other work
EFFICIENCY = 0.7  # of the matrix rate: what training and products of the committed runs reached
MATMUL_SIZE = 2048
CONVOLUTIONAL = ("alexnet", "vgg16", "resnet18", "resnet50")


class Shape(NamedTuple):
    """Training images, test images, the shape of one, and the number of classes."""

    train: int
    test: int
    image: tuple[int, int, int]
    classes: int


# Known shapes, so that a forecast needs no data; other data sets are loaded.
SHAPES = {
    "digits": Shape(1437, 360, (8, 8, 1), 10),
    "cifar10": Shape(50_000, 10_000, (32, 32, 3), 10),
    "cifar100": Shape(50_000, 10_000, (32, 32, 3), 100),
    "tiny_imagenet/half": Shape(50_000, 10_000, (64, 64, 3), 200),
    "tiny_imagenet/full": Shape(100_000, 10_000, (64, 64, 3), 200),
}


class Forecast(NamedTuple):
    """Seconds of each stage."""

    training: float
    spectrum: float
    sweep: float

    @property
    def total(self) -> float:
        """Return the seconds of all stages."""
        return sum(self)


def forecast(config: RunConfig, rate: float) -> Forecast:
    """Forecast the seconds of one seed, at `rate` operations a second.

    It counts what is traced, the gradient and the linearised product, and takes the greatest
    Lanczos depth; nothing runs. The search for a mask is not in it.
    """
    shape = SHAPES.get(config.dataset) or _loaded(config)
    limit = config.max_images or max(shape.train, shape.test)
    train, test = min(shape.train, limit), min(shape.test, limit)
    if config.images_per_class:
        train = min(train, config.images_per_class * shape.classes)
    rate *= CONVOLVED if config.model in CONVOLUTIONAL else 1
    forward, gradient, product = _flops(config.model, shape.image, shape.classes)
    passes = (2 if config.training.sam_radius else 1) * config.training.epochs
    taylor = min(60, config.num_ratios)
    steps = config.num_steps * config.num_probes + config.num_gap_steps + taylor
    ratios = config.num_ratios + min(20, config.num_ratios)
    return Forecast(
        training=passes * train * gradient / rate,
        spectrum=steps * min(config.hessian_images, train) * product / rate,
        sweep=(ratios * train + config.num_ratios * test) * forward / rate,
    )


def matmul_rate() -> float:
    """Measure the operations a second that a run can expect here, in about half a second."""
    square = jnp.ones((MATMUL_SIZE, MATMUL_SIZE))
    multiply = jax.jit(jnp.matmul)
    taken = time_in_turns({"": lambda: multiply(square, square)}, repeats=3)[""]["minimum"]
    return EFFICIENCY * 2 * MATMUL_SIZE**3 / taken


def in_words(seconds: float) -> str:
    """Write a time in a suitable unit.

    >>> in_words(42), in_words(600), in_words(9000), in_words(400_000)
    ('42 s', '10 min', '2.5 h', '4.6 days')
    """
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


def _loaded(config: RunConfig) -> Shape:
    data = datasets.load(config.dataset, "train", config.data_dir)
    height, width, channels = data.images.shape[1:]
    return Shape(len(data.labels), len(data.labels), (height, width, channels), data.num_classes)


@cache
def _flops(model: str, image: tuple[int, int, int], classes: int) -> tuple[float, float, float]:
    """Count the operations of one image's loss, gradient and linearised product."""
    num = 4
    module: Any = models.create(model, num_classes=classes)
    batch = (jax.ShapeDtypeStruct((num, *image), jnp.float32),
             jax.ShapeDtypeStruct((num,), jnp.int32))  # fmt: skip
    state = dict(jax.eval_shape(module.init, jax.random.key(0), batch[0]))
    params, loss = state.pop("params"), training.make_loss(module)

    def gradient(params, batch, state):
        return jax.grad(loss)(params, batch, state)

    def linear(params, batch, state):
        return jax.linearize(lambda params: gradient(params, batch, state), params)[1]

    product = jax.eval_shape(linear, params, batch, state)
    counted = (
        planning.count_flops(loss, params, batch, state),
        planning.count_flops(gradient, params, batch, state),
        planning.count_flops(lambda product, tangent: product(tangent), product, params),
    )
    forward, of_gradient, of_product = (count / num for count in counted)
    return forward, of_gradient, of_product
