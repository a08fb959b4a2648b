"""Quadrature against spectra that are known, and its two errors against their stated rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import lanczos, spectrum

DIM = 2000


def share(c, negative="abs"):
    def f(x):
        size = jnp.abs(x) if negative == "abs" else jnp.maximum(x, 0)
        return size / (size + c)

    return f


def spectra():
    """Spectra shaped like those of trained networks: null space, bulk on both sides, outliers."""
    rng = np.random.default_rng(0)
    outliers = np.geomspace(1, 50, 10)
    signs = rng.choice([-1, 1], DIM - 10, p=[0.3, 0.7])
    return {
        "null space and bulk": np.concatenate(
            [np.zeros(DIM - 210), rng.normal(size=200) * 0.3, outliers]
        ),
        "heavy tails": np.concatenate(
            [np.zeros(DIM // 2), rng.standard_t(1.5, size=DIM // 2 - 10) * 0.05, outliers]
        ),
        "all scales": np.concatenate([10 ** rng.uniform(-7, 0, DIM - 10) * signs, outliers]),
    }


def diagonal_operator(eigenvalues, dtype=jnp.float32):
    return jax.tree_util.Partial(jnp.multiply, jnp.asarray(eigenvalues, dtype))


def one_by_one(measure):
    """View a measure of p probes as p measures of one, for `vmap`."""
    return jax.tree.map(lambda x: x[:, None], measure)


@pytest.fixture(scope="module", params=list(spectra()))
def probes(request):
    """A spectrum, 200 probes of depth 24 of it, and each probe's own exact spectral weights."""
    eigenvalues = spectra()[request.param]
    key = jax.random.key(7)
    measure = spectrum.spectral_measure(
        diagonal_operator(eigenvalues), key, dim=DIM, num_steps=24, num_probes=200
    )
    vectors = jax.vmap(lambda k: spectrum.probe(k, DIM))(jax.random.split(key, 200))
    return eigenvalues, measure, np.asarray(vectors, np.float64) ** 2


def test_gauss_rule_is_exact_for_polynomials(probes):
    eigenvalues, measure, weights = probes
    scaled, nodes = eigenvalues / 50, np.asarray(measure.nodes, np.float64) / 50
    for degree in (0, 1, 2, 5, 11):
        truth = weights @ scaled**degree
        got = np.sum(np.asarray(measure.weights) * nodes**degree, axis=1)
        np.testing.assert_allclose(got, truth, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("negative", ["abs", "clip"])
@pytest.mark.parametrize("c", [0.01, 0.3])
def test_bracket_holds_the_truth_of_every_probes_own_measure(probes, negative, c):
    eigenvalues, measure, weights = probes
    f = share(c, negative)
    values = np.sum(np.asarray(measure.rules.weights) * np.asarray(f(measure.rules.nodes)), axis=-1)
    truth = weights @ np.asarray(f(jnp.asarray(eigenvalues)))
    for at in (0, 1):  # half and full depth
        assert (values[:, at, 0] <= truth + 1e-5).all()
        assert (values[:, at].max(-1) >= truth - 1e-5).all()


@pytest.mark.parametrize("negative", ["abs", "clip"])
def test_joint_interval_covers_the_truth_at_its_stated_rate(probes, negative):
    eigenvalues, measure, _ = probes
    f = share(0.1, negative)
    truth = np.mean(np.asarray(f(jnp.asarray(eigenvalues))))
    estimates = jax.vmap(lambda m: spectrum.trace_bracket(m, f))(one_by_one(measure))
    covered = (estimates.lower <= truth) & (truth <= estimates.upper)
    assert covered.mean() >= 0.95


def test_one_probe_tells_its_own_standard_error(probes):
    """The spread of 200 probes is what each of them says its standard error is."""
    eigenvalues, measure, _ = probes
    estimates = jax.vmap(lambda m: spectrum.trace_function(m, jnp.square))(one_by_one(measure))
    spread = float(np.std(np.asarray(estimates.value), ddof=1))
    assert float(np.median(estimates.standard_error)) == pytest.approx(spread, rel=0.25)
    # Gauss is exact for squares, so all error is the probes'.
    truth = np.mean(eigenvalues**2)
    covered = (estimates.lower <= truth) & (truth <= estimates.upper)
    # A few outliers dominate the squares here: fewer effective directions, a skewer mean.
    assert 0.85 <= covered.mean() <= 1


@pytest.mark.parametrize("name", list(spectra()))
@pytest.mark.parametrize("negative", ["abs", "clip"])
def test_extrapolated_value_is_within_two_percent_at_default_depth(name, negative):
    eigenvalues = spectra()[name]
    f = share(0.03, negative)
    key = jax.random.key(3)
    measure = spectrum.spectral_measure(diagonal_operator(eigenvalues), key, dim=DIM, num_steps=128)
    weights = np.asarray(spectrum.probe(jax.random.split(key, 1)[0], DIM), np.float64) ** 2
    own_truth = weights @ np.asarray(f(jnp.asarray(eigenvalues)), np.float64)
    assert float(spectrum.trace_bracket(measure, f).value) == pytest.approx(own_truth, rel=0.02)


def test_pinned_rule_keeps_the_moments_and_has_the_node():
    eigenvalues = spectra()["heavy tails"]
    start = spectrum.probe(jax.random.key(0), DIM)
    result = lanczos.tridiagonalize(diagonal_operator(eigenvalues), start, num_steps=6)
    weights = np.asarray(start, np.float64) ** 2
    for node in (0.0, -3.0, 60.0):
        rule = spectrum.pinned_measure(result, node)
        assert np.abs(np.asarray(rule.nodes) - node).min() == 0
        assert (np.asarray(rule.weights) >= 0).all()
        for degree in range(12):
            truth = weights @ (eigenvalues / 50) ** degree
            got = np.sum(np.asarray(rule.weights) * (np.asarray(rule.nodes) / 50) ** degree)
            assert got == pytest.approx(truth, rel=1e-3, abs=1e-6)


def test_zero_that_is_a_ritz_value_already():
    """A symmetric spectrum and probe: every odd depth has the node 0."""
    eigenvalues = jnp.array([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0])
    result = lanczos.tridiagonalize(diagonal_operator(eigenvalues), jnp.ones(6), num_steps=3)
    rule = spectrum.pinned_measure(result, 0.0)
    gauss = spectrum.measure_from(result, dim=6)
    # The fourth node is far out, with hardly any weight: for a bounded f the rule is Gauss's.
    f = share(0.1)
    pinned = spectrum.trace_function(rule, f).value
    assert float(pinned) == pytest.approx(float(spectrum.trace_function(gauss, f).value), abs=1e-6)
    bracket = spectrum.trace_bracket(gauss, share(0.1))
    truth = float(jnp.mean(share(0.1)(eigenvalues)))
    assert float(bracket.lower) <= truth <= float(bracket.upper)
    assert np.isfinite(tuple(bracket)).all()


@pytest.mark.parametrize("eigenvalue", [0.0, 3.0])
def test_invariant_subspace_closes_the_bracket(eigenvalue):
    operator = diagonal_operator(np.full(50, eigenvalue))
    measure = spectrum.spectral_measure(operator, jax.random.key(0), dim=50, num_steps=10)
    estimate = spectrum.trace_bracket(measure, share(1.0))
    truth = eigenvalue / (eigenvalue + 1)
    np.testing.assert_allclose(tuple(estimate), (truth, 0, truth, truth), atol=1e-6)


def test_full_depth_is_the_exact_spectral_measure():
    eigenvalues = np.linspace(-1, 2, 12)
    with jax.enable_x64(True):
        measure = spectrum.spectral_measure(
            diagonal_operator(eigenvalues, jnp.float64),
            jax.random.key(0),
            dim=12,
            num_steps=40,
            num_probes=3,
            reorthogonalize="full",
            dtype=jnp.float64,
        )
        keys = jax.random.split(jax.random.key(0), 3)
        weights = jnp.stack([spectrum.probe(k, 12, jnp.float64) ** 2 for k in keys])
    np.testing.assert_allclose(measure.nodes, np.tile(eigenvalues, (3, 1)), atol=1e-10)
    np.testing.assert_allclose(measure.weights, weights, atol=1e-10)


def test_single_precision_recurrence_agrees_with_double():
    eigenvalues = spectra()["all scales"]
    with jax.enable_x64(True):
        start = spectrum.probe(jax.random.key(1), DIM)
        estimates = [
            spectrum.trace_bracket(
                spectrum.measure_from(
                    lanczos.tridiagonalize(
                        diagonal_operator(eigenvalues, dtype),
                        start.astype(dtype),
                        num_steps=64,
                        reorthogonalize=mode,
                    ),
                    dim=DIM,
                ),
                share(0.03),
            ).value
            for dtype, mode in ((jnp.float32, "selective"), (jnp.float64, "full"))
        ]
    assert float(estimates[0]) == pytest.approx(float(estimates[1]), rel=0.01)


def test_vectorised_mapped_and_chunked_runs_agree():
    operator, key = diagonal_operator(np.linspace(0, 1, 64)), jax.random.key(5)
    settings = {"dim": 64, "num_steps": 12, "num_probes": 3}
    mapped = spectrum.spectral_measure(operator, key, **settings)
    seen = []
    others = [
        spectrum.spectral_measure(operator, key, vectorize=True, **settings),
        spectrum.run_probes(
            operator,
            key,
            monitor=spectrum.Monitor(chunk=5, on_progress=lambda *now: seen.append(now)),
            **settings,
        ),
        jax.jit(lambda k: spectrum.spectral_measure(operator, k, **settings))(key),
    ]
    for other in others:
        np.testing.assert_allclose(other.recurrence.diagonal, mapped.recurrence.diagonal, atol=1e-5)
        np.testing.assert_allclose(other.nodes, mapped.nodes, atol=1e-5)
    assert seen[-1] == ("spectrum", 36, 36)


def test_run_stops_when_told_and_is_a_prefix():
    operator, key = diagonal_operator(np.linspace(0, 1, 256)), jax.random.key(5)
    short = spectrum.run_probes(
        operator,
        key,
        dim=256,
        num_steps=200,
        monitor=spectrum.Monitor(chunk=4, stop=lambda m: m.nodes.shape[-1] >= 16),
    )
    assert short.nodes.shape == (1, 16)
    whole = spectrum.spectral_measure(operator, key, dim=256, num_steps=16)
    np.testing.assert_allclose(short.nodes, whole.nodes, atol=1e-6)
    np.testing.assert_allclose(
        short.recurrence.residual_norm, whole.recurrence.residual_norm, atol=1e-6
    )


def test_density_integrates_to_one_wherever_the_nodes_are():
    measure = spectrum.exact_measure(jnp.array([-9.0, 0.0, 0.0, 0.5, 3.0]))
    grid = jnp.concatenate([jnp.linspace(-1, 0, 40), jnp.geomspace(0.01, 2, 60)])
    width = jnp.maximum(jnp.gradient(grid), 0.05) * 1.5
    values = spectrum.density(measure, grid, width=width)
    assert float(jnp.trapezoid(values, grid)) == pytest.approx(1, abs=1e-5)
    near = (grid > -0.3) & (grid < 0.2)
    mass = float(jnp.trapezoid(jnp.where(near, values, 0), grid))
    assert mass == pytest.approx(0.4, abs=0.05)


def test_density_refuses_a_width_below_the_grid():
    measure = spectrum.exact_measure(jnp.zeros(3))
    with pytest.raises(ValueError, match="width must be at least the grid's spacing"):
        spectrum.density(measure, jnp.linspace(0, 1, 11), width=0.01)
    with pytest.raises(ValueError, match="grid must increase"):
        spectrum.density(measure, jnp.array([0.0, 1.0, 1.0]), width=1.0)


def test_saved_measure_comes_back(tmp_path):
    operator = diagonal_operator(np.linspace(-1, 1, 64))
    measure = spectrum.spectral_measure(
        operator, jax.random.key(0), dim=64, num_steps=8, num_probes=2
    )
    exact = spectrum.exact_measure(jnp.arange(4.0))
    for one in (measure, exact):
        spectrum.save(tmp_path / "measure.npz", one)
        back = spectrum.load(tmp_path / "measure.npz")
        assert back.dim == one.dim
        jax.tree.map(np.testing.assert_array_equal, one, back)


def test_foreign_files_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", version=99)
    with pytest.raises(ValueError, match="must be a spectral measure of format 1, got 99"):
        spectrum.load(tmp_path / "other.npz")


def test_non_finite_product_names_probe_and_step():
    with pytest.raises(FloatingPointError, match="at Lanczos step 0 of probe 0"):
        spectrum.spectral_measure(
            lambda v: v * jnp.nan, jax.random.key(0), dim=8, num_steps=4, num_probes=2
        )


def test_agreement_with_matfree():
    matfree = pytest.importorskip("matfree")
    del matfree
    from matfree import decomp

    eigenvalues = spectra()["heavy tails"][-300:]
    start = spectrum.probe(jax.random.key(2), 300)
    ours = lanczos.tridiagonalize(diagonal_operator(eigenvalues), start, num_steps=10)
    theirs = decomp.tridiag_sym(10, reortho="full")(
        lambda v: jnp.asarray(eigenvalues, jnp.float32) * v, start
    )
    tridiagonal = np.asarray(theirs.J_small)
    np.testing.assert_allclose(np.diag(tridiagonal), ours.diagonal, rtol=1e-4, atol=1e-4)
    couplings = np.diag(tridiagonal, 1)
    np.testing.assert_allclose(couplings, ours.off_diagonal, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectrum.exact_measure(jnp.array([1.0, jnp.inf])), "eigenvalues must be finite"),
        (lambda: spectrum.exact_measure(jnp.ones((2, 2))), r"eigenvalues must be a vector \[D\]"),
        (
            lambda: spectrum.spectral_measure(
                lambda v: v, jax.random.key(0), dim=4, num_steps=2, num_probes=0
            ),
            "num_probes must be at least 1, got 0",
        ),
        (
            lambda: spectrum.spectral_measure(
                lambda v: v[:2], jax.random.key(0), dim=4, num_steps=2
            ),
            r"matvec must map \[4\] to \[4\]",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", ["resolvent", "exponential"])
def test_gauss_and_radau_bracket_monotone_functions_of_a_psd_operator(name):
    """Each of 200 probes' own truth lies between the two rules, and the interval covers."""
    f = {"resolvent": lambda x: 0.1 / (x + 0.1), "exponential": lambda x: jnp.exp(-x)}[name]
    eigenvalues = np.abs(spectra()["heavy tails"])
    key = jax.random.key(11)
    measure = spectrum.spectral_measure(
        diagonal_operator(eigenvalues), key, dim=DIM, num_steps=4, num_probes=200
    )
    vectors = jax.vmap(lambda k: spectrum.probe(k, DIM))(jax.random.split(key, 200))
    values = np.asarray(f(jnp.asarray(eigenvalues)), np.float64)
    own = np.asarray(vectors, np.float64) ** 2 @ values
    gauss = np.sum(measure.weights * f(measure.nodes), axis=-1)
    radau = spectrum.pinned_measure(measure, 0.0)
    above = np.sum(radau.weights * f(radau.nodes), axis=-1)
    assert (gauss <= own + 1e-5).all()
    assert (own <= above + 1e-5).all()
    assert (above - gauss).min() > 1e-4  # still open, so that both ends are tried
    bracket = jax.vmap(lambda m: spectrum.psd_bracket(m, f))(one_by_one(measure))
    np.testing.assert_allclose(bracket.value, (gauss + above) / 2, rtol=1e-5)
    covered = (bracket.lower <= values.mean()) & (values.mean() <= bracket.upper)
    assert covered.mean() >= 0.95
    # One minus the function is bracketed the other way round.
    mirrored = spectrum.psd_bracket(measure, lambda x: 1 - f(x))
    plain = spectrum.psd_bracket(measure, f)
    assert float(mirrored.lower) == pytest.approx(1 - float(plain.upper), abs=1e-6)


def test_log_density_has_the_mass_of_its_side():
    eigenvalues = np.concatenate([-np.geomspace(1e-3, 1, 30), np.zeros(50), np.ones(20)])
    measure = spectrum.exact_measure(jnp.asarray(eigenvalues, jnp.float32))
    grid = jnp.geomspace(1e-4, 10, 101)
    for sign, mass in ((1, 0.2), (-1, 0.3)):
        values = spectrum.log_density(measure, grid, width=0.1, sign=sign)
        assert float(jnp.trapezoid(values, jnp.log10(grid))) == pytest.approx(mass, abs=1e-5)
    # Ten a decade on the negative side, where it is even.
    middle = (grid > 5e-3) & (grid < 0.2)
    np.testing.assert_allclose(np.asarray(values)[middle], 29 / 3 / 100, rtol=0.1)
    with pytest.raises(ValueError, match="width must be at least the grid's spacing"):
        spectrum.log_density(measure, grid, width=0.01)
    with pytest.raises(ValueError, match="sign must be 1 or -1, got 0"):
        spectrum.log_density(measure, grid, width=0.1, sign=0)
    with pytest.raises(ValueError, match="grid must lie in"):
        spectrum.log_density(measure, jnp.linspace(0, 1, 9), width=1.0)


def test_float32_measures_agree_with_float64():
    eigenvalues = spectra()["heavy tails"]
    f, key, settings = share(0.03), jax.random.key(4), {"dim": DIM, "num_steps": 64}
    with jax.enable_x64(True):
        start = jnp.asarray(spectrum.probe(key, DIM, jnp.float32), jnp.float64)
        results = {}
        for dtype in (jnp.float32, jnp.float64):
            run = lanczos.tridiagonalize(
                diagonal_operator(eigenvalues, dtype),
                start.astype(dtype),
                num_steps=settings["num_steps"],
                reorthogonalize="selective",
            )
            results[dtype] = spectrum.trace_bracket(spectrum.measure_from(run, dim=DIM), f)
    for single, double in zip(results[jnp.float32], results[jnp.float64], strict=True):
        assert float(single) == pytest.approx(float(double), rel=2e-3)


def test_a_row_whose_product_failed_is_nan_under_jit():
    @jax.jit
    def run(start):
        product = lambda v: jnp.arange(8.0) * v / (jnp.abs(v).max() < 0.99)  # noqa: E731
        results = [
            lanczos.tridiagonalize(
                product, s, num_steps=4, keep_basis=False, reorthogonalize="none"
            )
            for s in (start, jnp.ones(8))
        ]
        measure = spectrum.measure_from(jax.tree.map(lambda *x: jnp.stack(x), *results), dim=8)
        shorter = spectrum.truncate(measure, 2), spectrum.pinned_measure(measure, 0.0)
        traces = [
            f(measure, jnp.abs).value for f in (spectrum.trace_function, spectrum.trace_bracket)
        ]
        grid = jnp.linspace(0.1, 9, 50)
        shapes = [d(measure, grid, width=1.0) for d in (spectrum.density, spectrum.log_density)]
        return (measure, *shorter), (traces, shapes)

    measures, read = run(jnp.eye(8)[0])
    for measure in measures:
        for values in jax.tree.leaves((measure.nodes, measure.weights, measure.rules)):
            assert jnp.isnan(values[0]).all()
            assert jnp.isfinite(values[1]).all()
    assert all(jnp.isnan(x).all() for x in jax.tree.leaves(read))


def test_a_probe_of_integers_is_refused():
    with pytest.raises(TypeError, match="dtype must be real floating, got int32"):
        spectrum.probe(jax.random.key(0), 3, jnp.int32)


def test_integer_eigenvalues_are_those_of_floats():
    integers = spectrum.exact_measure(jnp.array([1, 3, -4]))
    floats = spectrum.exact_measure(jnp.array([1.0, 3.0, -4.0]))
    jax.tree.map(np.testing.assert_array_equal, integers, floats)
    assert spectrum.trace_function(integers, jnp.abs).value == pytest.approx(8 / 3)
    with pytest.raises(TypeError, match="eigenvalues must be real, got dtype complex64"):
        spectrum.exact_measure(jnp.array([1j]))


def test_a_closed_bracket_covers_at_the_stated_rate():
    """Twelve distinct eigenvalues: the interval is that of the random error alone.

    Shares of groups of m eigenvalues are Dirichlet(m/2), here nearly normal, and the variance
    2/(D + 2) var f is known to each probe but for the same shares: to some 1/√D, as from a sample
    of D, so that even a single probe needs no Student's t.
    """
    values, num_seeds = np.linspace(-1, 4, 12), 200
    eigenvalues = np.repeat(values, 60)
    f = share(0.3)
    truth = np.mean(np.asarray(f(jnp.asarray(eigenvalues))))
    measure = spectrum.spectral_measure(
        diagonal_operator(eigenvalues),
        jax.random.key(3),
        dim=eigenvalues.size,
        num_steps=14,
        num_probes=2 * num_seeds,
    )
    for num_probes in (1, 2):
        of_seed = jax.tree.map(
            lambda x, p=num_probes: x[: p * num_seeds].reshape(num_seeds, p, *x.shape[1:]), measure
        )
        found = jax.vmap(lambda m: spectrum.trace_bracket(m, f))(of_seed)
        half_width = np.asarray(found.upper - found.lower) / 2
        np.testing.assert_allclose(half_width, 1.96 * found.standard_error, rtol=1e-2)
        # The spread of 200 values is known to 5 %.
        spread = np.std(np.asarray(found.value), ddof=1)
        assert np.median(found.standard_error) == pytest.approx(spread, rel=0.2)
        covered = np.mean((found.lower <= truth) & (truth <= found.upper))
        assert 0.90 <= covered <= 0.99, (num_probes, covered)


def test_bad_functions_grids_and_operators_are_named(tmp_path):
    measure = spectrum.spectral_measure(
        diagonal_operator(np.linspace(-1, 1, 30)), jax.random.key(0), dim=30, num_steps=4
    )
    for trace in (spectrum.trace_function, spectrum.trace_bracket):
        with pytest.raises(ValueError, match="f must map eigenvalues elementwise"):
            trace(measure, lambda x: jnp.sum(x, -1))
        assert trace(measure, lambda x: 1.0).value == pytest.approx(1)
    with pytest.raises(ValueError, match="measure must be that of a positive semi-definite"):
        spectrum.psd_bracket(measure, jnp.exp)
    exact = spectrum.exact_measure(jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(
        spectrum.density(exact, jnp.arange(-3, 6), width=1),
        spectrum.density(exact, jnp.arange(-3.0, 6), width=1.0),
    )
    with pytest.raises(ValueError, match="width must be at least the grid's spacing"):
        spectrum.density(exact, jnp.arange(3.0), width=jnp.nan)
    with pytest.raises(ValueError, match="grid must increase"):
        spectrum.density(exact, jnp.array([0.0, jnp.nan, 1.0]), width=1.0)
