"""The curvature along every weight from few probes, for a penalty led by the saliency."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from jaxlimit import curvature
from jaxlimit._core.weights import Where, flatten_weights, is_weight
from jaxlimit.training.evaluation import DataLoss


def sensitivity(
    module: Any,
    params: PyTree,
    state: PyTree,
    batch: tuple[Array, Array],
    key: PRNGKeyArray,
    *,
    num_probes: int = 1,
    where: Where = is_weight,
) -> PyTree:
    """Estimate the square root of the curvature along every weight from one batch, r = √(h/h̄).

    h is the diagonal of the Gauss-Newton matrix of the mean cross-entropy in evaluation mode,
    estimated by probes (`curvature.diagonal`), and h̄ its mean over the weights under study. So
    r²w²/2 is the saliency up to a common factor. A probe costs a backward pass. E r² is exact; with
    one probe, E r is about √(2/π) of √(h/h̄), the same for all weights. Works under `jit` and
    `vmap`.

    Args:
        module: the network, as `fit` takes it.
        params: its parameters.
        state: its other variables, `{}` if none.
        batch: images, normalised, and labels.
        key: random key of the probes.
        num_probes: number of probes to average.
        where: which leaves are under study.

    Returns:
        A pytree like `params`; 1 where a leaf is not under study, and everywhere if h is 0.

    >>> def forward(params, state, images, *, train, key):
    ...     return images.reshape(len(images), -1) @ params["kernel"], state
    >>> batch = jnp.ones((1, 1, 1, 1)), jnp.array([0])
    >>> found = sensitivity(
    ...     forward, {"kernel": jnp.zeros((1, 2))}, {}, batch, jax.random.key(0))
    >>> found["kernel"]  # the output's Hessian is the same for both classes
    Array([[1., 1.]], dtype=float32)

    LeCun, Denker, Solla (1990) for the saliency; Martens, Sutskever, Swersky (2012).
    """
    inputs, labels = batch
    one = (inputs[None], labels[None])  # a batch of batches
    found = curvature.diagonal(
        DataLoss(module), params, one, state, num_probes=num_probes, key=key, where=where
    )
    # In units of the largest entry, so the mean neither under- nor overflows.
    peak = found.max(initial=0)
    found = found / jnp.where(peak > 0, peak, 1)
    relative = jnp.where(peak > 0, jnp.sqrt(found / found.mean()), 1)
    _, unflatten = flatten_weights(jax.tree.map(jnp.ones_like, params), where)
    return unflatten(relative.astype(found.dtype))
