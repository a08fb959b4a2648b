"""ρ_L of trained ReLU networks against the eigenvalues of their dense float64 Hessians."""

from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from annealed import annealed, cross_entropy
from jax.tree_util import Partial
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from jaxlimit import adapters, curvature, flatten_weights, lanczos, limits, spectrum

DEFAULT_DEPTH = lanczos.FULL_DEPTH
SMALL, LARGE = (12,), (48, 32)


class Problem(NamedTuple):
    """A trained network's Hessian product in float32, and its float64 eigenpairs."""

    matvec: jax.tree_util.Partial
    eigenvalues: np.ndarray
    vectors: np.ndarray
    weights: np.ndarray
    epsilon: float


def loss(params, batch):
    x, labels = batch
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return cross_entropy(x @ params[-1]["kernel"] + params[-1]["bias"], labels)


def initial(widths):
    sizes, rng = (64, *widths, 10), np.random.default_rng(0)
    return [
        {
            "kernel": jnp.asarray(rng.normal(size=(a, b)) * (2 / a) ** 0.5, jnp.float32),
            "bias": jnp.zeros(b),
        }
        for a, b in pairwise(sizes)
    ]


@cache
def problem(widths) -> Problem:
    images, labels = load_digits(return_X_y=True)
    data = jnp.asarray(images / 8 - 1, jnp.float32), jnp.asarray(labels, jnp.int32)
    params = annealed(loss, initial(widths), data, rate=0.1, l1=1e-4, num_steps=500)
    batches = jax.tree.map(lambda x: x[None], data)
    epsilon = float(limits.loss_tolerance(loss, params, batches))
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        batches64 = (jnp.asarray(batches[0], jnp.float64), batches[1])
        weights, _ = flatten_weights(exact)
        matvec = curvature.hessian_matvec(loss, exact, batches64)
        hessian = adapters.to_dense(matvec, weights.size, jnp.float64)
    with threadpool_limits(1):  # on a busy machine the threads of BLAS spin in vain
        eigenvalues, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
    matvec = curvature.hessian_matvec(loss, params, batches)
    return Problem(matvec, eigenvalues, vectors, np.asarray(weights), epsilon)


def ridge_of(net, negative):
    """The c that counts: that of the network's own limit."""
    with jax.enable_x64(True):
        measure = spectrum.exact_measure(jnp.asarray(net.eigenvalues))
        limit = limits.pruning_limit(measure, net.weights, net.epsilon, negative=negative)
        return float(limits.ridge(limit.radius, net.epsilon))


SIZES = pytest.mark.parametrize(
    "widths", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["small", "large"]
)


def probes_of(net, matvec, dtype):
    """The measure of four probes, and the weights of the exact eigenvalues in each."""
    dim, key, num_probes = net.eigenvalues.size, jax.random.key(1), 4
    measure = spectrum.spectral_measure(
        matvec, key, dim=dim, num_steps=DEFAULT_DEPTH, num_probes=num_probes, dtype=dtype
    )
    probes = [spectrum.probe(k, dim, dtype) for k in jax.random.split(key, num_probes)]
    return measure, (np.asarray(probes, np.float64) @ net.vectors) ** 2


@SIZES
@pytest.mark.parametrize("negative", ["abs", "clip"])
def test_bracket_holds_each_probes_own_truth(widths, negative):
    """In float64: the products of float32 are those of another operator, some 1e-7 λ_max away."""
    net = problem(widths)
    f = partial(limits.curvature_share, ridge=ridge_of(net, negative), negative=negative)
    with jax.enable_x64(True):
        hessian = jnp.asarray((net.vectors * net.eigenvalues) @ net.vectors.T)
        measure, weights = probes_of(net, Partial(jnp.matmul, hessian), jnp.float64)
        own = weights @ np.asarray(f(jnp.asarray(net.eigenvalues)))
        for depth in (16, 32, 64, 128, DEFAULT_DEPTH):
            at = spectrum.truncate(measure, depth)
            assert at.rules is not None
            ends = np.sum(at.rules.weights * f(at.rules.nodes), axis=-1)[:, 1]
            assert (ends[:, 0] <= own).all(), "the bracket's lower end"
            assert (ends.max(-1) >= own).all(), "the bracket's upper end"


@SIZES
@pytest.mark.parametrize("negative", ["abs", "clip"])
def test_lower_bound_of_a_trained_relu_network(widths, negative):
    net = problem(widths)
    largest, c = net.eigenvalues.max(), ridge_of(net, negative)
    assert net.eigenvalues.min() < -1e-4 * largest
    assert c < 1e-2 * largest  # the kink is narrow
    f = partial(limits.curvature_share, ridge=c, negative=negative)
    values = np.asarray(f(jnp.asarray(net.eigenvalues, jnp.float32)), np.float64)
    measure, weights = probes_of(net, net.matvec, jnp.float32)
    for depth in (16, 32, 64, 128, DEFAULT_DEPTH):
        joint = spectrum.trace_bracket(spectrum.truncate(measure, depth), f)
        assert joint.lower <= values.mean() <= joint.upper
    value = float(spectrum.trace_bracket(measure, f).value)
    assert value == pytest.approx((weights @ values).mean(), rel=0.02)
