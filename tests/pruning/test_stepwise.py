"""Greedy removal by quadratics made anew: the same on a quadratic, better where it is none."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlimit import curvature, pruning
from jaxlimit._core.weights import is_weight
from jaxlimit.pruning import masked
from jaxlimit.pruning.stepwise import stepwise_order

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(60, 12)) * RNG.uniform(0.2, 2, 12), jnp.float32)
W = jnp.asarray(RNG.normal(size=12), jnp.float32)
Y = X @ W + 0.3 * jnp.asarray(RNG.normal(size=60), jnp.float32)
BATCHES = X[None], Y[None]


def squares(outputs, batch):
    return 0.5 * jnp.mean((outputs - batch[1]) ** 2)


def problem_of(loss, w):
    problem = masked.masked_loss(loss, w, BATCHES, (), is_weight, None)

    def rows_at(weights, mask):
        return curvature.factor_rows(loss, weights, BATCHES, mask=mask)

    return problem, rows_at


def test_on_a_quadratic_it_is_the_greedy_order():
    loss = curvature.split_loss(lambda w, batch: batch[0] @ w, squares)
    problem, rows_at = problem_of(loss, W)
    order, kept = np.arange(12), np.ones(12, bool)
    found = stepwise_order(problem, order, kept, rows_at, limit=1.0)
    A = np.asarray(W[:, None] * (X.T @ X / 60) * W)
    slope = -np.asarray(W * jax.grad(loss)(W, (X, Y)))
    np.testing.assert_array_equal(found.order, pruning.greedy_order(slope, A).order)
    assert found.num_rounds > 2


def test_each_round_is_greedy_at_the_mask_so_far():
    """A saturating loss: the first removals of every round, by all masks of one weight less."""
    loss = curvature.split_loss(lambda w, batch: 2 * jnp.tanh(batch[0] @ w / 2), squares)
    problem, rows_at = problem_of(loss, W)
    limit = float(loss(W, (X, Y))) + 0.25
    found = stepwise_order(problem, np.arange(12), np.ones(12, bool), rows_at, limit=limit)
    assert sorted(found.order) == list(range(12))
    # The first round removes a quarter, and the second starts at what is left.
    kept = found.order < 9
    masked_weights = jnp.where(kept, W, 0)
    gradient = np.asarray(jax.grad(loss)(masked_weights, (X, Y)))
    rows = np.concatenate(list(rows_at(masked_weights, kept)))
    removed = np.asarray(W)[kept]
    scores = -removed * gradient[kept] + 0.5 * removed**2 * (rows**2).sum(0)
    assert found.order[np.flatnonzero(kept)[scores.argmin()]] == 8
    assert masked.loss_of_mask(problem, jnp.asarray(kept)) <= limit
