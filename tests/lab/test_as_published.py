"""The authors' reading of a spectrum against a density made bin by bin, and ours against limits."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import limits, spectrum
from jaxlimit.lab import as_published
from jaxlimit.lab.as_published import OURS, THEIRS, demand, gap_by_two_readings, predicted_ratio


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.zeros(300), rng.standard_cauchy(200) ** 2 / 10]).clip(-1, 50)
    weights = jnp.asarray(rng.laplace(size=500), jnp.float32)
    operator = jnp.asarray(rng.permutation(values), jnp.float32)
    measure = spectrum.spectral_measure(
        lambda v: operator * v, jax.random.key(0), dim=500, num_steps=100
    )
    ratios = np.geomspace(1e-3, 1, 400)
    squares = np.append(0, np.cumsum(np.sort(np.asarray(weights, np.float64) ** 2)))
    radii = np.sqrt(squares[500 - np.round(500 * ratios).astype(int)])
    return measure, weights, as_published.radius_of_sweep(list(ratios), list(radii))


def test_our_reading_is_the_pruning_limit(problem):
    measure, weights, radius_at = problem
    truth = float(limits.pruning_limit(measure, weights, 0.5).ratio)
    assert abs(predicted_ratio(measure, radius_at, 0.5, num_ratios=1500) / truth - 1) < 0.02


def test_a_smoothed_density_is_the_histogram_of_its_bins(problem):
    measure = problem[0]
    nodes, weights = (np.asarray(x[0], np.float64) for x in (measure.nodes, measure.weights))
    spread = 1e-5 * (nodes.max() - nodes.min())
    offsets = np.linspace(-8, 8, 4001) * spread
    bell = np.exp(-((offsets / spread) ** 2) / 2)
    bell /= bell.sum()
    c = 2 * 0.5 / 3.0**2
    size = np.abs(nodes[:, None] + offsets)
    truth = (weights[:, None] * bell * size / (size + c)).sum()
    found = demand(measure, np.array([3.0]), 0.5, replace(OURS, bracketed=False, smoothed=True))
    np.testing.assert_allclose(found, truth, rtol=1e-4)


def test_each_choice_does_what_it_says(problem):
    measure, _, radius_at = problem
    gridded = predicted_ratio(measure, radius_at, 0.5, replace(OURS, grid=0.05))
    assert abs(gridded / 0.05 - round(gridded / 0.05)) < 1e-9
    exact = predicted_ratio(measure, radius_at, 0.5, num_ratios=1000)
    assert exact <= gridded + 1e-9 < exact + 0.05 + 1e-9
    plain = demand(measure, np.array([2.0]), 0.5, replace(OURS, bracketed=False, depth=20))
    c = 2 * 0.5 / 4
    cut = spectrum.truncate(measure, 20)
    share = lambda x: jnp.abs(x) / (jnp.abs(x) + c)  # noqa: E731
    np.testing.assert_allclose(plain, spectrum.trace_function(cut, share).value, rtol=1e-5)
    rounded = replace(OURS, rounded=True)
    ratios = np.geomspace(1e-5, 1, 1000)
    asked = limits.lower_bound(measure, np.round(radius_at(ratios)), 0.5).value
    truth = ratios[np.asarray(asked) > ratios].max()
    assert predicted_ratio(measure, radius_at, 0.5, rounded, num_ratios=1000) > truth
    assert predicted_ratio(measure, radius_at, 0.5, rounded, num_ratios=1000) < truth * 1.02


def test_readings_lead_from_ours_to_theirs():
    steps = list(as_published.one_by_one().values())
    assert steps[0] == OURS
    assert steps[-1] == THEIRS
    pairs = itertools.pairwise(map(vars, steps))
    changed = [sum(before[name] != after[name] for name in before) for before, after in pairs]
    assert changed == [1] * 5


def test_both_readings_of_the_gap_on_a_known_block():
    whole = spectrum.exact_measure(jnp.asarray(np.linspace(0, 3, 30), jnp.float32))
    removed = spectrum.exact_measure(jnp.asarray(np.linspace(0, 1, 24), jnp.float32))
    c = 2 * 0.1 / 2.0**2
    f = lambda x: x / (x + c)  # noqa: E731
    own, mine = f(np.linspace(0, 1, 24)).sum(), f(np.linspace(0, 3, 30)).mean()
    found = gap_by_two_readings(whole, removed, 2.0, 0.1, OURS)
    np.testing.assert_allclose(found, (own / 30, mine - own / 24), rtol=1e-5)


def test_bad_arguments_are_named(problem):
    measure, _, radius_at = problem
    with pytest.raises(ValueError, match="epsilon"):
        predicted_ratio(measure, radius_at, -1.0)
    with pytest.raises(ValueError, match="num_steps"):
        predicted_ratio(measure, radius_at, 0.5, replace(OURS, depth=1000))


def test_their_tolerance_is_the_spread_of_batches():
    """A loss that is one pixel's mean: the spread of batches follows from the images alone."""
    rng = np.random.default_rng(1)
    images = np.repeat(rng.integers(0, 256, (2000, 1, 1, 1)), 144).reshape(2000, 12, 12, 1)
    images = images.astype(np.uint8)
    inner = lambda params, batch, state: jnp.mean(batch[0][:, 5, 5, 0].astype(jnp.float32))  # noqa: E731
    found = as_published.batch_tolerance(
        inner, {}, {}, (images, np.zeros(2000, np.int32)), jax.random.key(0), batch_size=10
    )
    truth = images[:, 5, 5, 0].std() / 10**0.5  # 1,600 batches: 1.8 % of error
    assert abs(found / truth - 1) < 0.07
    with pytest.raises(ValueError, match="data must hold batches of 128"):
        as_published.batch_tolerance(
            inner, {}, {}, (images[:9], np.zeros(9, np.int32)), jax.random.key(0)
        )


def test_kernels_alone_lie_between_the_bounds_of_interlacing():
    rng = np.random.default_rng(2)
    factor = rng.normal(size=(40, 15))
    H = factor @ factor.T
    trace = lambda A: (lambda x: (x / (x + 0.7)).sum())(np.linalg.eigvalsh(A).clip(0))  # noqa: E731
    low, high = as_published.kernels_alone(trace(H) / 40, 40, 6)
    blocks = (np.sort(rng.permutation(40)[:34]) for _ in range(50))
    found = [trace(H[np.ix_(block, block)]) / 34 for block in blocks]
    assert low <= min(found)
    assert max(found) <= high
