"""The one call into a network: a Linen module, or a function of parameters and state."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from jaxlimit.training.data import Normalization, normalize


def forward(
    module: Any,
    params: PyTree,
    state: PyTree,
    images: Float[Array, "n h w c"],
    *,
    train: bool,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "n classes"], PyTree]:
    """Return the logits, in float32 or wider, and the state after the call."""
    if isinstance(module, nn.Module):
        mutable = list(state) if train else []
        rngs = {} if key is None else {"dropout": key}
        logits, changed = module.apply(
            {"params": params, **state}, images, train=train, mutable=mutable, rngs=rngs
        )
        state = changed if train else state
    else:
        logits, state = module(params, state, images, train=train, key=key)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), state


def score(
    module: Any,
    params: PyTree,
    state: PyTree,
    batch: tuple[Shaped[Array, "n h w c"], Int[Array, " n"]],
    normalization: Normalization | None,
    **mode: Any,
) -> tuple[Float[Array, " n"], Bool[Array, " n"], PyTree]:
    """Return each example's cross-entropy, whether it is correct, and the state."""
    images, labels = batch
    if normalization is not None:
        images = normalize(images, normalization)
    logits, state = forward(module, params, state, images, **mode)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, logits.argmax(-1) == labels, state


def check_labels(
    module: Any, params: PyTree, state: PyTree, images: Shaped[Array, "n h w c"], labels: Any
) -> None:
    """Raise unless every label is the index of a logit; runs nothing of the network."""
    one = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    logits, _ = jax.eval_shape(
        lambda p, s, x: forward(module, p, s, x, train=False), params, state, one
    )
    if len(logits.shape) != 2:
        raise ValueError(f"module must return logits [n, classes], got shape {logits.shape}")
    low, high = int(np.min(labels)), int(np.max(labels))
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"dataset labels must lie in 0..{logits.shape[1] - 1}, one for each of the network's "
            f"{logits.shape[1]} logits, got {low}..{high}"
        )
