"""Quadrature rules against the moments of longer matrices, and families against finer ones."""

import itertools

import numpy as np
import pytest

from jaxlimit.spectrum import _quadrature

SCALES = [1e-170, 1e-30, 1.0, 1e30]


def recurrence(size, seed=0):
    """α and β of an indefinite tridiagonal matrix; β as long as α, its last couples on."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=size), rng.uniform(0.3, 1.5, size)


def matrix(alpha, beta):
    return np.diag(alpha) + np.diag(beta[: len(alpha) - 1], 1) + np.diag(beta[: len(alpha) - 1], -1)


def moments(dense, num):
    """The first entries of the powers of a matrix: what its quadrature integrates."""
    vector, found = np.eye(len(dense))[0], []
    for _ in range(num):
        found.append(vector[0])
        vector = dense @ vector
    return np.array(found)


def integrals(nodes, weights, num):
    return np.array([np.sum(weights * nodes**k) for k in range(num)])


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("s", SCALES)
def test_a_gauss_rule_has_the_moments_of_its_matrix(size, s):
    alpha, beta = recurrence(size)
    nodes, weights = _quadrature.gauss_rule(s * alpha, s * beta[:-1])
    found = integrals(nodes / s, weights, 2 * size)
    np.testing.assert_allclose(found, moments(matrix(alpha, beta), 2 * size), rtol=1e-9)
    assert (weights > 0).all()


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("node", [0.0, -0.7, 2.5, 40.0])
@pytest.mark.parametrize("s", SCALES)
def test_a_pinned_rule_has_its_node_and_one_moment_more(size, node, s):
    """With m + 1 nodes, one of them given, it integrates what any longer matrix does up to λ^2m."""
    alpha, beta = recurrence(12)
    dtype = np.float32 if s > 1e-40 else np.float64
    given = [(s * x).astype(dtype) for x in (alpha[:size], beta[: size - 1])]
    alpha[:size], beta[: size - 1] = (np.float64(x) / s for x in given)
    nodes, weights = _quadrature.radau_rule(*given, s * beta[size - 1], s * node)
    assert len(nodes) == size + 1
    assert s * node in nodes
    found = integrals(nodes / s, weights, 2 * size + 1)
    wanted = moments(matrix(alpha, beta), 2 * size + 1)
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize("s", SCALES)
@pytest.mark.parametrize("flat", [1.0, 1e-6])
def test_a_node_that_the_matrix_has_already_is_not_prescribed(s, flat):
    """The entry that prescribes it passes 1e8 times the size of the matrix, whatever that is."""
    alpha, beta = s * flat * np.array([1.0, -1.0]), s * np.array([flat, 2.0])
    values = np.linalg.eigvalsh(matrix(alpha / s, beta / s)) * s
    size = np.abs(alpha).max() + beta[-1]
    for relative, count in ((1e7, 3), (1e9, 2)):
        # The pivot of T - x is about (θ - x)/w, w the last weight of the Ritz value θ.
        vector = np.linalg.eigh(matrix(alpha / s, beta / s))[1][-1, 1]
        node = values[1] - beta[-1] * (beta[-1] / size) * vector**2 / relative
        nodes, weights = _quadrature.radau_rule(alpha, beta[:1], beta[1], node)
        assert len(nodes) == count
        assert np.sum(weights) == pytest.approx(1)
    nodes, _ = _quadrature.radau_rule(alpha, beta[:1], 0.0, 0.5 * s)
    np.testing.assert_allclose(nodes, values, rtol=1e-9)


def test_the_family_has_its_rules_at_half_and_at_full_depth():
    alpha, beta = recurrence(9)
    found = _quadrature.rules(alpha, beta[:-1], beta[-1], 9)
    gauss = _quadrature.gauss_rule(alpha, beta[:-1])
    np.testing.assert_array_equal((found.nodes, found.weights), gauss)
    narrow = [x.astype(np.float32) for x in (alpha, beta[:-1])]
    wide = [x.astype(float) for x in narrow]
    for one, other in zip(*(_quadrature.rules(*x, 0.5, 9) for x in (narrow, wide)), strict=True):
        np.testing.assert_array_equal(one, other)
    for row, depth in enumerate((4, 9)):
        nodes, weights = found.family_nodes[row], found.family_weights[row]
        whole = _quadrature.gauss_rule(alpha[:depth], beta[: depth - 1])
        np.testing.assert_array_equal(nodes[-1, :depth], whole[0])
        np.testing.assert_array_equal(weights[-1, :depth], whole[1])
        np.testing.assert_array_equal(weights[:, depth + 1 :], 0)
        np.testing.assert_allclose(weights.sum(1), 1)
        assert 0 in nodes[0]
        wanted = moments(matrix(alpha, beta), 2 * depth + 1)
        for rule in zip(nodes[:-1], weights[:-1], strict=True):
            np.testing.assert_allclose(integrals(*rule, 2 * depth + 1), wanted, rtol=1e-4)


@pytest.mark.parametrize("num_valid", [1, 2, 5])
def test_a_recurrence_that_ended_has_the_rules_of_what_is_valid(num_valid):
    alpha, beta = recurrence(5)
    found = _quadrature.rules(alpha, beta[:-1], 0.0, num_valid)
    short = _quadrature.rules(alpha[:num_valid], beta[: num_valid - 1], 0.0, num_valid)
    for long, whole in zip(found, short, strict=True):
        np.testing.assert_array_equal(long[..., : whole.shape[-1]], whole)
        np.testing.assert_array_equal(long[..., whole.shape[-1] :], 0)
    # An invariant subspace: every rule of full depth is the Gauss rule.
    np.testing.assert_array_equal(
        found.family_nodes[1],
        np.broadcast_to(found.family_nodes[1, -1], found.family_nodes[1].shape),
    )


def test_rules_of_nothing_are_empty_and_of_nan_are_nan():
    for leaf in _quadrature.rules(np.zeros(3), np.zeros(2), 0.0, 0):
        np.testing.assert_array_equal(leaf, 0)
    for leaf in _quadrature.rules(np.array([1.0, np.nan, 0.0]), np.zeros(2), 0.0, 1):
        assert np.isnan(leaf).all()
    zero = _quadrature.rules(np.zeros(1), np.zeros(0), 0.0, 1)
    assert all(np.isfinite(leaf).all() for leaf in zero)


@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_family_comes_near_the_greatest_of_all_rules(shift, depth):
    """Against 120 nodes prescribed on either side, up to the Gauss node or far beyond all."""
    shares = np.geomspace(1e-6, 0.5, 30)
    shares = np.concatenate([shares, 1 - shares])
    for seed, s, last, c in itertools.product((0, 1), (1e-20, 1.0), (1.0, 20.0), (0.1, 1.0, 10.0)):
        f = lambda x, c=c * s: np.abs(x) / (np.abs(x) + c)  # noqa: E731
        alpha, beta = recurrence(depth, seed)
        alpha, beta = s * (alpha + shift), s * beta
        beta[-1] *= last
        found = _quadrature.rules(alpha, beta[:-1], beta[-1], depth)
        nodes, weights = found.family_nodes[1], found.family_weights[1]
        greatest = np.sum(weights * f(nodes), axis=1).max()
        pins = []
        for side in (1, -1):
            beyond = side * found.nodes > 0
            ends = found.nodes[beyond] if beyond.any() else None
            near = 10 * s * shares / (1 - shares)
            pins.append(side * near if ends is None else side * np.abs(ends).min() * shares)
        rules = [_quadrature.radau_rule(alpha, beta[:-1], beta[-1], x) for x in np.ravel(pins)]
        assert greatest >= max(np.sum(w * f(x)) for x, w in rules) - 0.012
