"""A model from anywhere becomes `loss(params, batch, *operands)`, as in the README."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxlimit import curvature, estimate_limit, flatten_weights, pruning

NUM_BATCHES, BATCH, FEATURES, CLASSES = 2, 5, 4, 3


@pytest.fixture
def batches():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((NUM_BATCHES, BATCH, FEATURES)).astype(np.float32)
    return jnp.asarray(inputs), jnp.asarray(rng.integers(CLASSES, size=(NUM_BATCHES, BATCH)))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def check_against_dense_hessian(loss, params, batches, *operands):
    """Compare every column with `jax.hessian` over all examples at once, in float32."""
    vector, unflatten = flatten_weights(params)
    examples = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)
    dense = jax.jit(jax.hessian(lambda w: loss(unflatten(w), examples, *operands)))(vector)
    matvec = curvature.hessian_matvec(loss, params, batches, *operands)
    columns = jax.jit(jax.vmap(matvec))(jnp.eye(vector.size))
    assert jnp.abs(dense).max() > 1e-2
    np.testing.assert_allclose(columns, dense, rtol=0, atol=1e-5 * float(jnp.abs(dense).max()))
    check_sweep(loss, params, examples, batches, *operands)
    return vector.size


def check_sweep(loss, params, examples, batches, *operands):
    """Prune half of the weights by a sort in NumPy."""
    vector, unflatten = flatten_weights(params)
    order = np.argsort(-np.abs(np.asarray(vector)), kind="stable")
    pruned = np.asarray(vector).copy()
    pruned[order[int(np.floor(vector.size / 2 + 0.5)) :]] = 0
    sweep = pruning.magnitude_sweep(loss, params, batches, [0.5, 1.0], *operands)
    expected = [loss(unflatten(jnp.asarray(w)), examples, *operands) for w in (pruned, vector)]
    np.testing.assert_allclose(sweep.losses, expected, rtol=1e-5)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="bn_init")(nn.Dense(3)(x))
        return nn.Dense(CLASSES)(nn.tanh(x))


def test_linen_module_with_batch_statistics(batches):
    net = LinenNet()
    variables = net.init(jax.random.key(0), batches[0][0])

    def loss(params, batch, batch_stats):
        inputs, labels = batch
        logits = net.apply({"params": params, "batch_stats": batch_stats}, inputs)
        return cross_entropy(logits, labels)

    statistics = jax.tree.map(lambda s: s + 0.5, variables["batch_stats"])
    dim = check_against_dense_hessian(loss, variables["params"], batches, statistics)
    assert dim == (4 + 1) * 3 + (3 + 1) * 3  # BatchNorm's own scale and shift are not under study


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(FEATURES, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(3, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.tanh(self.norm(self.hidden(x)))))


def test_nnx_model(batches):
    model = NNXNet(nnx.Rngs(0))
    model.eval()
    definition, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, batch, rest):
        inputs, labels = batch
        return cross_entropy(nnx.merge(definition, params, rest)(inputs), labels)

    dim = check_against_dense_hessian(loss, params, batches, rest)
    assert dim == (4 + 1) * 3 + (3 + 1) * 3


def test_equinox_module(batches):
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(FEATURES, CLASSES, 3, 2, activation=jax.nn.tanh, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, batch):
        inputs, labels = batch
        return cross_entropy(jax.vmap(eqx.combine(params, static))(inputs), labels)

    dim = check_against_dense_hessian(loss, params, batches)
    assert dim == (4 + 1) * 3 + (3 + 1) * 3 + (3 + 1) * 3


def test_bare_function(batches):
    rng = np.random.default_rng(1)
    params = {
        "hidden": jnp.asarray(rng.standard_normal((FEATURES, 3)), jnp.float32),
        "out": jnp.asarray(rng.standard_normal((3, CLASSES)), jnp.float32),
    }

    def loss(params, batch):
        inputs, labels = batch
        return cross_entropy(jnp.tanh(inputs @ params["hidden"]) @ params["out"], labels)

    assert check_against_dense_hessian(loss, params, batches) == 4 * 3 + 3 * 3


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float8_e4m3fn, bool])
def test_a_frozen_base_may_be_of_any_type(batches, dtype):
    """An adapter on a quantised base: the curvature is that on the same base in float32."""
    rng = np.random.default_rng(2)
    base = jnp.asarray(rng.integers(0, 2, (FEATURES, CLASSES))).astype(dtype)
    adapter = jnp.asarray(rng.standard_normal((FEATURES, CLASSES)), jnp.float32)

    def loss(params, batch):
        inputs, labels = batch
        weight = params["base"].astype(jnp.float32) + params["adapter"]
        return cross_entropy(inputs @ weight, labels)

    params = {"adapter": adapter, "base": base}
    settings = {"where": lambda name, leaf: name == "adapter"}
    wide = params | {"base": base.astype(jnp.float32)}
    vector = jnp.asarray(rng.standard_normal(adapter.size), jnp.float32)
    for make in (curvature.hessian_matvec, curvature.mean_gradient):
        found, expected = (make(loss, tree, batches, **settings) for tree in (params, wide))
        if callable(found):
            found, expected = found(vector), expected(vector)
        np.testing.assert_array_equal(found, expected)
    estimate = estimate_limit(
        loss, params, batches, key=jax.random.key(0), num_steps=12, num_gap_steps=4, **settings
    )
    assert estimate.dim == adapter.size
    if dtype is not jnp.float8_e4m3fn:
        with pytest.raises(TypeError, match=r"params\['base'\] must be (a real floating|real)"):
            curvature.hessian_matvec(loss, params, batches)


def test_a_whole_equinox_model_is_told_what_to_do(batches):
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(FEATURES, CLASSES, 3, 2, key=jax.random.key(0))

    def loss(model, batch):
        return cross_entropy(jax.vmap(model)(batch[0]), batch[1])

    for call in (
        lambda: flatten_weights(model),
        lambda: curvature.hessian_matvec(loss, model, batches),
        lambda: estimate_limit(loss, model, batches, key=jax.random.key(0)),
    ):
        with pytest.raises(TypeError, match=r"got a function.*eqx\.partition\(model"):
            call()
