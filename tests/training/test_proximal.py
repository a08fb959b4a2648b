"""Proximal steps against closed forms, coordinate descent, and the conditions of an l1 minimum."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import pruning, training

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 8)) * 10 ** RNG.uniform(-0.7, 0, 8)
Y = X @ RNG.normal(size=8) + RNG.normal(size=40)
BATCHES = [(jnp.asarray(X[i : i + 15], jnp.float32), jnp.asarray(Y[i : i + 15], jnp.float32))
           for i in (0, 15, 30)]  # fmt: skip
LARGEST = float(np.linalg.eigvalsh(X.T @ X / 40)[-1])


def loss(params, batch):
    return 0.5 * jnp.mean((batch[0] @ params["kernel"] + params["norm"]["scale"] - batch[1]) ** 2)


def start():
    return {"kernel": jnp.full(8, 0.3), "norm": {"scale": jnp.array(0.0)}}


def lasso(l1):
    """Coordinate descent in float64."""
    w, h, b = np.zeros(8), X.T @ X / 40, X.T @ Y / 40
    for _ in range(2000):
        for i in range(8):
            r = b[i] - h[i] @ w + h[i, i] * w[i]
            w[i] = np.sign(r) * max(abs(r) - l1, 0) / h[i, i]
    return w


@pytest.mark.parametrize(("accelerate", "rate"), [(True, 1.0), (False, 1.9)])
def test_they_end_at_the_lasso(accelerate, rate):
    l1 = 0.1
    settings = {"l1": l1, "rate": rate / LARGEST, "accelerate": accelerate}
    found = training.proximal_steps(loss, start(), BATCHES, num_steps=1500, **settings)
    expected = lasso(l1)
    assert 0 < (expected == 0).sum() < 8
    np.testing.assert_allclose(found.params["kernel"], expected, atol=2e-5)
    np.testing.assert_array_equal(found.params["kernel"] == 0, expected == 0)
    assert found.params["norm"]["scale"] == 0  # no weight under study
    residual = pruning.l1_residual(found.gradient, found.params["kernel"], l1)
    assert residual.maximum < 1e-4


def test_plain_steps_by_hand_and_never_uphill():
    l1, rate = 0.05, 1.5 / LARGEST
    w = np.full(8, 0.3)
    values = []
    for _ in range(6):
        values.append(0.5 * np.mean((X @ w - Y) ** 2))
        moved = w - rate * (X.T @ (X @ w - Y)) / 40
        w = np.sign(moved) * np.maximum(np.abs(moved) - rate * l1, 0)
    settings = {"l1": l1, "rate": rate, "num_steps": 6, "accelerate": False}
    found = training.proximal_steps(loss, start(), BATCHES, **settings)
    np.testing.assert_allclose(found.params["kernel"], w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.loss, values, rtol=1e-4)
    np.testing.assert_allclose(found.gradient, X.T @ (X @ w - Y) / 40, rtol=1e-3, atol=1e-6)


def test_no_steps_and_bad_input():
    found = training.proximal_steps(loss, start(), BATCHES, l1=0.1, rate=1.0, num_steps=0)
    jax.tree.map(np.testing.assert_array_equal, found.params, start())
    for name, wrong in {"l1": -1.0, "rate": 0.0, "num_steps": -1}.items():
        settings: dict[str, Any] = {"l1": 0.1, "rate": 1.0, "num_steps": 1} | {name: wrong}
        with pytest.raises(ValueError, match=name):
            training.proximal_steps(loss, start(), BATCHES, **settings)
