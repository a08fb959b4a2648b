"""Which eigenvectors of T are eigenpairs and which are copies: matrices written down by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit.lanczos import eigenpairs
from jaxlimit.lanczos.two_pass import _pick_distinct

EPS = 1e-8  # √ε = 1e-4 is how near two eigenvalues count as one, ε^¾ = 1e-6 what a copy has of q₁


def pick(diagonal, off_diagonal, num_pairs=9, which="largest", dtype=np.float64):
    """The places that each chosen eigenvector has most of, and the largest magnitude."""
    alpha, beta = (np.asarray(x, dtype) for x in (diagonal, off_diagonal))
    vectors, largest = _pick_distinct(alpha, beta, num_pairs, which, EPS)
    assert vectors.dtype == dtype
    return np.argmax(np.abs(vectors), axis=0).tolist(), largest


@pytest.mark.parametrize(
    ("which", "places"), [("largest", [1, 0, 3]), ("smallest", [2, 3, 0]), ("magnitude", [2, 1, 0])]
)
def test_the_most_extreme_come_first(which, places):
    assert pick([2.0, 3.0, -7.0, 1.0], [0, 0, 0, 0], 3, which) == (places, 7)
    assert len(pick([2.0, 3.0, -7.0, 1.0], [0, 0, 0, 0], 9, which)[0]) == 4


@pytest.mark.parametrize("sign", [1, -1])
def test_eigenvalues_apart_by_the_root_of_the_rounding_are_two(sign):
    """Of the largest magnitude, 100 here, whatever its sign: 1e-2."""
    for gap, count in ((0.8e-2, 2), (1.2e-2, 3)):
        places, largest = pick([sign * 100.0, 3.0, 3.0 + gap], [0, 0, 0], which="magnitude")
        assert (len(places), largest) == (count, 100)


@pytest.mark.parametrize("beta", [1e-5, -1e-5])
def test_of_copies_the_one_of_the_least_error_is_taken(beta):
    """The last has the error |β|, the first none; either may be the more extreme."""
    for last in (3 + 1e-5, 3 - 1e-5):
        assert pick([3.0, 1.0, last], [0, 0, beta])[0] == [0, 1]


def test_a_copy_that_is_forming_has_nothing_of_the_start():
    """It has an error beyond what makes two eigenvalues one; what has converged is none."""
    assert pick([3.0, 1.0, 7.0], [0, 0, 1.0])[0] == [0, 1]
    assert pick([3.0, 1.0, 7.0], [0, 0, 0.0])[0] == [2, 0, 1]
    assert pick([3.0, 1.0, 7.0], [0, 0, 5e-4])[0] == [2, 0, 1]  # of 7, 7e-4 is near
    # δ/2 of the start in the second vector, against ε^¾ = 1e-6.
    for share, places in ((1e-5, [0, 1]), (2e-6, [0, 1]), (5e-7, [0]), (1e-7, [0])):
        assert pick([3.0, 1.0], [2 * share, 1.0])[0] == places


def test_eigenvectors_are_solved_for_in_float64():
    rng = np.random.default_rng(0)
    alpha, beta = rng.normal(size=90).astype(np.float32), np.full(90, 0.5, np.float32)
    beta[-1] = 0  # nothing is forming
    vectors, _ = _pick_distinct(alpha, beta, 90, "smallest", 1e-16)
    a, b = alpha.astype(float), beta.astype(float)
    exact = np.linalg.eigh(np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1))[1]
    np.testing.assert_allclose(np.abs(vectors), np.abs(exact), atol=6e-8)


# --- The pieces of the search by restarts ---------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "order"),
    [("largest", [4, 3, 2, 1, 0]), ("smallest", [0, 1, 2, 3, 4]),
     ("both", [4, 0, 3, 1, 2]), ("magnitude", [0, 4, 1, 2, 3])],
)  # fmt: skip
def test_the_best_come_first(which, order):
    values = jnp.array([-9.0, -4.0, -3.0, 1.0, 5.0])
    assert eigenpairs._best_first(values, which).tolist() == order


def test_projection_returns_the_coefficients_of_both_passes():
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0].astype(np.float32)
    basis, vector = jnp.asarray(q[:20]), jnp.asarray(1e4 * q[3] + q[7] + 1e-3 * q[25])
    left, coefficients = eigenpairs._orthogonalize(vector, basis)
    assert np.abs(q[:20].astype(float) @ np.asarray(left, float)).max() < 1e-9
    np.testing.assert_allclose(np.linalg.norm(left), 1e-3, rtol=0.3)
    wanted = q[:20].astype(float) @ np.asarray(vector, float)
    np.testing.assert_allclose(coefficients, wanted, rtol=0, atol=1e4 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("inside", [False, True])
def test_a_fresh_vector_is_a_unit_one_off_the_basis(inside):
    """One direction is left, also where the draw has none of it but for rounding."""
    settings = eigenpairs._Settings(40, 2, "largest", 39, jnp.float32, None)
    key, matrix = jax.random.key(0), np.random.default_rng(1).normal(size=(40, 40))
    if inside:
        matrix[:, 0] = jax.random.normal(key, (40,))
    q = np.linalg.qr(matrix)[0].T
    basis = q[:39].astype(np.float32)
    fresh = np.asarray(eigenpairs._fresh_vector(key, jnp.asarray(basis), settings), float)
    assert abs(fresh @ q[39]) == pytest.approx(1, abs=1e-6)
    assert np.abs(basis.astype(float) @ fresh).max() < 1e-6


@pytest.mark.parametrize(
    ("which", "wanted", "rest", "missing"),
    [
        # The rest's best Ritz value against the worst wanted, on each end that is asked for.
        ("both", [9.0, -9.0, 8.0, -8.0], [7.99, 0.0], True),
        ("both", [9.0, -9.0, 8.0, -8.0], [0.0, -7.99], True),
        ("both", [9.0, -9.0, 8.0, -8.0], [0.5, -0.5], False),
        ("magnitude", [9.0, -8.0], [7.99, 0.0], True),
        ("magnitude", [9.0, 8.0], [0.0, -7.99], True),
        ("magnitude", [9.0, 8.0], [0.5, -0.5], False),
        ("largest", [9.0, 8.0], [0.0, -7.99], False),
        ("both", [9.0], [0.0, -9.0], False),
    ],
)
def test_a_miss_is_looked_for_at_each_end(which, wanted, rest, missing):
    settings = eigenpairs._Settings(100, len(wanted), which, 9, jnp.float32, None)
    state = eigenpairs._initial(jax.random.key(0), settings._replace(dim=5))
    found = eigenpairs._nothing_better(
        jnp.array(wanted + rest), jnp.ones(len(wanted + rest)), jnp.float32(1e-6), settings,
        state._replace(since_fresh=jnp.int32(40)),
    )  # fmt: skip
    assert bool(found) == (not missing)
