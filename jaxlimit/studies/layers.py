"""Layer by layer: the spectrum of each layer's block, and the tolerance divided among them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxlimit import curvature, limits, spectrum
from jaxlimit._core.checks import check_key, check_known
from jaxlimit._core.masks import layer_masks
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, flatten_weights, is_weight
from jaxlimit.limits import LayerLimits
from jaxlimit.limits.tolerance import check_mean
from jaxlimit.spectrum import SpectralMeasure


class LayerStudy(NamedTuple):
    """The limits of the layers of a network.

    Attributes:
        limits: each layer's limit at its share of ε.
        measures: the spectrum of each layer's block of the Hessian.
        sizes: weights of each layer.
    """

    limits: LayerLimits
    measures: dict[str, SpectralMeasure]
    sizes: dict[str, int]


@takes_mesh
def layer_limits(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    epsilon: Any,
    key: PRNGKeyArray,
    where: Where = is_weight,
    num_steps: int = 64,
    num_probes: int = 1,
    mesh: Mesh | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LayerStudy:
    """Predict how far each layer can be pruned, with ε divided to keep the fewest weights.

    One operator and one compiled program serve all layers (`spectrum.block_measures`);
    `limits.by_layer` divides ε. Costs num_steps · num_probes products a layer.

    Args:
        loss: see `curvature.hessian_matvec`.
        params: trained weights.
        batches: see `curvature.hessian_matvec`.
        *operands: passed on to `loss`.
        epsilon: ε of the whole network, as from `limits.loss_tolerance`; a number or an `Estimate`.
        key: random key of the probes.
        where: which leaves are weights under study.
        num_steps: Lanczos steps a probe.
        num_probes: probes a layer.
        mesh: devices that share examples and vectors; each layer's block is then an operator of its
            own.
        on_progress: called as `on_progress(layers_done, layers)`.

    Returns:
        A `LayerStudy`.

    Raises:
        TypeError: as `curvature.hessian_matvec` and `spectrum.block_measures`.
        ValueError: as those and `limits.by_layer`, or if the loss is a sum over a batch's examples.
        FloatingPointError: if a product was not finite.

    >>> import jax, jax.numpy as jnp
    >>> loss = lambda p, x: jnp.mean(jnp.tanh(jnp.tanh(x @ p["a"]["w"]) @ p["b"]["w"]) ** 2)
    >>> params = {"a": {"w": 0.5 * jnp.ones((3, 4))}, "b": {"w": 0.5 * jnp.ones((4, 2))}}
    >>> batches = jax.random.normal(jax.random.key(0), (2, 8, 3))
    >>> found = layer_limits(loss, params, batches, epsilon=0.1, key=jax.random.key(1))
    >>> found.sizes
    {'a': 12, 'b': 8}
    """
    check_key("key", key)
    check_known("layer_limits", key=key, params=params)
    check_mean(loss, params, batches, *operands, mesh=mesh)
    matvec = curvature.hessian_matvec(loss, params, batches, *operands, where=where, mesh=mesh)
    vector, _ = flatten_weights(params, where)
    masks = layer_masks(params, where)
    measures = spectrum.block_measures(
        matvec, key, masks, num_steps=num_steps, num_probes=num_probes, on_progress=on_progress
    )
    flat = np.asarray(vector)
    weights = {name: jax.numpy.asarray(flat[mask]) for name, mask in masks.items()}
    shares = limits.by_layer(measures, weights, epsilon=epsilon)
    return LayerStudy(shares, measures, {name: int(mask.sum()) for name, mask in masks.items()})
