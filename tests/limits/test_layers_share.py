"""Tolerances shared out to layers, against a search over all ways to share and dense matrices."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit._core.estimate import exact_estimate
from jaxlimit.limits import by_layer, coupling, pruning_limit
from jaxlimit.spectrum import exact_measure


def layers(seed, dims=(40, 25, 60), scale=1.0):
    rng = np.random.default_rng(seed)
    spectra, weights = {}, {}
    for i, dim in enumerate(dims):
        values = np.abs(rng.standard_cauchy(dim)) * 10.0 ** rng.uniform(-1, 1) * scale
        spectra[f"layer{i}"] = exact_measure(jnp.asarray(values, jnp.float32))
        weights[f"layer{i}"] = jnp.asarray(rng.laplace(size=dim), jnp.float32)
    return spectra, weights


def best_by_search(spectra, weights, epsilon, steps=40):
    """The fewest weights over a grid of all ways to share the tolerance."""
    names = list(spectra)
    kept = {
        name: [
            int(pruning_limit(spectra[name], weights[name], epsilon * i / steps).num_kept)
            for i in range(steps + 1)
        ]
        for name in names
    }
    ways = (w for w in itertools.product(range(steps + 1), repeat=3) if sum(w) == steps)
    return min(sum(kept[n][i] for n, i in zip(names, way, strict=True)) for way in ways)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_way_to_share_keeps_fewer(seed):
    spectra, weights = layers(seed)
    found = by_layer(spectra, weights, epsilon=5.0)
    # A hull of integers: within a weight a layer of the best, and never far below the search.
    assert found.num_kept <= best_by_search(spectra, weights, 5.0) + 3
    np.testing.assert_allclose(sum(found.epsilons.values()), 5.0, rtol=1e-6)


def test_each_layer_is_as_by_its_own_limit():
    spectra, weights = layers(1)
    found = by_layer(spectra, weights, epsilon=exact_estimate(jnp.asarray(2.0)))
    for name, limit in found.limits.items():
        alone = pruning_limit(spectra[name], weights[name], found.epsilons[name])
        assert limit.num_kept == alone.num_kept
    assert found.num_kept == sum(int(limit.num_kept) for limit in found.limits.values())
    assert found.ratio == found.num_kept / 125


def test_equal_layers_get_equal_shares():
    spectra, weights = layers(2, (50,))
    twice = {"a": spectra["layer0"], "b": spectra["layer0"]}
    both = {"a": weights["layer0"], "b": weights["layer0"]}
    found = by_layer(twice, both, epsilon=4.0)
    assert abs(int(found.limits["a"].num_kept) - int(found.limits["b"].num_kept)) <= 1


def test_a_ratio_is_met_and_its_tolerance_gives_it_back():
    spectra, weights = layers(3)
    found = by_layer(spectra, weights, ratio=0.2)
    assert abs(found.num_kept - 25) <= 3
    again = by_layer(spectra, weights, epsilon=sum(found.epsilons.values()))
    assert abs(again.num_kept - found.num_kept) <= 1


def test_more_tolerance_keeps_no_more():
    spectra, weights = layers(4)
    kept = [by_layer(spectra, weights, epsilon=e).num_kept for e in (0.0, 0.1, 1.0, 10.0, 1e9)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 125
    assert kept[-1] == 3


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_shares_are_free_of_scale(scale):
    plain = by_layer(*layers(5), epsilon=3.0)
    scaled = by_layer(*layers(5, scale=scale), epsilon=3.0 * scale)
    assert abs(scaled.num_kept - plain.num_kept) <= 1
    for name, share in plain.epsilons.items():
        np.testing.assert_allclose(scaled.epsilons[name] / scale, share, rtol=1e-3, atol=1e-6)


def test_coupling_is_the_excess_of_the_pinched_trace():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(12, 20))
    H, c = factor @ factor.T / 20, 0.3
    whole, blocks = np.linalg.eigvalsh(H), [H[:5, :5], H[5:, 5:]]
    parts = [np.linalg.eigvalsh(block) for block in blocks]
    trace = lambda values: (values / (values + c)).sum()  # noqa: E731
    truth = sum(map(trace, parts)) / trace(whole) - 1
    measures = {str(i): exact_measure(jnp.asarray(p, jnp.float32)) for i, p in enumerate(parts)}
    found = coupling(exact_measure(jnp.asarray(whole, jnp.float32)), measures, c)
    assert truth > 0.01
    np.testing.assert_allclose(found.value, truth, rtol=1e-4)
    np.testing.assert_allclose([found.lower, found.upper], truth, rtol=1e-4)


def test_bad_arguments_are_named():
    spectra, weights = layers(0)
    with pytest.raises(ValueError, match="epsilon or ratio"):
        by_layer(spectra, weights)
    with pytest.raises(ValueError, match="epsilon or ratio"):
        by_layer(spectra, weights, epsilon=1.0, ratio=0.1)
    with pytest.raises(ValueError, match="same layers"):
        by_layer(spectra, {"layer0": weights["layer0"]}, epsilon=1.0)
    with pytest.raises(ValueError, match="epsilon"):
        by_layer(spectra, weights, epsilon=-1.0)
    with pytest.raises(ValueError, match="layer1"):
        by_layer(spectra, weights | {"layer1": jnp.ones(3)}, epsilon=1.0)
    with pytest.raises(TypeError, match="SpectralMeasure"):
        by_layer(spectra | {"layer0": 3}, weights, epsilon=1.0)
    with pytest.raises(ValueError, match="together"):
        coupling(spectra["layer0"], spectra, 1.0)
