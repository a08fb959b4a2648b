"""The certificate against all masks of small quadratics, and what must not change it."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxlimit import curvature, limits
from jaxlimit.limits._bound import bound_of

KINDS = ("full rank", "rank one", "low rank", "zero rows", "ties", "equal", "steep", "dead weights")


@cache
def all_masks(dim):
    """Every z in {0, 1}^dim, 1 = removed."""
    return (np.arange(2**dim)[:, None] >> np.arange(dim) & 1).astype(float)


def quadratic(kind, seed, dim):
    """B, g and w of a random quadratic; q is known exactly in float64."""
    rng = np.random.default_rng(seed)
    rank = {"rank one": 1, "low rank": 3}.get(kind, dim)
    rows = rng.normal(size=(rank, dim)) * 10 ** rng.uniform(-2, 0.5, dim)
    gradient, weights = rng.normal(size=dim), rng.normal(size=dim)
    if kind == "zero rows":
        rows[:, ::3] = 0
        gradient[::3] = 0
    elif kind == "ties":
        rows, gradient = np.round(rows), np.round(gradient)
        weights = np.sign(weights)
    elif kind == "equal":
        weights = np.ones(dim)
        rows, gradient = np.ones((1, dim)), np.full(dim, -0.1)
    elif kind == "steep":
        gradient = -5 * np.sign(weights) * np.abs(gradient)
    elif kind == "dead weights":
        weights[1::2] = 0
    scale = 0 if kind == "low rank" else 10 ** rng.uniform(-2, 1)
    as_given = (rows.T @ rows, scale * gradient, weights)
    return [np.asarray(x, np.float32).astype(float) for x in as_given]


def fewest_kept(B, gradient, weights, epsilon):
    """The true optimum over all masks."""
    removed = all_masks(weights.size) * weights
    rises = -removed @ gradient + 0.5 * np.einsum("mi,ij,mj->m", removed, B, removed, optimize=True)
    within = rises <= epsilon
    return weights.size - int(all_masks(weights.size)[within].sum(1).max(initial=0))


def certify(B, gradient, weights, epsilon, dtype=jnp.float32, **settings):
    B, gradient, weights = (jnp.asarray(x, dtype) for x in (B, gradient, weights))
    return limits.certificate(Partial(jnp.matmul, B), gradient, weights, epsilon, **settings)


def some_epsilons(B, gradient, weights):
    everything = abs(-weights @ gradient + 0.5 * weights @ B @ weights)
    return (0.0, 0.03 * everything, 0.3 * everything, 1e6)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_mask_beats_it(kind, wide):
    """Over all masks: never above the true optimum; and close to it, not vacuous."""
    certified, optima = [], []
    with jax.enable_x64(wide):
        for seed in range(12):
            problem = quadratic(kind, seed, 10)
            for epsilon in some_epsilons(*problem):
                dtype = jnp.float64 if wide else jnp.float32
                found = certify(*problem, epsilon, dtype, num_products=40)
                optimum = fewest_kept(*problem, epsilon)
                assert found.num_kept <= optimum, (seed, epsilon)
                assert found.ratio == found.num_kept / 10
                certified.append(found.num_kept)
                optima.append(optimum)
    assert sum(optima) > 0
    # Of a coupled quadratic the relaxation gives away some: rank one as much as can be.
    assert sum(certified) >= {"rank one": 0.2, "low rank": 0.2}.get(kind, 0.6) * sum(optima)


def test_no_mask_of_sixteen_beats_it():
    for seed in range(6):
        problem = quadratic("full rank", 100 + seed, 16)
        epsilon = some_epsilons(*problem)[1 + seed % 2]
        optimum = fewest_kept(*problem, epsilon)
        assert certify(*problem, epsilon).num_kept <= optimum


@pytest.mark.parametrize("num_products", [0, 5, 500])
def test_unfinished_runs_hold(num_products):
    problem = quadratic("full rank", 7, 12)
    epsilon = some_epsilons(*problem)[1]
    found = certify(*problem, epsilon, num_products=num_products)
    assert found.num_products <= num_products
    assert len(found.history) == found.num_products
    assert found.num_kept <= fewest_kept(*problem, epsilon)


def bound_by_hand(B, gradient, weights, epsilon, relaxed):
    """The formula for every n at once, in float64."""
    A = weights[:, None] * B * weights
    slope = A @ relaxed - weights * gradient
    bounds = -0.5 * relaxed @ A @ relaxed + np.concatenate([[0], np.cumsum(np.sort(slope))])
    return weights.size - int(np.flatnonzero(bounds <= epsilon).max())


@pytest.mark.parametrize("seed", range(5))
def test_the_relaxed_point_proves_it(seed):
    problem = quadratic("steep", seed, 12)
    epsilon = some_epsilons(*problem)[1]
    found = certify(*problem, epsilon, num_products=60)
    relaxed = np.asarray(found.relaxed, float)
    assert ((relaxed >= 0) & (relaxed <= 1)).all()
    by_hand = [bound_by_hand(*problem, epsilon + s, relaxed) for s in (found.slack, 0)]
    assert by_hand[0] <= found.num_kept <= by_hand[1]
    assert found.slack < 1e-3 * max(epsilon, 1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_any_point_proves_something(seed):
    problem = quadratic("full rank", seed, 12)
    epsilon = some_epsilons(*problem)[1]
    start = np.random.default_rng(seed).uniform(size=12).astype(np.float32)
    found = certify(*problem, epsilon, num_products=2, start=start)
    np.testing.assert_array_equal(found.relaxed, start)
    assert found.num_kept <= bound_by_hand(*problem, epsilon, start.astype(float))
    assert found.num_kept <= fewest_kept(*problem, epsilon)


def large(dim=400, seed=0):
    """A quadratic with scales over decades, the kind that plain gradient steps are slow on."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(150, dim)) * 10 ** rng.uniform(-3, 0, dim)
    rows[:, 0] *= 30
    return rows.T @ rows / 150, 0.01 * rng.normal(size=dim), rng.normal(size=dim)


@cache
def optimum_of_relaxation(epsilon):
    """The best bound of any z̄, by steps of another kind in float64: coordinate descent."""
    B, gradient, weights = large()
    A, a = weights[:, None] * B * weights, weights * gradient
    best = 0
    low, high = 1e-9, 1.0
    for _ in range(40):
        price = np.sqrt(low * high)
        z, slope = np.zeros(len(a)), -a.copy()
        for _ in range(60):
            for i in range(len(a)):
                new = np.clip(z[i] - (slope[i] - price) / A[i, i], 0, 1)
                slope += (new - z[i]) * A[i]
                z[i] = new
        best = max(best, bound_by_hand(B, gradient, weights, epsilon, z))
        rise = 0.5 * z @ (slope - a)
        low, high = (low, price) if rise > epsilon else (price, high)
    return best


def test_it_ends_where_coordinate_descent_ends():
    best = optimum_of_relaxation(0.05)
    B, gradient, weights = large()
    settings = {"num_products": 150, "diagonal": jnp.asarray(np.diag(B), jnp.float32)}
    found = certify(B, gradient, weights, 0.05, **settings)
    assert best - 2 <= found.num_kept <= best
    assert found.open <= 2
    without = certify(B, gradient, weights, 0.05, num_products=150)
    assert best - 3 <= without.num_kept <= best


def test_permutation_and_rescaling_change_nothing():
    B, gradient, weights = large()
    found = certify(B, gradient, weights, 0.05, num_products=80).num_kept
    order = np.random.default_rng(1).permutation(weights.size)
    permuted = B[np.ix_(order, order)], gradient[order], weights[order]
    assert abs(certify(*permuted, 0.05, num_products=80).num_kept - found) <= 1
    s = 2.0 ** np.random.default_rng(2).integers(-4, 5, weights.size)
    rescaled = s[:, None] * B * s, s * gradient, weights / s
    diagonal = jnp.asarray(np.diag(B), jnp.float32)
    one = certify(B, gradient, weights, 0.05, num_products=80, diagonal=diagonal)
    two = certify(*rescaled, 0.05, num_products=80, diagonal=s**2 * diagonal)
    assert abs(one.num_kept - two.num_kept) <= 1


def test_it_rises_as_epsilon_falls():
    problem = large()
    counts = [certify(*problem, e, num_products=60).num_kept for e in (1e-4, 1e-2, 0.1, 1.0, 10)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]


def test_a_run_goes_on_from_another():
    problem = large()
    short = certify(*problem, 0.05, num_products=30)
    seen = []
    longer = certify(
        *problem, 0.05, num_products=60, start=short, on_progress=lambda *x: seen.append(x)
    )
    whole = certify(*problem, 0.05, num_products=90)
    assert longer.num_kept >= short.num_kept
    assert abs(longer.num_kept - whole.num_kept) <= 2
    assert seen[0] == ("certificate", 1, 60)
    assert len(seen) == longer.num_products


def test_it_stops_at_a_known_mask():
    problem = large()
    whole = certify(*problem, 0.05, num_products=90)
    known = int(whole.num_kept * 0.95)
    found = certify(*problem, 0.05, num_products=90, known_kept=known)
    assert found.num_products < whole.num_products
    assert known / 1.01 <= found.num_kept


def test_the_shift_of_an_indefinite_hessian():
    for seed in range(6):
        B, gradient, weights = quadratic("full rank", seed, 10)
        hessian = B - 0.05 * np.eye(10)
        least = -np.linalg.eigvalsh(hessian)[0]
        for epsilon in some_epsilons(hessian, gradient, weights)[:3]:
            found = certify(
                hessian, gradient, weights, epsilon, shift=1.01 * least, num_products=50
            )
            assert found.num_kept <= fewest_kept(hessian, gradient, weights, epsilon)
        by_hand = hessian + np.eye(10), gradient + 0.5 * weights, weights
        one = certify(hessian, gradient, weights, epsilon, shift=1.0, num_products=50)
        two = certify(*by_hand, epsilon, num_products=50)
        assert one.num_kept == two.num_kept


def test_dead_weights_cost_nothing():
    B, gradient, weights = quadratic("full rank", 3, 8)
    wide = np.zeros((12, 12))
    wide[:8, :8] = B
    diagonal = jnp.asarray(np.diag(wide), jnp.float32)
    dead = wide, np.append(gradient, np.zeros(4)), np.append(weights, np.ones(4))
    epsilon = some_epsilons(B, gradient, weights)[1]
    found = certify(*dead, epsilon, diagonal=diagonal)
    assert found.num_kept == certify(B, gradient, weights, epsilon).num_kept
    assert (found.relaxed[8:] == 1).all()


def test_nothing_to_remove_and_nothing_to_keep():
    B, gradient, weights = quadratic("full rank", 3, 8)
    nothing = certify(B, gradient, 0 * weights, 0.0)
    assert (nothing.num_kept, nothing.num_products) == (0, 0)
    flat = certify(0 * B, 0 * gradient, weights, 0.0)
    assert flat.num_kept == 0
    assert certify(B, 0 * gradient, weights, 1e6).num_kept == 0
    assert len(repr(certify(*large(), 0.05, num_products=30))) < 250


def test_a_trained_network():
    """All masks of a net of 17 weights, on its Gauss-Newton quadratic."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 40, 3)), jnp.float32)
    labels = (x[..., 0] * x[..., 1] > 0).astype(jnp.int32)
    params = {"a": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32), "c": jnp.zeros(2)}
    params["b"] = jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)

    def logits(p, batch):
        return jnp.tanh(batch[0] @ p["a"]) @ p["b"] + p["c"]

    def output_loss(y, batch):
        picked = jnp.take_along_axis(y, batch[1][:, None], 1)[:, 0]
        return (jax.nn.logsumexp(y, -1) - picked).mean()

    loss = curvature.split_loss(logits, output_loss)
    batch = x[0], labels[0]
    for _ in range(200):
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params, batch))
    source = loss, params, (x, labels)
    operator = curvature.gauss_newton_matvec(*source)
    gradient = curvature.mean_gradient(*source)
    weights = jax.flatten_util.ravel_pytree(params)[0]
    B = np.asarray(jax.vmap(operator)(jnp.eye(17)), float)
    B = (B + B.T) / 2
    wide = B, np.asarray(gradient, float), np.asarray(weights, float)
    for epsilon in (0.0, 0.01, 0.1, 1.0):
        found = limits.certificate(
            operator, gradient, weights, epsilon, diagonal=curvature.diagonal(*source)
        )
        assert found.num_kept <= fewest_kept(*wide, epsilon)
    kept = np.arange(17) % 3 > 0
    removed = np.where(kept, 0, weights)
    pruned = jax.tree.map(
        jnp.asarray, jax.flatten_util.ravel_pytree(params)[1](jnp.where(kept, weights, 0))
    )
    rise = float(loss(pruned, batch) - loss(params, batch))
    shares = limits.shares(operator, gradient, weights, kept, 0.1, rise=rise)
    np.testing.assert_allclose(shares.linear, -removed @ wide[1] / 0.1, rtol=1e-4)
    np.testing.assert_allclose(shares.quadratic, removed @ B @ removed / 0.2, rtol=1e-4)
    np.testing.assert_allclose(sum(shares), rise / 0.1, rtol=1e-4)


def test_the_bound_by_hand():
    slope = np.array([-1.0, 0.5, 0.25, 2.0])
    assert bound_of(slope, 1.0, 0.0, 3) == (3 + 3, 2.0)  # -½ - 1 + ¼ + ½ ≤ 0 < -¾ + 2
    assert bound_of(slope, 1.0, 9.0, 3) == (7, np.inf)


def test_negative_curvature_that_no_step_meets():
    """Of each pair the two are alike, so no step parts them; only their difference is negative."""
    pairs = np.kron(np.eye(20), np.array([[1.0, 1.4], [1.4, 1.0]]))
    ones = np.ones(40)
    with pytest.raises(ValueError, match=r"Rayleigh quotient -0\.4"):
        certify(pairs, 0 * ones, ones, 1.0, diagonal=jnp.ones(40))
    # Too few products to look for it; and where it is shifted away there is nothing to name.
    assert certify(pairs, 0 * ones, ones, 1.0, diagonal=jnp.ones(40), num_products=30).num_kept > 0
    shifted = certify(pairs, 0 * ones, ones, 1.0, diagonal=jnp.ones(40), shift=0.41)
    # The best mask within ε takes one of two: its rise is ½ each.
    assert shifted.num_kept <= 38


def test_bad_input():
    B, gradient, weights = quadratic("full rank", 3, 8)
    with pytest.raises(ValueError, match="positive semi-definite"):
        certify(large()[0] - 0.1 * np.eye(400), *large()[1:], 0.05)
    with pytest.raises(ValueError, match="positive semi-definite"):
        certify(-B, gradient, weights, 0.1)
    with pytest.raises(ValueError, match="gradient must be flat"):
        certify(B, gradient[:5], weights, 0.1)
    with pytest.raises(ValueError, match="diagonal must be flat"):
        certify(B, gradient, weights, 0.1, diagonal=jnp.ones(3))
    with pytest.raises(ValueError, match="epsilon"):
        certify(B, gradient, weights, -0.1)
    with pytest.raises(ValueError, match="epsilon"):
        certify(B, gradient, weights, np.nan)
    with pytest.raises(ValueError, match="shift"):
        certify(B, gradient, weights, 0.1, shift=-1.0)
    with pytest.raises(ValueError, match="weights must be finite"):
        certify(B, gradient, np.full(8, np.nan), 0.1)
    with pytest.raises(ValueError, match="start"):
        certify(B, gradient, weights, 0.1, start=jnp.ones(9))
    with pytest.raises(ValueError, match="start"):
        certify(B, gradient, weights, 0.1, start=2 * jnp.ones(8))
    with pytest.raises(TypeError, match="num_products"):
        certify(B, gradient, weights, 0.1, num_products=2.5)
    with pytest.raises(FloatingPointError, match="product 1"):
        limits.certificate(lambda v: v / 0, jnp.ones(3), jnp.ones(3), 0.1)
    with pytest.raises(ValueError, match="map \\[8\\]"):
        limits.certificate(lambda v: v[:3], gradient, weights, 0.1)
    with pytest.raises(TypeError, match="kept must be boolean"):
        limits.shares(lambda v: v, jnp.ones(3), jnp.ones(3), jnp.ones(3), 0.1)
    with pytest.raises(ValueError, match="epsilon"):
        limits.shares(lambda v: v, jnp.ones(3), jnp.ones(3), jnp.ones(3, bool), 0.0)
