"""A network of bfloat16 or float16 whose scan carries that type, through all that takes a loss.

The loss is handed its own types, which it insists on; all vectors are float32. The oracles are the
same network in float32 at the same rounded weights, and its derivatives in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jaxlimit
from jaxlimit import curvature, limits, pruning

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 6)
SHAPES = {"into": (3, 16), "back": (4, 16), "bias": (16,), "out": (4, 1)}
WEIGHTS = {n: jax.random.normal(k, s) for k, (n, s) in zip(KEYS, SHAPES.items(), strict=False)}
BATCHES = (jax.random.normal(KEYS[4], (4, 16, 5, 3)), jax.random.normal(KEYS[5], (4, 16)))
DIM = 132


def lstm(dtype):
    def apply(params, batch):
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}

        def step(carry, x):
            h, c = carry
            gates = x @ params["into"] + h @ params["back"] + params["bias"]
            i, f, g, o = jnp.split(gates, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        start = jnp.zeros((batch[0].shape[0], 4), dtype)
        xs = jnp.swapaxes(batch[0].astype(dtype), 0, 1)
        (h, _), _ = jax.lax.scan(step, (start, start), xs)
        return h @ params["out"]

    def half_square(outputs, batch):
        return 0.5 * jnp.mean((outputs[:, 0].astype(jnp.float32) - batch[1]) ** 2)

    return curvature.split_loss(apply, half_square)


def both(dtype):
    """Return the network in its type and in float32, the second as the oracle."""
    narrow = jax.tree.map(lambda x: (0.5 * x).astype(dtype), WEIGHTS)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    return (lstm(dtype), narrow, BATCHES), (lstm(jnp.float32), wide, BATCHES)


def near(found, expected, share):
    """Assert that vectors are of float32 and differ by a share of the norm at most."""
    assert np.asarray(found).dtype == np.float32
    error = np.linalg.norm(np.ravel(found) - np.ravel(expected))
    assert error <= share * np.linalg.norm(np.ravel(expected))


FUNCTIONS = {
    "gradient": curvature.mean_gradient,
    "hessian": lambda *task: curvature.hessian_matvec(*task)(jnp.ones(DIM)),
    "gauss-newton": lambda *task: curvature.gauss_newton_matvec(*task)(jnp.ones(DIM)),
    "diagonal": curvature.diagonal,
    "probed diagonal": lambda *task: curvature.diagonal(*task, num_probes=2, key=KEY),
    "fisher diagonal": lambda *task: curvature.diagonal(*task, matrix="fisher"),
    "rows": lambda *task: np.concatenate(
        list(curvature.factor_rows(*task, mask=np.arange(DIM) % 3 == 0))
    ),
    "sweep": lambda *task: pruning.magnitude_sweep(*task, [0.1, 0.5, 1.0]).losses,
    "tolerance": lambda *task: limits.loss_tolerance(*task).value,
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, jnp.bfloat16) for name in FUNCTIONS]
    + [(name, jnp.float16) for name in ("gradient", "diagonal", "rows", "sweep")],
)
def test_functions_of_a_loss(name, dtype):
    narrow, wide = both(dtype)
    near(FUNCTIONS[name](*narrow), FUNCTIONS[name](*wide), 8 * float(jnp.finfo(dtype).eps))


@pytest.fixture(scope="module")
def dense():
    """The same numbers from the residuals of all examples, their derivatives and NumPy's sums."""
    _, (_, wide, (x, y)) = both(jnp.bfloat16)
    with jax.enable_x64(True):
        flat, unflatten = ravel_pytree(jax.tree.map(lambda leaf: np.asarray(leaf, float), wide))
        x, y = np.asarray(x, float).reshape(64, 5, 3), np.asarray(y, float).ravel()
        apply = lstm(jnp.float64).apply
        residuals = jax.jit(lambda w: apply(unflatten(w), (x,))[:, 0] - y)
        r, jacobian = np.asarray(residuals(flat)), np.asarray(jax.jacobian(residuals)(flat))
        hessian = np.asarray(jax.hessian(lambda w: jnp.mean(residuals(w) ** 2) / 2)(flat))
        order = np.argsort(-np.abs(flat), kind="stable")
        kept = [np.isin(np.arange(DIM), order[: pruning.num_kept(DIM, q)]) for q in (0.1, 0.5, 1)]
        losses = [float(np.mean(np.asarray(residuals(flat * k)) ** 2) / 2) for k in kept]
    return {
        "gradient": jacobian.T @ r / 64,
        "hessian": hessian.sum(1),
        "gauss-newton": (jacobian.T @ jacobian / 64).sum(1),
        "diagonal": (jacobian**2).mean(0),
        "fisher diagonal": ((r[:, None] * jacobian) ** 2).mean(0),
        "sweep": losses,
        "tolerance": (r**2 / 2).std() / np.sqrt(128),
    }


@pytest.mark.parametrize(
    "name", ["gradient", "hessian", "gauss-newton", "diagonal", "fisher diagonal", "sweep",
             "tolerance"]
)  # fmt: skip
def test_functions_of_a_loss_against_float64(name, dense):
    narrow, wide = both(jnp.bfloat16)
    near(FUNCTIONS[name](*narrow), dense[name], 8 * float(jnp.finfo(jnp.bfloat16).eps))
    near(FUNCTIONS[name](*wide), dense[name], 1e-5)


def test_the_smallest_mask():
    dtype = jnp.bfloat16
    narrow, wide = both(dtype)
    settings = {"epsilon": 0.05, "key": KEY, "methods": ("saliency", "relaxed")}
    found, expected = (pruning.smallest_mask(*task, **settings) for task in (narrow, wide))
    assert found.loss <= found.dense_loss + 0.05
    assert found.num_kept == pytest.approx(expected.num_kept, rel=0.1, abs=3)
    assert found.certificate.num_kept == pytest.approx(
        expected.certificate.num_kept, rel=0.1, abs=3
    )
    pruned = jaxlimit.prune_to(*narrow, **settings | {"methods": ()})
    assert {leaf.dtype for leaf in jax.tree.leaves(pruned.params)} == {jnp.dtype(dtype)}


def test_the_whole_estimate():
    narrow, wide = both(jnp.bfloat16)
    settings = {"key": KEY, "num_steps": 16, "num_gap_steps": 8}
    found, expected = (jaxlimit.estimate_limit(*task, **settings) for task in (narrow, wide))
    assert found.measure.nodes.dtype == jnp.float32
    for name in ("ratio", "radius"):
        a, b = getattr(found.prediction, name), getattr(expected.prediction, name)
        assert float(a) == pytest.approx(float(b), rel=0.05)
    assert float(found.largest) == pytest.approx(float(expected.largest), rel=0.02)
    assert float(found.factors.trace) == pytest.approx(float(expected.factors.trace), rel=0.05)


def test_vectors_of_narrow_types_are_widened():
    """An operator of float32 takes weights and gradients that a user still has in bfloat16."""
    task, _ = both(jnp.bfloat16)
    operator = curvature.gauss_newton_matvec(*task)
    gradient = curvature.mean_gradient(*task)
    wide = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(task[1])])
    wide = wide.astype(jnp.float32)
    flat = wide.astype(jnp.bfloat16)
    assert (flat == wide).all()
    for of in (
        lambda w: limits.certificate(operator, gradient, w, 0.05, num_products=8).num_kept,
        lambda w: limits.shares(operator, gradient, w, jnp.abs(w) > 0.3, 0.1).quadratic,
        lambda w: limits.refit(operator, gradient, w, jnp.abs(w) > 0.3).rise,
        lambda w: pruning.taylor_forecast(gradient, operator, w, [0.5])[0],
        lambda w: pruning.saliency(w, gradient, gradient)[0],
        lambda w: pruning.l1_residual(gradient, w, 0.1).median,
    ):
        assert of(flat) == of(wide)
