"""Diagonals and rows of losses that no `vmap` takes or that read what changes, to their end."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from jaxlimit import curvature, estimate_limit
from jaxlimit.curvature import diagonals

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
PARAMS = {"a": jnp.asarray(RNG.normal(size=4), jnp.float32), "b": jnp.asarray(0.3)}
BATCHES = (
    jnp.asarray(RNG.normal(size=(3, 8, 4)), jnp.float32),
    jnp.asarray(RNG.normal(size=(3, 8)), jnp.float32),
)
EVERY = np.ones(5, bool)


def squares(outputs, batch):
    return jnp.mean((outputs - batch[1]) ** 2)


def on_host(x):
    """Three times x, by a function of the host's that no `vmap` may touch."""
    return jax.pure_callback(lambda x: np.asarray(3 * x), jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def from_host(params, batch):
    return on_host(batch[0]) @ params["a"] + params["b"]


def from_host_plainly(params, batch):
    return 3 * batch[0] @ params["a"] + params["b"]


def experts(params, batch):
    """A mixture of two experts, each example's chosen by its first input."""
    second = batch[0][:, 0] > 0
    order = jnp.argsort(second)
    sizes = jnp.stack([(~second).sum(), second.sum()]).astype(jnp.int32)
    kernels = jnp.stack([params["a"], 2 * params["a"]])[..., None]
    outputs = jax.lax.ragged_dot(batch[0][order], kernels, sizes)[:, 0]
    return jnp.tanh(outputs[jnp.argsort(order)] + params["b"])


def experts_plainly(params, batch):
    return jnp.tanh(jnp.where(batch[0][:, 0] > 0, 2, 1) * (batch[0] @ params["a"]) + params["b"])


def far_squares(outputs, batch):
    return jnp.mean((outputs - on_host(batch[1])) ** 2)


def far_squares_plainly(outputs, batch):
    return jnp.mean((outputs - 3 * batch[1]) ** 2)


def gram(loss, **settings):
    pieces = curvature.factor_rows(loss, PARAMS, BATCHES, mask=EVERY, **settings)
    return sum(np.float64(piece).T @ piece for piece in pieces)


def diagonal(loss, **settings):
    return curvature.diagonal(loss, PARAMS, BATCHES, **settings)


def probed(loss, **settings):
    return diagonal(loss, num_probes=3, key=KEY, **settings)


@pytest.mark.parametrize("of", [diagonal, probed, gram])
@pytest.mark.parametrize("matrix", curvature.DIAGONAL_MATRICES)
@pytest.mark.parametrize(
    ("parts", "plainly"),
    [
        ((from_host, squares), (from_host_plainly, squares)),
        ((experts, squares), (experts_plainly, squares)),
        ((from_host_plainly, far_squares), (from_host_plainly, far_squares_plainly)),
    ],
)
def test_losses_without_a_batching_rule(parts, plainly, matrix, of):
    found = of(curvature.split_loss(*parts), matrix=matrix)
    expected = of(curvature.split_loss(*plainly), matrix=matrix)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_estimate_without_a_batching_rule():
    """From the count of its memory to its limit; ε is given, as it is measured otherwise."""

    def whole(parts):
        apply, of_outputs = parts
        return lambda params, batch: of_outputs(apply(params, batch), batch)

    found, expected = (
        estimate_limit(
            whole((of, squares)), PARAMS, BATCHES, key=KEY, epsilon=1.0, num_steps=5
        ).prediction.lower
        for of in (from_host, from_host_plainly)
    )
    assert expected > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("of", [diagonal, probed, gram])
@pytest.mark.parametrize("matrix", curvature.DIAGONAL_MATRICES)
def test_what_a_loss_reads_is_read_anew(matrix, of):
    """Outputs t times as large: with targets of 0, G grows by t², the Fisher matrix by t⁴."""
    scale = jnp.ones(())

    def apply(params, batch):
        return scale * jnp.tanh(batch[0] @ params["a"] + params["b"])

    loss = curvature.split_loss(apply, lambda y, _: jnp.mean(y**2))
    before = np.asarray(of(loss, matrix=matrix))
    scale = jnp.asarray(2.0)
    power = 2 if matrix == "gauss-newton" else 4
    np.testing.assert_allclose(of(loss, matrix=matrix), 2.0**power * before, rtol=1e-5)


# --- standing still ---------------------------------------------------------------------------


def eigenproblems(jaxpr):
    """Yield the shapes of all matrices whose eigenvalues a program takes."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "eigh":
            yield equation.invars[0].aval.shape
    for inner in core.subjaxprs(jaxpr):
        yield from eigenproblems(inner)


def two_outputs(params, batch):
    y = jnp.tanh(batch @ params["a"] + params["b"])
    return jnp.stack([y, y**2], 1)


def entropy(outputs, batch):
    del batch
    return -jax.nn.log_softmax(outputs)[:, 0].mean()


def test_no_batch_of_eigenproblems_is_dealt_out_to_the_threads_of_a_cpu():
    loss, sizes = curvature.split_loss(two_outputs, entropy), (7, 8, 9)
    batches = [jnp.ones((size, 4)) for size in sizes]
    program = jax.make_jaxpr(lambda p: curvature.diagonal(loss, p, batches))(PARAMS)
    assert list(eigenproblems(program.jaxpr)) == [(2, 2)] * len(sizes)


def test_eigenproblems_one_by_one_are_those_of_numpy():
    matrices = RNG.normal(size=(2, 3, 4, 4)).astype(np.float32)
    matrices += np.swapaxes(matrices, -1, -2)
    values, vectors = jax.vmap(jax.vmap(diagonals._eigh))(matrices)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrices), rtol=1e-5, atol=1e-5)
    back = np.einsum("abij,abj,abkj->abik", vectors, values, vectors)
    np.testing.assert_allclose(back, matrices, rtol=1e-5, atol=1e-5)


STILL = """
import jax, jax.numpy as jnp, numpy as np
from jaxlimit import curvature
draw = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(size=shape) / 20, jnp.float32)
params = {"a": draw(300, 300), "b": draw(300, 10)}
loss = curvature.split_loss(
    lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], lambda y, x: -jax.nn.log_softmax(y)[:, 0].mean()
)
batches = [20 * draw(400 + i, 300) for i in range(3 * len(__import__("os").sched_getaffinity(0)))]
for _ in range(20):
    jax.block_until_ready(curvature.diagonal(loss, params, batches))
"""


@pytest.mark.slow
def test_more_sizes_of_batches_than_threads_come_to_an_end():
    """Dealt out, batches of eigenproblems stood still at the second call of twenty."""
    subprocess.run([sys.executable, "-c", STILL], timeout=300, check=True)
