import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import models, pruning, training

KEY = jax.random.key(0)


def perceptron(params, batch):
    hidden = jax.nn.relu(batch @ params["a"] + params["b"])
    hidden = jax.nn.relu(hidden @ params["c"] + params["d"])
    return jnp.mean((hidden @ params["e"] - batch.sum(-1, keepdims=True)) ** 2)


def network():
    """A net with a unit without a way in, one without a way out, and one below every example."""
    keys = jax.random.split(jax.random.key(1), 4)
    a = jax.random.normal(keys[0], (4, 5))
    c = jax.random.normal(keys[1], (5, 4))
    e = jnp.abs(jax.random.normal(keys[2], (4, 2))) + 0.5
    a = a.at[:, 0].set(0.0)  # no way into hidden unit 0
    c = c.at[1, :].set(0.0)  # no way out of hidden unit 1
    e = e.at[2].set(0.0)  # no way out of unit 2 of the second layer
    d = jnp.array([0.5, 0.5, 0.5, -1e3])  # unit 3 is never on
    params = {"a": a, "b": jnp.zeros(5).at[3].set(0.7), "c": c, "d": d, "e": e}
    dead = jax.tree.map(lambda leaf: leaf == 0, params)
    dead["a"] = dead["a"].at[:, [0, 1]].set(True)
    dead["b"] = dead["b"].at[jnp.array([0, 1])].set(True)
    dead["c"] = dead["c"].at[:, [2, 3]].set(True).at[jnp.array([0, 1])].set(True)
    dead["d"] = dead["d"].at[jnp.array([2, 3])].set(True)
    dead["e"] = dead["e"].at[jnp.array([2, 3])].set(True)
    return params, dead, jax.random.normal(keys[3], (2, 32, 4))


def test_by_hand():
    params, dead, batches = network()
    found = pruning.dead_weights(perceptron, params, batches, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, found, dead)


def test_what_is_numerically_zero_keeps_no_unit_alive():
    params, dead, batches = network()
    tiny = jax.tree.map(
        lambda leaf: leaf + 1e-9 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )
    found = pruning.dead_weights(perceptron, tiny, batches, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, found, dead)


def test_brute_force_over_single_weights_and_the_whole():
    params, _, batches = network()
    found = pruning.dead_weights(perceptron, params, batches, key=KEY)
    examples = batches.reshape(-1, 4)
    dense = perceptron(params, examples)
    without = pruning.apply_mask(params, jax.tree.map(jnp.logical_not, found))
    np.testing.assert_allclose(perceptron(without, examples), dense, rtol=1e-6)
    for name, leaf in params.items():
        for at in np.ndindex(leaf.shape):
            alone = params | {name: leaf.at[at].set(0.0)}
            if not found[name][at]:
                assert abs(perceptron(alone, examples) - dense) > 1e-6 * dense


@pytest.mark.parametrize("activation", [nn.tanh, nn.gelu, nn.relu])
def test_a_constant_unit_is_not_dead(activation):
    """With a way out, a unit without inputs is a bias of the next layer."""
    params = {"b": jnp.array([0.0, 1.0]), "out": jnp.array([2.0, 3.0])}
    loss = lambda w, x: jnp.mean((activation(w["b"]) @ w["out"] - x) ** 2)  # noqa: E731
    found = pruning.dead_weights(loss, params, jnp.ones((1, 4)), key=KEY)
    np.testing.assert_array_equal(found["b"], [True, False])
    np.testing.assert_array_equal(found["out"], [True, False])


def test_a_perfect_fit_is_no_death():
    """All gradients vanish at a loss of 0, curvature does not."""
    x = jnp.eye(3)[None]
    loss = lambda w, batch: jnp.mean((batch @ (w - jnp.array([1.0, 2.0, 0.0]))) ** 2)  # noqa: E731
    found = pruning.dead_weights(loss, jnp.array([1.0, 2.0, 0.0]), x, key=KEY)
    np.testing.assert_array_equal(found, [False, False, True])


def test_flat_here_but_not_all_the_way():
    """Gradient and curvature vanish, and yet the loss without the weight is another."""
    loss = lambda w, batch: jnp.mean(jnp.maximum(1.0 - w * batch, 0.0)) + 1.0  # noqa: E731
    found = pruning.dead_weights(loss, jnp.array([5.0]), jnp.ones((1, 4, 1)), key=KEY)
    assert not found.any()


def test_all_zero_and_none_dead():
    loss = lambda w, batch: jnp.mean((batch @ w - 1.0) ** 2)  # noqa: E731
    x = jax.random.normal(KEY, (1, 16, 3))
    assert pruning.dead_weights(loss, jnp.zeros(3), x, key=KEY).all()
    assert not pruning.dead_weights(loss, jnp.ones(3), x, key=KEY).any()


def test_convolution_and_normalisation():
    """Channels of a VGG that l1 has cut off, with the scale of BatchNorm not under study."""
    module = models.create("vgg16", num_classes=3, stages=((4,), (6,)))
    variables = module.init(KEY, jnp.zeros((1, 8, 8, 1)))
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    kernel = params["ConvNorm_1"]["Conv_0"]["kernel"].at[:, :, 2, :].set(0.0)
    params["ConvNorm_1"]["Conv_0"]["kernel"] = kernel
    images = jax.random.normal(KEY, (2, 6, 8, 8, 1))
    batches = images, jnp.arange(12).reshape(2, 6) % 3
    loss = training.make_loss(module)
    found = pruning.dead_weights(loss, params, batches, state, key=KEY)
    dead = np.asarray(found["ConvNorm_0"]["Conv_0"]["kernel"])
    assert dead[..., 2].all()
    assert not dead[..., [0, 1, 3]].any()
    assert not any(leaf.any() for leaf in jax.tree.leaves(found["ConvNorm_0"]["BatchNorm_0"]))


def test_bad_input():
    loss = lambda w, batch: jnp.mean(batch @ w)  # noqa: E731
    with pytest.raises(ValueError, match="tolerance must lie"):
        pruning.dead_weights(loss, jnp.ones(2), jnp.ones((1, 2, 2)), key=KEY, tolerance=-1.0)
