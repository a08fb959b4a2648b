"""Intervals by simulation: how often they hold the truth, and that none is 0 when it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxlimit import lanczos, spectrum

DIM, NUM_PROBES = 400, 400
RNG = np.random.default_rng(0)
SPECTRA = {
    "one outlier": np.append(RNG.normal(size=DIM - 1) * 0.01, 20.0),
    "outlier over a bulk": np.append(RNG.uniform(0, 0.1, DIM - 1), 20.0),
    "ten outliers": np.concatenate(
        [np.zeros(200), RNG.normal(size=190) * 0.3, np.geomspace(1, 20, 10)]
    ),
    "bulk": np.linspace(-1, 3, DIM),
    "two values": np.repeat([0.0, 5.0], [350, 50]),
}
FUNCTIONS = {"trace": lambda x: x, "squares": jnp.square, "exp": lambda x: jnp.exp(x / 4)}


@pytest.fixture(scope="module", params=list(SPECTRA))
def measured(request):
    eigenvalues = SPECTRA[request.param]
    operator = Partial(jnp.multiply, jnp.asarray(eigenvalues, jnp.float32))
    measure = spectrum.spectral_measure(
        operator, jax.random.key(1), dim=DIM, num_steps=14, num_probes=NUM_PROBES
    )
    return eigenvalues, measure


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_intervals_of_smooth_functions_cover_at_the_stated_rate(measured, name):
    """Of 400 intervals 95 % are 380 ± 4; those of 100 with 4 probes each 95 ± 2."""
    eigenvalues, measure = measured
    f = FUNCTIONS[name]
    truth = np.mean(np.asarray(f(jnp.asarray(eigenvalues)), np.float64))
    for p in (1, 4):
        of_run = jax.tree.map(lambda x, p=p: x.reshape(-1, p, *x.shape[1:]), measure)
        found = jax.vmap(lambda m: spectrum.trace_function(m, f))(of_run)
        covered = np.mean((found.lower <= truth) & (truth <= found.upper))
        assert covered >= (0.92 if p == 1 else 0.89)
        # Nor is it wide for its own sake: the spread of the values is known to 10 %.
        spread = np.std(np.asarray(found.value), ddof=1)
        assert np.median(found.standard_error) <= 1.4 * spread


def test_copies_of_an_eigenvalue_count_once():
    """Without reorthogonalisation the outlier comes again and again: its error stays."""
    eigenvalues = SPECTRA["one outlier"]
    operator = Partial(jnp.multiply, jnp.asarray(eigenvalues, jnp.float32))
    errors = []
    for mode in ("full", "none"):
        measure = spectrum.spectral_measure(
            operator, jax.random.key(1), dim=DIM, num_steps=60, num_probes=20, reorthogonalize=mode
        )
        if mode == "none":
            assert (np.asarray(measure.nodes) > 19).sum(1).min() > 1
        found = jax.vmap(lambda m: spectrum.trace_function(m, lambda x: x))(
            jax.tree.map(lambda x: x[:, None], measure)
        )
        errors.append(np.asarray(found.standard_error))
    np.testing.assert_allclose(errors[1], errors[0], rtol=0.02)
    # One eigenvalue of 20 at least: its part has a variance of 2·20²/D² or more.
    assert errors[0].min() >= 0.99 * 20 * 2**0.5 / DIM


def test_the_standard_error_is_that_of_its_formula():
    """Two probes, D = 100: an eigenvalue nearly missed, one in two copies, a remnant."""
    dim, (third, fifth) = 100, (0.3, 0.002)
    nodes = np.array([[0.0, 1.0, 4.0, 9.0], [0.5, 2.0, 2.0, 100.0]])
    weights = np.array([[0.5, third, 1 - 0.5 - third - fifth, fifth], [0.9, 0.004, 0.096, 1e-10]])
    found = spectrum.trace_function(
        spectrum.SpectralMeasure.from_nodes(nodes, weights, dim=dim), lambda x: x
    )
    # The last node of the first probe counts as one eigenvalue, that of the second as none, and the
    # copies at 2 have more than one eigenvalue's weight between them.
    raised = weights.copy()
    raised[0, 3] = 1 / dim
    centred = nodes - np.sum(weights * nodes, axis=1, keepdims=True)
    seen, whole = (np.mean(np.sum(w * centred**2, axis=1)) for w in (weights, raised))
    num_seen = 2 * dim * whole**2 / np.mean(np.sum(raised * centred**4, axis=1))
    variance = (seen + (whole - seen) / max(num_seen, 1) ** 0.5) * 2 / (dim + 2) / 2
    assert whole > 1.1 * seen
    assert num_seen > 1.5
    assert float(found.standard_error) == pytest.approx(variance**0.5, rel=1e-4)
    value = np.mean(np.sum(weights * nodes, axis=1))
    assert float(found.value) == pytest.approx(value, rel=1e-5)
    assert float(found.upper - found.value) == pytest.approx(1.96 * variance**0.5, rel=1e-3)
    assert float(found.value - found.lower) == pytest.approx(1.96 * variance**0.5, rel=1e-3)


def test_copies_share_the_weight_of_one_eigenvalue():
    apart, together = (
        spectrum.trace_function(
            spectrum.SpectralMeasure.from_nodes(nodes, weights, dim=100), lambda x: x
        )
        for nodes, weights in (
            ([0.0, 5.0], [0.996, 0.004]),
            ([0.0, 5.0, 5.0], [0.996, 0.003, 0.001]),
        )
    )
    assert float(together.standard_error) == pytest.approx(float(apart.standard_error), rel=1e-4)


# --- Bounds within what f can be -----------------------------------------------------------------


def dense(eigenvalues, seed):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    return Partial(jnp.matmul, jnp.asarray((q * eigenvalues) @ q.T, jnp.float32))


@pytest.mark.parametrize("c", [1e-8, 1e-6, 1e-3])
def test_brackets_of_rank_deficient_operators_stay_within_the_range_of_f(c):
    """A projector's node at 0 is found at ±1e-8: that must not be taken for a value of f's pole."""
    f = lambda x: c / (x + c)  # noqa: E731
    covered = 0
    for seed in range(20):
        rank = seed % 3 + 3
        eigenvalues = np.repeat([0.0, 1.0], [8 - rank, rank])
        measure = spectrum.spectral_measure(
            dense(eigenvalues, seed), jax.random.key(seed), dim=8, num_steps=6
        )
        for g in (f, lambda x: 1 - f(x)):
            found = spectrum.psd_bracket(measure, g)
            assert 0 <= float(found.lower) <= float(found.value) <= float(found.upper) <= 1
            truth = np.mean(np.float64(g(eigenvalues)))
            covered += float(found.lower) <= truth <= float(found.upper)
        # The probe's own value is held by the bracket without its random part.
        kernel = np.float64(eigenvalues == 0).mean()
        assert kernel == pytest.approx(1 - rank / 8)
    assert covered >= 32  # of 40


def test_unbounded_functions_have_no_range_to_stay_within():
    measure = spectrum.spectral_measure(
        dense(np.linspace(1, 5, 30), 0), jax.random.key(0), dim=30, num_steps=8
    )
    truth = np.mean(1 / np.linspace(1, 5, 30))
    found = spectrum.psd_bracket(measure, lambda x: 1 / x)
    assert 0 < float(found.lower) <= truth
    assert all(np.isposinf(x) for x in (found.value, found.standard_error, found.upper))
    plain = spectrum.trace_function(measure, lambda x: 1 / x)
    assert float(plain.lower) <= truth <= float(plain.upper)
    # An ended recurrence is filled up with nodes of weight 0, where f has no value.
    ended = spectrum.spectral_measure(lambda v: 2 * v, jax.random.key(0), dim=30, num_steps=8)
    for trace in (spectrum.trace_function, spectrum.trace_bracket, spectrum.psd_bracket):
        np.testing.assert_allclose(
            tuple(trace(ended, lambda x: 1 / x)), (0.5, 0, 0.5, 0.5), atol=1e-5
        )


def test_psd_is_asked_for_to_one_in_ten_thousand():
    def measure(low):
        nodes, weights = jnp.array([[low, 1.0]]), jnp.array([[0.5, 0.5]])
        return spectrum.SpectralMeasure.from_nodes(nodes, weights, dim=100)

    f = lambda x: 1 / (x + 1)  # noqa: E731
    assert spectrum.psd_bracket(measure(-0.9e-4), f).value == pytest.approx(0.75)
    with pytest.raises(
        ValueError, match=r"positive semi-definite operator, got a node at -0\.0002"
    ):
        spectrum.psd_bracket(measure(-2e-4), f)


@pytest.mark.parametrize("c", [0.0975, 1.0])
def test_the_high_end_is_above_the_probes_own_value_at_half_depth(c):
    """Small indefinite operators whose nodes all lie on one side, too."""
    f = lambda x: abs(x) / (abs(x) + c)  # noqa: E731
    shortfalls, one_sided = [], 0
    rng = np.random.default_rng(4)
    for dim in (3, 5, 8):
        eigenvalues, starts = rng.normal(size=(2, 60, dim))

        @jax.jit
        @jax.vmap
        def run(eigenvalues, start, dim=dim):
            matvec = Partial(jnp.multiply, eigenvalues)
            result = lanczos.tridiagonalize(matvec, start, num_steps=max(dim // 2, 1))
            return result._replace(basis=None)

        results = run(*(jnp.asarray(x, jnp.float32) for x in (eigenvalues, starts)))
        measure = spectrum.measure_from(results, dim=dim)
        nodes, weights = (np.asarray(x, np.float64)[:, 1] for x in measure.rules)
        values = np.sum(weights * f(nodes), axis=-1)
        shares = starts**2 / np.sum(starts**2, axis=1, keepdims=True)
        own = np.sum(shares * f(eigenvalues), axis=1)
        assert (values[:, 0] <= own + 1e-5).all()
        shortfalls.append(own - values.max(1))
        one_sided += np.sum(np.all(measure.nodes > 0, 1) | np.all(measure.nodes < 0, 1))
    shortfalls = np.concatenate(shortfalls)
    assert one_sided > 60  # else this test says nothing
    assert np.mean(shortfalls > 1e-5) <= 0.02
    assert shortfalls.max() <= 0.02


def test_the_case_that_was_short_by_a_fifth():
    """D = 3, c = 0.0975: one node above 0, and most of the mass far below minus that node."""
    eigenvalues, shares = np.array([-1.0, 0.9, 1.2]), np.array([0.45, 0.35, 0.2])
    result = lanczos.tridiagonalize(
        Partial(jnp.multiply, jnp.asarray(eigenvalues, jnp.float32)),
        jnp.sqrt(jnp.asarray(shares, jnp.float32)),
        num_steps=1,
    )
    measure = spectrum.measure_from(result, dim=3)
    f = lambda x: abs(x) / (abs(x) + 0.0975)  # noqa: E731
    values = np.sum(measure.rules.weights * f(measure.rules.nodes), axis=-1)[0, 1]
    assert 0 < measure.nodes[0, 0] < 0.2
    assert values.max() >= shares @ f(eigenvalues) > 0.9
    assert values.min() <= shares @ f(eigenvalues)


@pytest.mark.parametrize(
    ("lows", "highs", "value"),
    [
        ((0.5, 0.6), (1.0, 0.8), 0.6 + 0.1 / 0.3 * 0.2),  # low end against width, to width 0
        ((0.5, 0.55), (0.6, 0.64), 0.64),  # a slope of 5
        ((0.5, 0.45), (1.0, 0.6), 0.45),  # a slope below 0
        ((0.5, 0.5), (0.6, 0.7), 0.5),  # a bracket that widens
        ((0.6, 0.5), (0.5, 0.7), 0.5),  # another rule is the greatest at half depth
    ],
)
def test_the_value_extrapolates_in_depth_and_stays_in_the_bracket(lows, highs, value):
    """Rules of one node each, by hand: f is then the node itself."""
    nodes = jnp.stack([jnp.array(lows), jnp.array(highs)], axis=-1)[None, :, :, None]
    rules = spectrum.PinnedRules(nodes, jnp.ones_like(nodes))
    one = jnp.ones(1)
    recurrence = lanczos.Tridiagonalization(
        one[None], one[None, 1:], None, one, jnp.ones(1, int), jnp.full(1, -1)
    )
    measure = spectrum.SpectralMeasure(nodes[:, 1, 0], one[None], recurrence, rules, dim=10)
    found = spectrum.trace_bracket(measure, lambda x: x)
    assert float(found.value) == pytest.approx(value, abs=1e-6)
    # Rules of one node have no random error, and those of a recurrence that goes on no rounding.
    assert (found.lower, found.upper) == pytest.approx((lows[1], highs[1]), abs=1e-6)


# --- Measures made of nodes ----------------------------------------------------------------------


def test_a_quadrature_from_elsewhere_has_the_error_of_its_probes():
    measure = spectrum.spectral_measure(
        dense(np.linspace(-1, 3, 60), 0), jax.random.key(0), dim=60, num_steps=10, num_probes=3
    )
    again = spectrum.SpectralMeasure.from_nodes(measure.nodes, measure.weights, dim=60)
    for f in FUNCTIONS.values():
        ours, theirs = (spectrum.trace_function(m, f) for m in (measure, again))
        np.testing.assert_array_equal(tuple(ours), tuple(theirs))
        np.testing.assert_array_equal(tuple(spectrum.trace_bracket(again, f)), tuple(theirs))
    exact = spectrum.SpectralMeasure.from_nodes(
        np.array([0, 2]), np.array([0.75, 0.25]), dim=8, exact=True
    )
    found = spectrum.trace_function(exact, jnp.square)
    assert (float(found.value), float(found.standard_error)) == (1, 0)
    for call in (lambda: spectrum.truncate(again, 2), lambda: spectrum.pinned_measure(again, 0.0)):
        with pytest.raises(ValueError, match="must come from Lanczos, got one made of nodes"):
            call()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weights": [0.5]}, ValueError, r"weights must have the shape of nodes, \(1, 2\)"),
        ({"weights": [1.5, -0.5]}, ValueError, "weights must not be negative, got -0.5"),
        ({"weights": [0.5, 0.4]}, ValueError, "weights must sum to 1 in each row"),
        ({"nodes": [0.0, np.nan]}, ValueError, "nodes must be finite"),
        ({"nodes": [0.0, 1j]}, TypeError, "nodes must be real, got dtype complex64"),
        ({"nodes": None}, TypeError, "nodes must be real numbers, got NoneType None"),
        ({"nodes": ["x", "y"]}, TypeError, "nodes must be real numbers, got"),
        ({"nodes": []}, ValueError, "nodes must be a vector"),
        ({"dim": 2.5}, TypeError, r"dim must be a static int, got 2\.5"),
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
    ],
)
def test_bad_quadratures_are_named(arguments, error, message):
    good = {"nodes": [0.0, 1.0], "weights": [0.5, 0.5], "dim": 4}
    with pytest.raises(error, match=message):
        spectrum.SpectralMeasure.from_nodes(**(good | arguments))


@pytest.mark.parametrize("eigenvalues", [None, "spectrum", ["x"], [1.0, "y"]])
def test_what_is_no_spectrum_is_named(eigenvalues):
    with pytest.raises((TypeError, ValueError), match="eigenvalues must be"):
        spectrum.exact_measure(eigenvalues)


def test_what_is_no_measure_or_function_is_named():
    measure = spectrum.exact_measure(jnp.array([0.0, 1.0]))
    for trace in (spectrum.trace_function, spectrum.trace_bracket, spectrum.psd_bracket):
        with pytest.raises(TypeError, match="measure must be a SpectralMeasure, got NoneType None"):
            trace(None, jnp.exp)
        with pytest.raises(TypeError, match="f must be a function of eigenvalues, got str"):
            trace(measure, "exp")
        with pytest.raises(TypeError, match="f must give real numbers, got dtype complex64"):
            trace(measure, lambda x: 1j * x)
    with pytest.raises(TypeError, match="must be a Tridiagonalization or a SpectralMeasure"):
        spectrum.pinned_measure(None, 0.0)
    result = lanczos.tridiagonalize(lambda v: v, jnp.ones(2), num_steps=1)
    with pytest.raises(TypeError, match="node must be a static real number, got '0'"):
        spectrum.pinned_measure(result, "0")
