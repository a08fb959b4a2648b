"""Diagonals against dense matrices made by hand, and split losses against their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_problems import (
    BATCHES,
    GAUSS_NEWTON,
    JACOBIAN,
    MLP,
    MLP_DIM,
    NET_BATCHES,
    OUTPUT_GRADIENT,
    SCALE,
    TARGETS,
    Net,
    X,
    assert_close,
    dense,
    make_net,
    mlp_logits,
    mlp_loss,
    output_loss,
    ragged,
)

from jaxlimit import curvature, training
from jaxlimit.curvature._squares import Dense

LOSS = curvature.split_loss(mlp_logits, output_loss)
GRADIENTS = np.einsum("na,nai->ni", OUTPUT_GRADIENT, JACOBIAN)
FISHER = (GRADIENTS**2).mean(0)


def test_a_split_loss_is_its_parts_put_together():
    batch = BATCHES[0]
    assert LOSS(MLP, batch, SCALE) == mlp_loss(MLP, batch, SCALE)
    assert curvature.split_loss(mlp_logits, output_loss) == LOSS
    vector = jnp.arange(MLP_DIM, dtype=jnp.float32)
    one = curvature.gauss_newton_matvec(LOSS, MLP, BATCHES, SCALE)
    two = curvature.gauss_newton_matvec(mlp_logits, output_loss, MLP, BATCHES, SCALE)
    np.testing.assert_array_equal(one(vector), two(vector))


def test_the_loss_of_training_is_split():
    params, state = make_net()
    loss = training.make_loss(lambda p, s, x, train, key: (Net().apply({"params": p, **s}, x), s))
    assert isinstance(loss, curvature.Split)
    batch = jax.tree.map(lambda leaf: leaf[0], NET_BATCHES)
    parts = loss.output_loss(loss.apply(params, batch, state), batch)
    np.testing.assert_allclose(loss(params, batch, state), parts, rtol=1e-6)


@pytest.mark.parametrize("memory_budget", [0, 600, 4000, 2**30])
def test_the_exact_diagonal_is_that_of_the_dense_matrix(memory_budget):
    """From a row at a time to all of a batch: budgets that cut columns, examples and neither."""
    found = curvature.diagonal(LOSS, MLP, BATCHES, SCALE, memory_budget=memory_budget)
    assert_close(found, np.diag(GAUSS_NEWTON))


def test_the_exact_fisher_diagonal():
    found = curvature.diagonal(mlp_loss, MLP, BATCHES, SCALE, matrix="fisher")
    assert_close(found, FISHER)


@pytest.mark.parametrize(
    ("loss", "truth", "settings"),
    [(LOSS, np.diag(GAUSS_NEWTON), {}), (mlp_loss, FISHER, {"matrix": "fisher"})],
)
def test_probes_have_no_bias_and_are_never_negative(loss, truth, settings):
    @jax.vmap
    def estimate(key):
        settings_ = {"num_probes": 3, "key": key, **settings}
        return curvature.diagonal(loss, MLP, BATCHES, SCALE, **settings_)

    found = np.asarray(estimate(jax.random.split(jax.random.key(0), 200)), float)
    assert (found >= 0).all()
    standard_error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (standard_error > 0).all()
    errors = (found.mean(0) - truth) / standard_error
    # 21 correlated t values: the largest beyond 4 has a probability of about 2e-3.
    assert np.abs(errors).max() < 4
    assert 0.5 < np.sqrt((errors**2).mean()) < 2


def test_a_network_with_state_norms_masks_and_stacked_batches():
    params, state = make_net()

    def apply(params, batch, state):
        return Net().apply({"params": params, **state}, batch[0])

    loss = curvature.split_loss(apply, output_loss)
    for where in (curvature.is_weight, curvature.every_leaf):
        found = curvature.diagonal(loss, params, NET_BATCHES, state, where=where)
        matvec = curvature.gauss_newton_matvec(loss, params, NET_BATCHES, state, where=where)
        assert_close(found, np.diag(dense(matvec, found.size)))
    mask = np.arange(found.size) % 3 == 0
    masked = curvature.diagonal(
        loss, params, NET_BATCHES, state, where=curvature.every_leaf, mask=mask
    )
    np.testing.assert_array_equal(masked, found[mask])


def test_outputs_of_any_structure():
    """Two heads, one a matrix an example: the output Hessian couples them."""

    def apply(w, batch):
        hidden = jnp.tanh(batch[0] * w)
        return {"one": hidden.sum(1), "two": jnp.stack([hidden, hidden**2], 2)}

    def couple(outputs, batch):
        joined = jnp.exp(outputs["one"] + outputs["two"].sum((1, 2)))
        return (joined + (outputs["two"] ** 2).sum((1, 2)) * batch[1][:, 0] ** 2).mean()

    w, batches = jnp.array([0.5, -1.0, 0.3, 0.0]), ragged(X, TARGETS)
    loss = curvature.split_loss(apply, couple)
    matrix = dense(curvature.gauss_newton_matvec(loss, w, batches), 4)
    assert_close(curvature.diagonal(loss, w, batches), np.diag(matrix))


def test_under_jit_with_operands_and_key_traced():
    @jax.jit
    def run(params, scale, key):
        return curvature.diagonal(LOSS, params, BATCHES, scale, num_probes=2, key=key)

    eager = curvature.diagonal(LOSS, MLP, BATCHES, SCALE, num_probes=2, key=jax.random.key(3))
    np.testing.assert_allclose(run(MLP, SCALE, jax.random.key(3)), eager, rtol=1e-5)


def test_in_float64():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), MLP)
        batches = [(x.astype(np.float64), labels) for x, labels in BATCHES]
        found = curvature.diagonal(LOSS, params, batches, SCALE.astype(np.float64))
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, np.diag(GAUSS_NEWTON), rtol=1e-10)


def test_confident_examples_are_no_breach_of_convexity():
    confident = jax.tree.map(lambda leaf: 6 * leaf, MLP)
    found = curvature.diagonal(LOSS, confident, BATCHES, SCALE)
    matvec = curvature.gauss_newton_matvec(LOSS, confident, BATCHES, SCALE)
    assert_close(found, np.diag(dense(matvec, MLP_DIM)))


@pytest.mark.parametrize("cuts", [(2, 4), (2, 2, 2)])
def test_each_example_has_signs_of_its_own(cuts):
    """Of a linear model with one output, a probe is the square of the signed sum of a batch."""
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    loss = curvature.split_loss(lambda w, x: x @ w, lambda y, x: 0.5 * jnp.mean(y**2))

    def of_probe(probe):
        keys = [jax.random.fold_in(probe, n) for n in range(6)]
        signs = np.stack([jax.random.rademacher(key, (1,), float) for key in keys])
        parts = np.split(x * signs, np.cumsum(cuts)[:-1])
        return sum(part.sum(0) ** 2 for part in parts) / 6

    batches = [jnp.asarray(part) for part in np.split(x, np.cumsum(cuts)[:-1])]
    batches = jnp.stack(batches) if len(set(cuts)) == 1 else batches
    for key in jax.random.split(jax.random.key(3), 4):
        found = curvature.diagonal(loss, jnp.zeros(3), batches, num_probes=2, key=key)
        wanted = np.mean([of_probe(probe) for probe in jax.random.split(key, 2)], 0)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_how_negative_an_output_curvature_may_be():
    """A hundred units of rounding count as none, ten thousand as a loss that is not convex."""

    def diagonal(bend):
        output_loss = lambda y, x: 0.5 * jnp.mean(y[:, 0] ** 2 + bend * y[:, 1] ** 2)  # noqa: E731
        loss = curvature.split_loss(lambda w, x: x @ w, output_loss)
        return curvature.diagonal(loss, jnp.zeros((3, 2)), jnp.ones((1, 4, 3)))

    np.testing.assert_allclose(diagonal(-1e-5), [1, 0, 1, 0, 1, 0], rtol=1e-6)
    with pytest.raises(FloatingPointError, match="convex"):
        diagonal(-1e-3)


def test_bad_input():
    run = curvature.diagonal
    with pytest.raises(TypeError, match="split_loss"):
        run(mlp_loss, MLP, BATCHES, SCALE)
    with pytest.raises(TypeError, match="split_loss"):
        curvature.gauss_newton_matvec(mlp_loss, MLP, BATCHES, SCALE)
    with pytest.raises(TypeError, match="output_loss must be callable"):
        curvature.split_loss(mlp_logits, None)
    with pytest.raises(ValueError, match="key must be given"):
        run(LOSS, MLP, BATCHES, SCALE, num_probes=2)
    with pytest.raises(ValueError, match="num_probes must be at least 1"):
        run(LOSS, MLP, BATCHES, SCALE, num_probes=0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="matrix must be one of"):
        run(LOSS, MLP, BATCHES, SCALE, matrix="hessian")
    with pytest.raises(ValueError, match="memory_budget"):
        run(LOSS, MLP, BATCHES, SCALE, memory_budget=-1)
    summed = curvature.split_loss(lambda w, b: (b[0] @ w).sum(), lambda y, b: y)
    with pytest.raises(ValueError, match="first axis of 4 examples"):
        run(summed, jnp.ones(4), BATCHES)
    concave = curvature.split_loss(mlp_logits, lambda y, b: -jnp.mean(y**2))
    with pytest.raises(FloatingPointError, match="convex"):
        run(concave, MLP, BATCHES, SCALE)


def test_which_leaves_need_no_gradient_of_each_example():
    """Dense kernels and biases; not convolutions, products over more than examples, shared ones."""
    rng = np.random.default_rng(1)
    shapes = {"dense": (4, 3), "bias": (3,), "tied": (3, 3), "mixed": (4, 2), "scale": ()}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x = rng.normal(size=(6, 5, 4)).astype(np.float32)

    def apply(p, x):
        mixed = (x @ p["mixed"]).sum((1, 2))[:, None]
        hidden = jnp.tanh(x[:, 0] @ p["dense"] + p["bias"])
        return jnp.tanh(hidden @ p["tied"]) @ p["tied"].T + p["scale"] * hidden + mixed

    leaves, treedef = jax.tree.flatten(params)

    def backward(cotangent, leaves, batch):
        def outputs(leaves):
            return apply(jax.tree.unflatten(treedef, leaves), batch)

        return jax.vjp(outputs, leaves)[1](cotangent)[0]

    found = Dense(backward, jnp.ones((6, 3)), leaves, x).endings
    is_quick = jax.tree.unflatten(treedef, [ending is not None for ending in found])
    assert is_quick == {"bias": True, "dense": True, "mixed": False, "scale": False, "tied": False}
    loss = curvature.split_loss(apply, lambda y, b: jnp.mean(jax.nn.logsumexp(y, -1)))
    matrix = dense(curvature.gauss_newton_matvec(loss, params, x[None]), 33)
    assert_close(curvature.diagonal(loss, params, x[None]), np.diag(matrix))
