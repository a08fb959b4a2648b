import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import flatten_weights, pruning

RNG = np.random.default_rng(0)


def test_saliency_is_the_rise_by_a_single_removal_on_a_quadratic():
    x, y = RNG.normal(size=(20, 6)), RNG.normal(size=20)
    w = RNG.normal(size=6)
    loss = lambda w: np.mean((x @ w - y) ** 2) / 2  # noqa: E731
    gradient, hessian = x.T @ (x @ w - y) / 20, x.T @ x / 20
    found = pruning.saliency(*(np.float32(a) for a in (w, gradient, np.diag(hessian))))
    expected = [loss(w * (np.arange(6) != i)) - loss(w) for i in range(6)]
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    absolute = pruning.saliency(w, gradient, np.diag(hessian), signed=False)
    np.testing.assert_allclose(absolute, abs(w * gradient) + w**2 * np.diag(hessian) / 2, rtol=1e-5)


def test_saliency_under_jit_and_vmap():
    many = jnp.asarray(RNG.normal(size=(3, 4, 5)), jnp.float32)
    found = jax.jit(jax.vmap(pruning.saliency))(*many)
    expected = np.stack([pruning.saliency(*[m[i] for m in many]) for i in range(4)])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_order_by_scores_with_ties_and_dead():
    scores = jnp.array([1.0, 3.0, 3.0, -2.0, 0.0])
    np.testing.assert_array_equal(pruning.order_by(scores), [2, 0, 1, 4, 3])
    live = jnp.array([True, False, True, True, True])
    np.testing.assert_array_equal(pruning.order_by(scores, live), [1, 4, 0, 3, 2])
    with pytest.raises(ValueError, match="scores must be finite"):
        pruning.order_by(jnp.array([jnp.nan]))


def test_relaxed_orders_by_what_is_removed_and_then_by_gradient():
    relaxed = jnp.array([1.0, 0.0, 0.4, 1.0, 0.0])
    gradient = jnp.array([-2.0, 5.0, 0.0, -1.0, 1.0])
    # First removed: 0 and 3 (z = 1, the smaller gradient first), 2, and of z = 0 then 4 and 1.
    np.testing.assert_array_equal(pruning.order_by_relaxed(relaxed, gradient), [4, 0, 2, 3, 1])


def test_l1_residual_at_and_off_a_minimum():
    """Soft thresholding is the exact minimum of a separable problem."""
    target, l1 = np.array([3.0, -2.0, 0.1, -4.0], np.float32), 0.5
    minimum = np.sign(target) * np.maximum(np.abs(target) - l1, 0)
    at = pruning.l1_residual(minimum - target, minimum, l1)
    assert at.num_support == 3
    np.testing.assert_allclose([at.maximum, at.median, at.ratio], [0, 0, 1], atol=1e-6)
    off = minimum + np.array([0.25, 0, 0, 0.1], np.float32)  # |g| = .25, .5, .6
    off = pruning.l1_residual(off - target, off, l1)
    np.testing.assert_allclose([off.maximum, off.median, off.ratio], [0.5, 0.2, 1.0], rtol=1e-5)
    some = pruning.l1_residual(minimum - target, minimum, l1, support=np.array([1, 0, 0, 0], bool))
    assert some.num_support == 1
    assert np.isnan(pruning.l1_residual(np.ones(2), np.zeros(2), 1.0).median)


def test_masks_in_both_forms_and_by_layer():
    mask = {
        "Dense_0": {"kernel": jnp.array([[True, False], [True, True]]), "bias": jnp.zeros(2, bool)},
        "BatchNorm_0": {"scale": jnp.ones(3, bool)},
        "top": jnp.array([True]),
    }
    params = jax.tree.map(lambda leaf: leaf.astype(float), mask)
    flat = pruning.flat_mask(mask, params)
    np.testing.assert_array_equal(flat, flatten_weights(params)[0] > 0)
    jax.tree.map(np.testing.assert_array_equal, pruning.mask_tree(flat, params), mask)
    for form in (mask, flat):
        assert pruning.kept_by_layer(form, params) == {"Dense_0": (3, 6), "top": (1, 1)}


def test_bad_input():
    with pytest.raises(ValueError, match="diagonal must be flat"):
        pruning.saliency(jnp.ones(2), jnp.ones(2), jnp.ones(3))
    with pytest.raises(ValueError, match="l1 must lie"):
        pruning.l1_residual(jnp.ones(2), jnp.ones(2), 0.0)
    with pytest.raises(ValueError, match="gradient must be flat"):
        pruning.l1_residual(jnp.ones(2), jnp.ones(3), 1.0)
