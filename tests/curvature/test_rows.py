"""Rows of the Gauss-Newton factor against dense matrices made by hand."""

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
    NUM_EXAMPLES,
    OUTPUT_GRADIENT,
    SCALE,
    Net,
    assert_close,
    dense,
    make_net,
    mlp_logits,
    mlp_loss,
    output_loss,
)

from jaxlimit import curvature, training

LOSS = curvature.split_loss(mlp_logits, output_loss)
GRADIENTS = np.einsum("na,nai->ni", OUTPUT_GRADIENT, JACOBIAN)
SOME = np.arange(MLP_DIM) % 3 != 1


def gram(pieces):
    return sum(np.float64(piece).T @ piece for piece in pieces)


@pytest.mark.parametrize("memory_budget", [0, 2000, 2**28])
@pytest.mark.parametrize("mask", [SOME, np.arange(MLP_DIM) == 5, np.ones(MLP_DIM, bool)])
def test_the_gram_is_the_block_of_the_dense_matrix(mask, memory_budget):
    pieces = list(
        curvature.factor_rows(LOSS, MLP, BATCHES, SCALE, mask=mask, memory_budget=memory_budget)
    )
    assert_close(gram(pieces), GAUSS_NEWTON[np.ix_(mask, mask)])
    assert (len(pieces) == NUM_EXAMPLES) == (memory_budget == 0)


def test_the_fisher_matrix_of_any_loss():
    pieces = curvature.factor_rows(mlp_loss, MLP, BATCHES, SCALE, mask=SOME, matrix="fisher")
    expected = (GRADIENTS.T @ GRADIENTS / NUM_EXAMPLES)[np.ix_(SOME, SOME)]
    assert_close(gram(pieces), expected)


def test_leaves_not_under_study_and_state():
    params, state = make_net()
    loss = training.make_loss(lambda p, s, x, train, key: (Net().apply({"params": p, **s}, x), s))
    matvec = curvature.gauss_newton_matvec(loss, params, NET_BATCHES, state)
    dim = curvature.diagonal(loss, params, NET_BATCHES, state).size
    mask = np.arange(dim) % 5 == 0
    pieces = curvature.factor_rows(loss, params, NET_BATCHES, state, mask=mask)
    assert_close(gram(pieces), dense(matvec, dim)[np.ix_(mask, mask)])


def test_fewer_rows_come_from_evenly_spaced_examples():
    mask = np.ones(MLP_DIM, bool)
    x, *rest = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *BATCHES)
    every = [jax.tree.map(lambda leaf: leaf[::3], (x, *rest))]
    limited = curvature.factor_rows(LOSS, MLP, [(x, *rest)], SCALE, mask=mask, max_rows=12)
    expected = gram(curvature.factor_rows(LOSS, MLP, every, SCALE, mask=mask))
    assert_close(gram(limited), expected)


def test_bad_input():
    with pytest.raises(TypeError, match="split_loss"):
        next(curvature.factor_rows(mlp_loss, MLP, BATCHES, SCALE, mask=SOME))
    with pytest.raises(ValueError, match="max_rows must be at least 1"):
        next(curvature.factor_rows(LOSS, MLP, BATCHES, SCALE, mask=SOME, max_rows=0))
    concave = curvature.split_loss(mlp_logits, lambda y, batch: -jnp.mean(y**2))
    with pytest.raises(FloatingPointError, match="convex"):
        next(curvature.factor_rows(concave, MLP, BATCHES, SCALE, mask=SOME))
