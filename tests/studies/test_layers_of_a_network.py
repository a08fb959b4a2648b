"""Layers of a trained network: counts add up, and each is what its own `where=` gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import curvature, limits, spectrum
from jaxlimit.pruning import layer_masks
from jaxlimit.studies import layer_limits


def network():
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        "first": {"bias": 0.1 * jnp.ones(8), "kernel": jax.random.normal(keys[0], (6, 8))},
        "norm": {"scale": jnp.ones(8)},
        "last": {"kernel": jax.random.normal(keys[1], (8, 3))},
    }
    batches = (jax.random.normal(keys[2], (2, 32, 6)), jax.random.normal(keys[3], (2, 32, 3)))

    def loss(p, batch):
        x, y = batch
        hidden = jnp.tanh(x @ p["first"]["kernel"] + p["first"]["bias"]) * p["norm"]["scale"]
        return jnp.mean((hidden @ p["last"]["kernel"] - y) ** 2)

    return loss, params, batches, keys[4]


def test_masks_cover_every_weight_once():
    _, params, _, _ = network()
    masks = layer_masks(params)
    assert {name: mask.sum() for name, mask in masks.items()} == {"first": 56, "last": 24}
    assert (sum(mask.astype(int) for mask in masks.values()) == 1).all()


def test_a_layer_is_as_by_its_own_where():
    loss, params, batches, key = network()
    found = layer_limits(loss, params, batches, epsilon=0.5, key=key, num_steps=56)
    f = lambda x: jnp.abs(x) / (jnp.abs(x) + 0.1)  # noqa: E731
    assert found.limits.num_kept == sum(int(x.num_kept) for x in found.limits.limits.values())
    np.testing.assert_allclose(sum(found.limits.epsilons.values()), 0.5, rtol=1e-5)
    for name, size in found.sizes.items():
        own = lambda path, leaf, name=name: path.startswith(name)  # noqa: E731
        alone = curvature.hessian_matvec(loss, params, batches, where=own)
        exact = spectrum.exact_measure(jnp.linalg.eigvalsh(jax.vmap(alone)(jnp.eye(size))))
        estimate = spectrum.trace_bracket(found.measures[name], f)
        truth = float(spectrum.trace_function(exact, f).value)
        assert estimate.lower <= truth <= estimate.upper
        share = found.limits.epsilons[name]
        limit = limits.pruning_limit(exact, {name: params[name]}, share)
        assert abs(int(limit.num_kept) - int(found.limits.limits[name].num_kept)) <= 0.15 * size


def test_nothing_selected_is_refused():
    loss, params, batches, key = network()
    with pytest.raises(ValueError, match="where"):
        layer_limits(loss, params, batches, epsilon=1.0, key=key, where=lambda *_: False)
