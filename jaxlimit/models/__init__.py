"""The Flax Linen zoo by name: networks of the paper's tables, a small transformer, a small CNN.

`create` makes a module; the rest of the package takes a `loss(params, batch, *operands)`, the mean
over the examples of the batch. Model state, such as BatchNorm's running statistics, is an operand:

>>> import jax, jax.numpy as jnp, optax
>>> net = create("vgg16", num_classes=10, stages=((4,),))
>>> batch = jnp.ones((2, 8, 8, 3)), jnp.array([3, 7])
>>> variables = net.init(jax.random.key(0), batch[0])
>>> def loss(params, batch, batch_stats):
...     images, labels = batch
...     logits = net.apply({"params": params, "batch_stats": batch_stats}, images)
...     return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
>>> loss(variables["params"], batch, variables["batch_stats"]).shape
()

`jaxlimit.curvature.hessian_matvec(loss, params, batches, batch_stats)` is then its Hessian. Without
`train=True` a net is deterministic and BatchNorm uses the running statistics. A net without
BatchNorm has only `params`, so its loss is `loss(params, batch)`.
"""

import difflib
import functools
from typing import Any

from jaxlimit._core.extras import require

require("flax", "train", __name__)

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxlimit._core.checks import check_count
from jaxlimit.models.alexnet import AlexNet
from jaxlimit.models.cnn import CNN
from jaxlimit.models.mlp import FC3_WIDTHS, FC5_WIDTHS, FC12_WIDTHS, MLP
from jaxlimit.models.resnet import ResNet
from jaxlimit.models.vgg import VGG
from jaxlimit.models.vit import ViT

_REGISTRY = {
    "fc5": functools.partial(MLP, widths=FC5_WIDTHS),
    "fc12": functools.partial(MLP, widths=FC12_WIDTHS),
    "fc3": functools.partial(MLP, widths=FC3_WIDTHS),
    "alexnet": AlexNet,
    "vgg16": VGG,
    "resnet18": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2)),
    "resnet50": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True),
    "vit": ViT,
    "cnn": CNN,
}


def names() -> tuple[str, ...]:
    """Return the names that `create` knows.

    >>> names()
    ('fc5', 'fc12', 'fc3', 'alexnet', 'vgg16', 'resnet18', 'resnet50', 'vit', 'cnn')
    """
    return tuple(_REGISTRY)


def create(
    name: str, *, num_classes: int, dtype: DTypeLike = jnp.float32, **fields: Any
) -> nn.Module:
    """Make a net of the zoo; its own `init` makes the parameters.

    Args:
        name: one of `names()`.
        num_classes: number of logits.
        dtype: precision of the arithmetic; parameters stay float32, logits are at least float32.
        **fields: other fields of the module, such as `widths`.

    Returns:
        A module with `__call__(images [N, H, W, C], *, train=False) -> logits [N, num_classes]`.

    Raises:
        ValueError: if `name` is unknown (names the nearest) or `num_classes` is below 1.
        TypeError: if `num_classes` is no integer, `dtype` is not floating, or a field is unknown.

    >>> import jax, jax.numpy as jnp
    >>> net = create("fc5", num_classes=10)
    >>> params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    3885010
    """
    if name not in _REGISTRY:
        nearest = difflib.get_close_matches(str(name), _REGISTRY, n=1, cutoff=0.0)[0]
        known = ", ".join(_REGISTRY)
        raise ValueError(f"name must be one of {known}, got {name!r}: did you mean {nearest!r}?")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating dtype, got {dtype!r}")
    num_classes = check_count("num_classes", num_classes)
    return _REGISTRY[name](num_classes=num_classes, dtype=dtype, **fields)
