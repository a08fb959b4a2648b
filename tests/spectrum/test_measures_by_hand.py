"""Measures of recurrences written down by hand, against their own dense matrices; no Lanczos."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import spectrum
from jaxlimit.lanczos import Tridiagonalization
from jaxlimit.spectrum.measure import check_steps

RNG = np.random.default_rng(5)
ALPHA, BETA = RNG.normal(size=(3, 6)), RNG.uniform(0.3, 1.5, size=(3, 6))


def by_hand(failed=(-1, -1, -1), num_valid=(6, 6, 6), basis=None):
    """Three recurrences of six steps, the entries past what is valid 0 as Lanczos leaves them."""
    valid = np.arange(6) < np.array(num_valid)[:, None]
    going = valid & ((np.arange(6) < np.array(num_valid)[:, None] - 1) | valid.all(1)[:, None])
    alpha, beta = (np.float32(np.where(on, x, 0)) for on, x in ((valid, ALPHA), (going, BETA)))
    return Tridiagonalization(
        jnp.asarray(alpha),
        jnp.asarray(beta[:, :-1]),
        basis,
        jnp.asarray(np.take_along_axis(beta, np.array(num_valid)[:, None] - 1, 1)[:, 0]),
        jnp.asarray(num_valid),
        jnp.asarray(failed),
    )


def gauss(alpha, beta):
    m = len(alpha)
    values, vectors = np.linalg.eigh(
        np.diag(alpha) + np.diag(beta[: m - 1], 1) + np.diag(beta[: m - 1], -1)
    )
    return values, vectors[0] ** 2


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_each_recurrence_is_a_row_and_what_is_not_valid_has_no_weight():
    measure = spectrum.measure_from(by_hand(num_valid=(6, 1, 4), basis=jnp.ones((3, 6, 9))), dim=9)
    assert measure.recurrence.basis is None
    assert (measure.dim, measure.exact, measure.nodes.shape) == (9, False, (3, 6))
    for row, m in enumerate((6, 1, 4)):
        nodes, weights = gauss(ALPHA[row, :m], BETA[row, :m])
        np.testing.assert_allclose(measure.nodes[row, :m], nodes, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(measure.weights[row, :m], weights, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(measure.weights[row, m:], 0)
    one = jax.tree.map(lambda x: x[1], by_hand())
    assert_same(
        spectrum.measure_from(one, dim=9).nodes, spectrum.measure_from(by_hand(), dim=9).nodes[1:2]
    )


def test_traced_and_mapped_recurrences_give_the_same_rules():
    result = by_hand(num_valid=(6, 2, 4))
    eager = spectrum.measure_from(result, dim=9)
    mapped = jax.jit(jax.vmap(lambda t: spectrum.measure_from(t, dim=9)))(result)
    for one, other in zip(
        jax.tree.leaves((eager.nodes, eager.weights, eager.rules)),
        jax.tree.leaves((mapped.nodes, mapped.weights, mapped.rules)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other[:, 0])
    with jax.enable_x64(True):
        again = spectrum.measure_from(result, dim=9)
        assert again.nodes.dtype == again.rules.weights.dtype == jnp.float32


def test_the_first_probe_that_failed_is_named_with_its_own_step():
    with pytest.raises(FloatingPointError, match="at Lanczos step 0 of probe 2"):
        spectrum.measure_from(by_hand(failed=(-1, -1, 0)), dim=9)
    with pytest.raises(FloatingPointError, match="at Lanczos step 3 of probe 1"):
        spectrum.measure_from(by_hand(failed=(-1, 3, 2)), dim=9)
    with pytest.raises(FloatingPointError, match="at Lanczos step 4 of probe 7"):
        check_steps(jnp.int32(4), 7)
    check_steps(jnp.array([-1, -1]))


def test_a_measure_cut_to_any_depth_is_that_of_the_shorter_recurrence():
    measure = spectrum.measure_from(by_hand(num_valid=(6, 2, 4)), dim=9)
    for m in range(1, 6):
        valid = tuple(min(m, n) for n in (6, 2, 4))
        t = by_hand(num_valid=(6, 2, 4))
        short = spectrum.measure_from(
            t._replace(
                diagonal=t.diagonal[:, :m],
                off_diagonal=t.off_diagonal[:, : m - 1],
                residual_norm=t.off_diagonal[:, m - 1],
                num_valid=jnp.array(valid),
            ),
            dim=9,
        )
        assert_same(spectrum.truncate(measure, m), short)
    assert_same(spectrum.truncate(measure, 6), measure)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        spectrum.truncate(measure, 0)
    with pytest.raises(ValueError, match=r"num_steps must lie in \[1, 6\], got 7"):
        spectrum.truncate(measure, 7)


def test_a_pinned_measure_has_a_rule_of_one_more_node_a_probe():
    result = by_hand(num_valid=(6, 2, 4))._replace(residual_norm=jnp.full(3, 0.7))
    measure = spectrum.measure_from(result, dim=9)
    for given, known in ((measure, {}), (result, {"dim": 9})):
        pinned = spectrum.pinned_measure(given, -0.4, **known)
        assert (pinned.dim, pinned.nodes.shape, pinned.rules) == (9, (3, 7), None)
        assert_same(pinned.recurrence, measure.recurrence)
        assert spectrum.truncate(pinned, 3).nodes.shape == (3, 3)
        for row, m in enumerate((6, 2, 4)):
            nodes, weights = (np.float64(x[row]) for x in (pinned.nodes, pinned.weights))
            np.testing.assert_array_equal(weights[m + 1 :], 0)
            assert np.float32(-0.4) in nodes[: m + 1].astype(np.float32)
            own, shares = gauss(ALPHA[row, :m], BETA[row, :m])
            for k in range(2 * m):
                assert np.sum(weights * nodes**k) == pytest.approx(
                    np.sum(shares * own**k), rel=1e-3, abs=1e-3
                )
    broken = result._replace(diagonal=result.diagonal.at[1].set(jnp.nan))
    found = spectrum.pinned_measure(broken, 0.0, dim=9).nodes
    np.testing.assert_array_equal(np.isnan(found).any(1), [False, True, False])
    with pytest.raises(ValueError, match="dim must be given where tridiagonal keeps no basis"):
        spectrum.pinned_measure(result, 0.0)
    basis = by_hand(basis=jnp.ones((3, 6, 11)))
    assert spectrum.pinned_measure(basis, 0.0).dim == 11


def test_weights_sum_to_one_in_each_row_within_a_thousandth():
    make = lambda weights: spectrum.SpectralMeasure.from_nodes(  # noqa: E731
        jnp.zeros(np.shape(weights)), jnp.asarray(weights), dim=4
    )
    make([[0.5, 0.5], [0.4995, 0.4997]])
    make(jnp.full(4096, 2.0**-12, jnp.bfloat16))  # a sum in bfloat16 would stand still
    for weights in ([[0.5, 0.5], [0.5, 0.498]], [0.5, 0.502]):
        with pytest.raises(ValueError, match="weights must sum to 1 in each row"):
            make(weights)
    with pytest.raises(ValueError, match=r"weights must not be negative, got -0\.1"):
        make([1.1, -0.1])
    for eigenvalues in (jnp.ones((2, 2)), jnp.float32(1), jnp.ones(0)):
        with pytest.raises(ValueError, match="eigenvalues must be a vector"):
            spectrum.exact_measure(eigenvalues)
    exact = spectrum.exact_measure(jnp.arange(4.0))
    np.testing.assert_array_equal(exact.weights, np.full((1, 4), 0.25))
    assert (exact.exact, exact.dim) == (True, 4)
