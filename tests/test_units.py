"""Targets in nanometres or dollars: squared errors of 1e-18 to 1e18, against float64 and all masks.

The last layer is in the unit of the targets, so entries of H lie up to the unit's square apart.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlimit
from jaxlimit import curvature, lanczos, limits, pruning
from jaxlimit.studies import StudySettings

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
NUM, INPUTS, HIDDEN = 128, 3, 2
X = RNG.normal(size=(NUM, INPUTS)).astype(np.float32)
A, B = RNG.normal(size=(INPUTS, HIDDEN)), RNG.normal(size=HIDDEN)
TARGETS = np.tanh(X @ A) @ B + 0.3 * RNG.normal(size=NUM)
DIM = INPUTS * HIDDEN + HIDDEN + 1


def apply(params, batch):
    return jnp.tanh(batch[0] @ params["a"]) @ params["b"] + params["c"]


def squares(outputs, batch):
    return jnp.mean((outputs - batch[1]) ** 2)


class Problem:
    """A small regression in float32, and its derivatives and all its masks in float64."""

    def __init__(self, unit, offset):
        targets = (TARGETS * unit + offset).astype(np.float32)
        a, b, c = A.astype(np.float32), np.float32(B * unit), np.float32(offset + 0.01 * unit)
        self.params = {"a": jnp.asarray(a), "b": jnp.asarray(b), "c": jnp.asarray(c)}
        batches = jnp.asarray(X.reshape(8, 16, -1)), jnp.asarray(targets.reshape(8, 16))
        self.task = curvature.split_loss(apply, squares), self.params, batches
        self.weights = np.concatenate([a.ravel(), b, [c]]).astype(float)
        self.targets = targets.astype(float)
        with jax.enable_x64(True):
            of = (self.weights, X.astype(float), self.targets)
            residuals, jacobian = _residuals(*of), np.asarray(jax.jacobian(_residuals)(*of))
            self.losses = np.asarray(residuals) ** 2
            self.hessian = np.asarray(jax.hessian(lambda *of: jnp.mean(_residuals(*of) ** 2))(*of))
        self.gauss_newton = 2 * jacobian.T @ jacobian / NUM
        self.gradient = 2 * jacobian.T @ np.asarray(residuals) / NUM
        self.epsilon = self.losses.std() / np.sqrt(128)
        self.kept = (np.arange(2**DIM)[:, None] >> np.arange(DIM) & 1).astype(float)

    def fewest(self, rises):
        return int(self.kept[rises <= self.epsilon].sum(1).min())

    def rises(self):
        """By the loss itself."""
        w = self.kept * self.weights
        first = w[:, : INPUTS * HIDDEN].reshape(-1, INPUTS, HIDDEN)
        hidden = np.tanh(np.einsum("ni,kih->knh", X.astype(float), first))
        outputs = np.einsum("knh,kh->kn", hidden, w[:, -HIDDEN - 1 : -1]) + w[:, -1:]
        return ((outputs - self.targets) ** 2).mean(1) - self.losses.mean()

    def quadratic_rises(self):
        step = (self.kept - 1) * self.weights
        return step @ self.gradient + np.einsum("ki,ki->k", step @ self.gauss_newton, step) / 2


def _residuals(weights, x, targets):
    first = weights[: INPUTS * HIDDEN].reshape(INPUTS, HIDDEN)
    hidden = jnp.tanh(x @ first)
    return hidden @ weights[-HIDDEN - 1 : -1] + weights[-1] - targets


@pytest.fixture(
    scope="module",
    params=[(1e-9, 0.0), (8e4, 2e5), (1e9, 5e9)],
    ids=["nanometres in metres", "house prices", "metres in nanometres"],
)
def problem(request):
    return Problem(*request.param)


def test_derivatives(problem):
    values = np.linalg.eigvalsh(problem.hessian)
    pairs = lanczos.extremal_eigenpairs(curvature.hessian_matvec(*problem.task), KEY, num_pairs=2)
    assert pairs.converged.all()
    np.testing.assert_allclose(pairs.values[0], values[np.abs(values).argmax()], rtol=1e-5)
    np.testing.assert_allclose(
        curvature.diagonal(*problem.task), np.diag(problem.gauss_newton), rtol=1e-5
    )
    found = curvature.mean_gradient(*problem.task)
    np.testing.assert_allclose(found, problem.gradient, atol=1e-5 * abs(problem.gradient).max())


def test_tolerance_and_masks(problem):
    epsilon = limits.loss_tolerance(*problem.task)
    np.testing.assert_allclose(float(epsilon), problem.epsilon, rtol=1e-4)
    least = problem.fewest(problem.quadratic_rises())
    certificate = limits.certificate(
        curvature.gauss_newton_matvec(*problem.task),
        jnp.asarray(problem.gradient, jnp.float32),
        jnp.asarray(problem.weights, jnp.float32),
        epsilon,
    )
    assert 0 < certificate.num_kept <= least
    rises = problem.rises()
    found = pruning.smallest_mask(*problem.task, epsilon=epsilon, key=KEY)
    assert found.num_kept == problem.fewest(rises)
    mask = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found.mask)])
    expected = rises[int(mask @ 2 ** np.arange(DIM))]
    np.testing.assert_allclose(found.loss - found.dense_loss, expected, atol=1e-3 * problem.epsilon)


def test_a_study(problem):
    settings = StudySettings(num_ratios=9, quiet=True)
    found = jaxlimit.study(*problem.task, key=KEY, budget=0.0, settings=settings).measured
    np.testing.assert_allclose(found.epsilon, problem.epsilon, rtol=1e-4)
    np.testing.assert_allclose(found.dense_loss, problem.losses.mean(), rtol=1e-5)
