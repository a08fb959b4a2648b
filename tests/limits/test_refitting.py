"""Refitting on the quadratic, against linear algebra in float64 and brute force over supports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import limits
from jaxlimit.limits import refit, refitted, refitted_limit


def quadratic(seed, dim=30, rank=None):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(dim, rank or 2 * dim))
    H = factor @ factor.T / dim
    return H, rng.normal(size=dim) * 0.1, rng.normal(size=dim)


def exact(H, g, w, kept, damping=0.0):
    """The least rise and the refitted weights, by a dense solve."""
    cut = np.where(kept, 0, -w)
    slope = (g + H @ cut)[kept]
    step = np.zeros_like(w)
    block = H[np.ix_(kept, kept)] + damping * np.eye(kept.sum())
    step[kept] = np.linalg.lstsq(block, -slope, rcond=None)[0]
    change = cut + step
    return g @ change + change @ H @ change / 2, np.where(kept, w + step, 0)


def operator(H):
    H = jnp.asarray(H, jnp.float32)
    return jax.tree_util.Partial(jnp.matmul, H)


def float32(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_a_refit_is_the_dense_solution(seed, damping):
    H, g, w = quadratic(seed)
    kept = np.random.default_rng(seed).random(30) < 0.4
    rise, weights = exact(H, g, w, kept, damping)
    found = refit(operator(H), *float32(g, w), kept, damping=damping, num_steps=60, tolerance=1e-6)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.rise, rise, rtol=1e-4, atol=1e-5)
    assert found.residual < 1e-5
    assert not np.asarray(found.weights)[~kept].any()


def test_the_rise_without_refitting_is_the_quadratic_itself():
    H, g, w = quadratic(3)
    kept = np.abs(w) > 0.5
    cut = np.where(kept, 0, -w)
    found = refit(operator(H), *float32(g, w), kept, num_steps=0)
    np.testing.assert_allclose(found.one_shot, g @ cut + cut @ H @ cut / 2, rtol=1e-5)
    np.testing.assert_allclose(found.rise, found.one_shot, rtol=1e-5)
    slope = (g + H @ cut)[kept]
    assert found.num_products == 2
    np.testing.assert_allclose(found.residual, 1, rtol=1e-5)
    assert np.linalg.norm(slope) > 0


def test_a_refit_that_starts_elsewhere_is_the_dense_solution():
    H, g, w = quadratic(5)
    kept = np.random.default_rng(5).random(30) < 0.4
    rise, weights = exact(H, g, w, kept, 0.5)
    other = float32(w + np.random.default_rng(6).normal(size=30))[0]
    settings = {"damping": 0.5, "num_steps": 60, "tolerance": 1e-6}
    found = refit(operator(H), *float32(g, w), kept, start=other, **settings)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.rise, rise, rtol=1e-4, atol=1e-5)


def test_it_stops_at_the_first_residual_within_the_tolerance():
    H, g, w = quadratic(6, dim=200)
    kept, args = np.ones(200, bool), (operator(H), *float32(g + 1, w))
    kept[:40] = False
    residuals = [float(refit(*args, kept, num_steps=n, tolerance=0.0).residual) for n in range(12)]
    for tolerance in (0.5, 0.2, 0.1):
        found = refit(*args, kept, tolerance=tolerance, num_steps=12)
        first = next(n for n, residual in enumerate(residuals) if residual <= tolerance)
        assert found.num_products == first + 2
        # To start elsewhere costs one product.
        other = refit(*args, kept, start=args[2] + 1, tolerance=tolerance, num_steps=0)
        assert other.num_products == 3


def test_nothing_to_refit_is_no_nan():
    found = refit(operator(np.eye(3)), jnp.zeros(3), jnp.arange(1.0, 4.0), np.arange(3) > 0)
    assert (found.rise, found.residual) == (0.5, 0)
    np.testing.assert_array_equal(found.weights, [0.0, 2.0, 3.0])


@pytest.mark.parametrize("s", [1e-25, 1e15])
def test_a_refit_scales_with_the_weights(s):
    H, g, w = quadratic(7)
    kept, settings = np.abs(w) > 0.5, {"num_steps": 40, "tolerance": 1e-5}
    plain = refit(operator(H), *float32(g, w), kept, **settings)
    scaled = refit(operator(H), *float32(s * g, s * w), kept, **settings)
    np.testing.assert_allclose(scaled.weights / s, plain.weights, rtol=1e-3, atol=1e-4)
    assert scaled.residual < 1e-4


def test_as_many_steps_as_there_are_curvatures_end_it():
    H = np.diag(np.repeat([1.0, 10.0, 300.0], 4))
    g = np.random.default_rng(8).normal(size=12)
    w, kept = np.ones(12), np.ones(12, bool)
    found = refit(operator(H), *float32(g, w), kept, num_steps=3, tolerance=0.0)
    np.testing.assert_allclose(found.weights, w - g / np.diag(H), rtol=1e-4, atol=1e-4)
    assert found.residual < 1e-2  # 300 eps is the condition's part of it
    np.testing.assert_allclose(refit(lambda v: 2 * v, *float32(g, w), kept).curvature, 2, rtol=1e-5)


def test_a_first_direction_without_a_minimum_is_not_taken():
    w, kept = jnp.arange(1.0, 5.0), np.arange(4) > 0
    found = refit(lambda v: -v, jnp.ones(4), w, kept)
    np.testing.assert_array_equal(found.weights, [0.0, 2.0, 3.0, 4.0])
    assert (found.curvature, found.num_products) == (-1, 3)


def test_counts_may_come_in_any_order():
    H, g, w = quadratic(9)
    counts = np.array([20, 5, 28, 11, 0])
    ranks = np.argsort(np.argsort(-np.abs(w)))
    settings = {"num_steps": 60, "tolerance": 1e-6}
    found = refitted(operator(H), *float32(g, w), counts, **settings)
    for i, count in enumerate(counts):
        rise, weights = exact(H, g, w, ranks < count)
        np.testing.assert_allclose(found.rise[i], rise, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.weights[i], weights, rtol=1e-3, atol=1e-3)


def test_each_count_starts_from_the_one_before():
    H, g, w = quadratic(10, dim=200)
    ranks = np.argsort(np.argsort(-np.abs(w)))
    counts, args = np.array([147, 150, 148, 149]), (operator(H), *float32(g, w))
    alone = sum(int(refit(*args, ranks < count).num_products) for count in counts)
    assert refitted(*args, counts).num_products.sum() < alone - 4


def test_a_rise_of_just_epsilon_is_within_it():
    for epsilon, kept in ((0.5, 1), (2.5, 0)):
        found = refitted_limit(lambda v: v, jnp.zeros(2), jnp.array([2.0, 1.0]), epsilon)
        assert (found.num_kept, found.rise) == (kept, epsilon)


def test_the_bracket_of_the_count_is_as_narrow_as_was_asked():
    """On H = I nothing is refitted, and the rise is half the squares of what goes."""
    w = np.linspace(0.001, 1, 1000)[::-1]
    for share in (0.9, 0.5, 0.1, 0.01):
        epsilon = share * (w**2).sum() / 2
        least = next(k for k in range(1000) if (w[k:] ** 2).sum() / 2 <= epsilon)
        found = refitted_limit(lambda v: v, *float32(0 * w, w), epsilon)
        assert least <= found.num_kept <= least + max(1, 0.01 * found.num_kept)
        assert found.num_products >= 12  # two in each of at least six refits


def test_an_unfinished_refit_lies_between_one_shot_and_the_least():
    H, g, w = quadratic(4)
    kept = np.abs(w) > 0.7
    least, _ = exact(H, g, w, kept)
    rises = [
        refit(operator(H), *float32(g, w), kept, num_steps=n, tolerance=0).rise for n in range(6)
    ]
    assert np.all(np.diff(rises) <= 1e-5)
    assert rises[0] > rises[5] > least - 1e-5


def test_a_curve_agrees_with_refits_of_its_own_and_with_the_exact_limit():
    H, _, w = quadratic(5)
    zero = np.zeros_like(w)
    counts = np.array([3, 25, 12, 30, 0])
    curve = refitted(operator(H), *float32(zero, w), counts, num_steps=60, tolerance=1e-6)
    order = np.argsort(-np.abs(w), kind="stable")
    for i, count in enumerate(counts):
        kept = np.zeros(30, bool)
        kept[order[:count]] = True
        np.testing.assert_allclose(curve.rise[i], exact(H, zero, w, kept)[0], rtol=2e-4, atol=1e-5)
    epsilon = float(curve.rise[2]) * 1.001
    truth = limits.quadratic_limit(*float32(H, w), epsilon)
    found = refitted_limit(operator(H), *float32(zero, w), epsilon, num_steps=60, tolerance=1e-6)
    assert found.num_kept == truth.refitted == 12
    assert found.rise <= epsilon


def test_the_order_is_the_callers():
    H, g, w = quadratic(6)
    ranks = np.random.default_rng(0).permutation(30)
    kept = ranks < 10
    found = refitted(
        operator(H), *float32(g, w), [10], ranks=jnp.asarray(ranks), num_steps=60, tolerance=1e-6
    )
    np.testing.assert_allclose(found.rise[0], exact(H, g, w, kept)[0], rtol=1e-3, atol=1e-4)
    assert np.array_equal(np.asarray(found.weights[0]) != 0, kept)


def test_a_singular_quadratic_is_refitted_to_its_least():
    H, _, w = quadratic(7, rank=6)
    kept = np.abs(w) > 0.3
    least, _ = exact(H, np.zeros(30), w, kept)
    found = refit(operator(H), *float32(np.zeros(30), w), kept, num_steps=60, tolerance=1e-6)
    np.testing.assert_allclose(found.rise, least, atol=2e-4)


def test_negative_curvature_ends_the_refit_and_is_told():
    H = np.diag([1.0, -1.0, 2.0])
    found = refit(operator(H), *float32(np.ones(3), np.ones(3)), np.array([True, True, False]))
    assert found.curvature <= 0
    assert np.isfinite(found.rise)


def test_the_limit_at_the_ends():
    H, _, w = quadratic(8)
    args = (operator(H), *float32(np.zeros(30), w))
    assert refitted_limit(*args, 1e6).num_kept == 0
    assert refitted_limit(*args, 0.0).num_kept == 30


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"kept": np.ones(30)}, TypeError),
        ({"kept": np.ones(29, bool)}, ValueError),
        ({"gradient": np.full(30, np.nan, np.float32)}, ValueError),
        ({"damping": -1.0}, ValueError),
        ({"num_steps": 2.5}, TypeError),
        ({"start": np.ones(3, np.float32)}, ValueError),
    ],
)
def test_bad_arguments_are_named(change, error):
    H, g, w = quadratic(0)
    gradient, weights = float32(g, w)
    arguments = {"gradient": gradient, "weights": weights, "kept": np.ones(30, bool)} | change
    with pytest.raises(error, match=next(iter(change))):
        refit(operator(H), **arguments)


@pytest.mark.parametrize("seed", range(4))
def test_rounds_against_all_supports(seed):
    """One by one they are never better than the best of all supports, and here as good."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(8, 4))
    H, w = factor @ factor.T / 4 + 0.05 * np.eye(8), rng.normal(size=8)
    g = 0.05 * rng.normal(size=8)
    epsilon = 0.1 * w @ H @ w
    found = limits.refitted_rounds(
        operator(H), *float32(g, w), epsilon, diagonal=jnp.asarray(np.diag(H), jnp.float32),
        shrink=1.0, num_steps=60,
    )  # fmt: skip
    rise, weights = exact(H, g, w, np.asarray(found.kept))
    np.testing.assert_allclose(found.rise, rise, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.weights, weights, rtol=1e-2, atol=1e-3)
    assert found.rise <= epsilon
    supports = np.array(list(np.ndindex(*[2] * 8)), bool)
    fewest = min(s.sum() for s in supports if exact(H, g, w, s)[0] <= epsilon)
    assert fewest <= found.num_kept <= fewest + 1
    assert found.history == tuple(range(8, found.num_kept - 1, -1))


def test_rounds_in_bites_and_at_the_ends():
    H, g, w = quadratic(9)
    args = (operator(H), *float32(g, w))
    bites = limits.refitted_rounds(*args, 1.0, diagonal=jnp.asarray(np.diag(H), jnp.float32))
    rise, _ = exact(H, g, w, np.asarray(bites.kept))
    np.testing.assert_allclose(bites.rise, rise, rtol=2e-2, atol=1e-3)
    assert bites.rise <= 1.0
    assert bites.history[0] == 30
    assert list(bites.history) == sorted(bites.history, reverse=True)
    assert limits.refitted_rounds(*args, 1e6).num_kept == 0
    removed = np.where(np.arange(30) < 20, 0, w)
    assert limits.refitted_rounds(operator(H), *float32(g, removed), 0.0).history[0] == 10
    with pytest.raises(ValueError, match="shrink must lie in"):
        limits.refitted_rounds(*args, 1.0, shrink=0.0)
