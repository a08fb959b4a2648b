"""Refitting kept weights on the true loss, against least squares and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxlimit import curvature, pruning


def softmax_problem():
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(60, 5)), rng.integers(0, 3, 60)
    logits = lambda w, batch: batch[0] @ w  # noqa: E731

    def output_loss(logits, batch):
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(logits)), batch[1]])

    batches = jnp.asarray(x[None], jnp.float32), jnp.asarray(labels[None])
    w = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    return curvature.split_loss(logits, output_loss), w, batches, x, labels


@pytest.mark.parametrize("split", [True, False])
def test_the_least_of_a_softmax_over_a_support(split):
    loss, w, batches, x, labels = softmax_problem()
    mask = np.random.default_rng(2).random((5, 3)) < 0.6
    if not split:
        whole, loss = loss, lambda w, batch: whole(w, batch)
    found = pruning.refit(loss, w, batches, mask=jnp.asarray(mask), num_rounds=40, tolerance=0)

    def negative(flat):
        full = np.zeros((5, 3))
        full[mask] = flat
        logits = x @ full
        logits -= logits.max(1, keepdims=True)
        return -np.mean((logits - np.log(np.exp(logits).sum(1, keepdims=True)))[range(60), labels])

    truth = scipy.optimize.minimize(negative, np.zeros(mask.sum()), tol=1e-10)
    np.testing.assert_allclose(found.loss, truth.fun, rtol=1e-5)
    assert not np.asarray(found.params)[~mask].any()
    assert np.all(np.diff(found.losses) < 0)
    assert found.num_products > 0


def test_what_can_not_fall_stays():
    loss, w, batches, *_ = softmax_problem()
    nothing = jnp.zeros((5, 3), bool)
    found = pruning.refit(loss, w, batches, mask=nothing)
    np.testing.assert_array_equal(found.params, 0)
    np.testing.assert_allclose(found.losses, [np.log(3)], rtol=1e-6)
    none = pruning.refit(loss, w, batches, mask=~nothing, num_rounds=0)
    np.testing.assert_array_equal(none.params, w)


def test_leaves_out_of_study_stay_and_a_loss_that_is_not_finite_is_told():
    loss = lambda p, batch: jnp.mean((batch @ p["kernel"] + p["scale"]) ** 2)  # noqa: E731
    params = {"kernel": jnp.ones(2), "scale": jnp.ones(())}
    batches = jnp.asarray(np.random.default_rng(0).normal(size=(1, 9, 2)), jnp.float32)
    mask = {"kernel": jnp.array([True, False]), "scale": jnp.array(True)}
    where = lambda name, leaf: name == "kernel"  # noqa: E731
    found = pruning.refit(loss, params, batches, mask=mask, where=where, num_rounds=20)
    column = np.asarray(batches[0, :, 0])
    np.testing.assert_allclose(
        found.params["kernel"], [-column.sum() / (column**2).sum(), 0], rtol=1e-3
    )
    assert found.params["scale"] == 1
    with pytest.raises(FloatingPointError, match="loss must be finite"):
        pruning.refit(loss, params, batches * jnp.inf, mask=mask, where=where)
