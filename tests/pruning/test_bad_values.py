"""Values of other kinds are refused by name where they once gave a number."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import pruning

NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: pruning.hoeffding_bentkus(NAN, 0.1, 10), "means"),
        (lambda: pruning.hoeffding_bentkus("x", 0.1, 10), "means"),
        (lambda: pruning.hoeffding_bentkus(0.1, 2.0, 10), "level"),
        (lambda: pruning.hoeffding_bentkus(0.1, 0.2, -3), "num_examples"),
        (
            lambda: pruning.guaranteed_ratio(
                1j * np.ones(500), np.ones((1, 500)), [0.5], epsilon=0.1, bounds=(0, 1)
            ),
            "dense_losses",
        ),
        (lambda: pruning.order_by_relaxed(jnp.array([NAN, 0.0]), jnp.ones(2)), "relaxed"),
        (lambda: pruning.kept_by_layer({"a": jnp.array([2, 3])}, {"a": jnp.ones(2)}), "mask"),
        (lambda: pruning.flat_mask(jnp.array([NAN, 1.0]), jnp.ones(2)), "mask"),
        (lambda: pruning.flat_mask(jnp.ones(3, bool), {"a": jnp.ones(2)}), "mask"),
        (lambda: pruning.mask_tree(jnp.ones(3, bool), {"a": jnp.ones(2)}), "mask"),
        (lambda: pruning.order_by(jnp.ones(3), jnp.array([NAN, 0, 1])), "live"),
        (lambda: pruning.order_by(jnp.ones(3), jnp.ones(2, bool)), "live"),
        (lambda: pruning.order_by_relaxed(jnp.ones(3), jnp.ones(2)), "gradient"),
        (
            lambda: pruning.magnitude_sweep(
                lambda w, x: jnp.mean(x @ w), jnp.ones(2), jnp.ones((1, 2, 2)), ["a"]
            ),
            "ratios",
        ),
    ],
)
def test_it_is_named(call, named):
    with pytest.raises((TypeError, ValueError), match=named):
        call()
