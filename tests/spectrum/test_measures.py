"""Measures at every scale, in every type, on disk, and without leaving anything behind."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxlimit import lanczos, spectrum
from jaxlimit.spectrum import measure as measure_module

DIM = 80
SCALES = [1e-30, 1e-20, 1e-19, 1e-15, 1e15, 1e18, 1e20, 1e30]
EIGENVALUES = np.concatenate([np.zeros(20), np.linspace(-1, 3, 57), [10.0, 14.0, 20.0]])


def measure_at(s, eigenvalues=EIGENVALUES, **settings):
    operator = Partial(jnp.multiply, jnp.asarray(eigenvalues, jnp.float32) * jnp.float32(s))
    settings = {"num_steps": 12, "num_probes": 2} | settings
    return spectrum.spectral_measure(operator, jax.random.key(3), dim=DIM, **settings)


@jax.jit
def numbers(measure, s):
    """Every public number of a measure of s H, in units in which none depends on s."""
    share = lambda x: jnp.abs(x) / (jnp.abs(x) + 0.5 * s)  # noqa: E731
    grid = jnp.linspace(-2, 22, 120)
    magnitudes = jnp.geomspace(0.1, 30, 50)
    return {
        "nodes": measure.nodes / s,
        "shares": tuple(spectrum.trace_function(measure, share)),
        "bracket": tuple(spectrum.trace_bracket(measure, share)),
        "psd": tuple(spectrum.psd_bracket(measure, lambda x: 0.5 * s / (x + 0.5 * s))),
        "trace": tuple(x / s for x in spectrum.trace_function(measure, lambda x: x)),
        "sizes": tuple(x / s for x in spectrum.trace_bracket(measure, jnp.abs)),
        "log density": spectrum.log_density(measure, magnitudes * s, width=0.1),
        "density": spectrum.density(measure, grid * s, width=0.3 * s) * s,
        "pinned": spectrum.pinned_measure(measure, 0.0).nodes / s,
        "truncated": spectrum.truncate(measure, 5).nodes / s,
    }


@pytest.mark.parametrize("s", SCALES)
def test_every_number_is_free_of_scale(s):
    at_one, at_s = numbers(measure_at(1.0), 1.0), numbers(measure_at(s), s)
    for name, wanted in at_one.items():
        for ours, theirs in zip(jax.tree.leaves(at_s[name]), jax.tree.leaves(wanted), strict=True):
            size = np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, atol=2e-4 * size, err_msg=name)
    errors = ("shares", "bracket", "psd", "trace", "sizes")
    assert all(float(at_s[name][1]) > 0 for name in errors)


@pytest.mark.parametrize("s", [1e-15, 1e15])
def test_squares_are_told_where_they_can_be(s):
    """tr H² lies within the range, the squares of H² in its variance do not."""
    at_one, at_s = (spectrum.trace_function(measure_at(x), jnp.square) for x in (1.0, s))
    for ours, theirs in zip(at_s, at_one, strict=True):
        assert np.float64(ours) / s**2 == pytest.approx(float(theirs), rel=1e-3)
    assert float(at_s.standard_error) > 0


@pytest.mark.parametrize("s", [1e-18, 1e20])
def test_a_spectrum_at_an_extreme_scale_does_not_end_early(s):
    """Eigenvalues of 0.1 to 1, times s, once came as one step and a width of 0."""
    eigenvalues = np.linspace(0.1, 1, DIM)
    measure = measure_at(s, eigenvalues, num_steps=20, num_probes=1)
    assert (int(measure.recurrence.num_valid[0]), int(measure.recurrence.failed_step[0])) == (
        20,
        -1,
    )
    found = spectrum.trace_bracket(measure, lambda x: x / (x + 0.3 * s))
    truth = np.mean(eigenvalues / (eigenvalues + 0.3))
    assert float(found.lower) <= truth <= float(found.upper)
    assert float(found.upper - found.lower) > 1e-3


# --- Types ---------------------------------------------------------------------------------------


def test_operators_that_promote_work_where_64_bits_are_on():
    """`jnp.arange(8.0) * v` is float64 then, whatever v: the doctest of `spectral_measure`."""
    with jax.enable_x64(True):
        matvec = lambda v: jnp.arange(8.0) * v  # noqa: E731
        key, settings = jax.random.key(0), {"dim": 8, "num_steps": 8}
        share = lambda x: x / (x + 0.1)  # noqa: E731
        measure = spectrum.spectral_measure(matvec, key, **settings)
        assert measure.nodes.dtype == jnp.float32
        np.testing.assert_allclose(measure.nodes[0], np.arange(8), atol=1e-5)
        others = [
            spectrum.run_probes(matvec, key, **settings),
            spectrum.trace_within(matvec, key, share, dim=8, tolerance=0.5, num_steps=8).measure,
            spectrum.spectral_measure(matvec, key, dtype=jnp.float64, **settings),
        ]
        for other in others:
            np.testing.assert_allclose(other.nodes[0], np.arange(8), atol=1e-5)
        assert others[-1].nodes.dtype == jnp.float64
        pairs = [
            lanczos.extremal_eigenpairs(matvec, key, dim=8, num_pairs=2),
            lanczos.two_pass_eigenpairs(matvec, jnp.ones(8, jnp.float32), num_steps=8, num_pairs=2),
        ]
        for found in pairs:
            assert found.values.dtype == jnp.float32
            np.testing.assert_allclose(found.values, [7, 6], atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_probes_give_a_measure_in_float32(dtype):
    operator = Partial(jnp.multiply, jnp.arange(8, dtype=jnp.float32))
    measure = spectrum.spectral_measure(
        operator, jax.random.key(0), dim=8, num_steps=3, dtype=dtype, num_probes=4
    )
    assert measure.nodes.dtype == jnp.float32
    assert np.isfinite(measure.nodes).all()
    # Within the rounding of the vectors, the nodes lie in the spectrum.
    slack = 8 * 16 * float(jnp.finfo(dtype).eps)
    assert -slack <= float(measure.nodes.min()) <= float(measure.nodes.max()) <= 7 + slack


# --- Nothing left behind -------------------------------------------------------------------------


def test_measures_made_eagerly_compile_nothing_and_keep_nothing():
    """A callback with a closure of its own was a program, and 1.4 MB, for every measure."""
    compiled = []

    def count(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    operator = Partial(jnp.multiply, jnp.arange(16.0))

    def work(seed):
        measure = spectrum.spectral_measure(operator, jax.random.key(seed), dim=16, num_steps=6)
        return spectrum.pinned_measure(measure, 0.0), spectrum.truncate(measure, 3)

    work(0)
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for seed in range(1, 6):
            work(seed)
        assert not compiled
        jax.jit(lambda x: x + 17)(1.0)
        assert compiled  # else the listener hears nothing
    finally:
        jax.monitoring.unregister_event_duration_listener(count)


def test_traced_measures_share_their_callbacks():
    """What `jit` keeps alive of a callback is one function a kind, not one a call."""
    result = lanczos.tridiagonalize(lambda v: jnp.arange(4.0) * v, jnp.ones(4), num_steps=3)

    def closures():
        gc.collect()
        kinds = (measure_module._Pinned,)
        return sum(isinstance(x, kinds) for x in gc.get_objects())

    def trace():
        jax.make_jaxpr(lambda t: spectrum.pinned_measure(t, 0.0, dim=4).nodes)(result)

    programs = [
        str(jax.make_jaxpr(lambda t: spectrum.measure_from(t, dim=4).nodes)(result))
        for _ in range(2)
    ]
    assert programs[0] == programs[1]
    assert measure_module._Pinned(0.0) == measure_module._Pinned(0.0)
    assert hash(measure_module._Pinned(0.0)) == hash(measure_module._Pinned(0.0))
    trace()
    before = closures()
    for _ in range(5):
        trace()
    assert closures() <= before + 1


def test_eager_and_traced_measures_are_the_same():
    result = lanczos.tridiagonalize(
        lambda v: jnp.linspace(-1, 2, 20) * v, jnp.arange(1.0, 21), num_steps=7
    )._replace(basis=None)
    for make in (
        lambda t: spectrum.measure_from(t, dim=20),
        lambda t: spectrum.pinned_measure(t, 0.5, dim=20),
    ):
        jax.tree.map(np.testing.assert_array_equal, make(result), jax.jit(make)(result))
        stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), result)
        stacked = stacked._replace(num_valid=jnp.array([7, 5]), failed_step=jnp.array([-1, -1]))
        mapped = jax.vmap(make)(stacked)
        np.testing.assert_array_equal(mapped.nodes[:, 0], make(stacked).nodes)


# --- On disk -------------------------------------------------------------------------------------

OLD = {
    "version": 1,
    "dim": 9,
    "diagonal": np.array([[2.0, 1.0, 3.0], [1.0, 2.0, 2.0]], np.float32),
    "off_diagonal": np.array([[1.0, 0.5], [0.25, 1.0]], np.float32),
    "residual_norm": np.array([0.5, 0.0], np.float32),
    "num_valid": np.array([3, 3], np.int32),
}


def test_files_of_before_still_load(tmp_path):
    np.savez(tmp_path / "old.npz", **OLD)
    measure = spectrum.load(tmp_path / "old.npz")
    for i in range(2):
        beta = np.diag(OLD["off_diagonal"][i], 1)
        values, vectors = np.linalg.eigh(np.float64(np.diag(OLD["diagonal"][i]) + beta + beta.T))
        np.testing.assert_allclose(measure.nodes[i], values, atol=1e-6)
        np.testing.assert_allclose(measure.weights[i], vectors[0] ** 2, atol=1e-6)
    assert (measure.dim, measure.exact) == (9, False)
    np.savez(tmp_path / "exact.npz", version=1, dim=3, eigenvalues=np.array([[0.0, 1.0, 2.0]]))
    exact = spectrum.load(tmp_path / "exact.npz")
    assert exact.exact
    assert float(spectrum.trace_function(exact, jnp.square).value) == pytest.approx(5 / 3)


def test_a_quadrature_from_elsewhere_comes_back(tmp_path):
    for exact in (False, True):
        one = spectrum.SpectralMeasure.from_nodes([0.0, 2.0], [0.75, 0.25], dim=8, exact=exact)
        spectrum.save(tmp_path / "nodes.npz", one)
        again = spectrum.load(tmp_path / "nodes.npz")
        jax.tree.map(np.testing.assert_array_equal, one, again)
        assert (again.dim, again.exact) == (8, exact)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": -5}, "dim must be a count, got -5"),
        ({"dim": np.array([9])}, "dim must be a count"),
        ({"dim": 2}, r"diagonal must be \[probes, at most 2\]"),
        ({"off_diagonal": np.ones((2, 9))}, "the recurrence must be of 2 x 3 steps"),
        ({"residual_norm": np.ones(3)}, "the recurrence must be of 2 x 3 steps"),
        ({"num_valid": np.array([3])}, "the recurrence must be of 2 x 3 steps"),
        ({"residual_norm": np.array([0.5, -1.0])}, "residual_norm must be finite and not negative"),
        ({"residual_norm": np.array([0.5, np.nan])}, "residual_norm must be finite"),
        ({"off_diagonal": np.full((2, 2), np.inf)}, "off_diagonal must be finite"),
        ({"off_diagonal": -np.ones((2, 2))}, "off_diagonal must be finite and not negative"),
        ({"diagonal": np.full((2, 3), np.nan)}, "diagonal must be finite real numbers"),
        ({"diagonal": np.ones((2, 3), complex)}, "diagonal must be finite real numbers"),
        ({"diagonal": np.ones(3)}, r"diagonal must be \[probes"),
        ({"num_valid": np.array([3, 4])}, "num_valid must be counts up to 3"),
        ({"num_valid": np.array([3, -1])}, "num_valid must be counts up to 3"),
        ({"num_valid": np.array([3.0, 2.5])}, "num_valid must be counts up to 3"),
    ],
)
def test_measures_that_do_not_fit_together_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "bad.npz", **(OLD | changes))
    with pytest.raises(ValueError, match=rf"bad\.npz must be a spectral measure, got .*{message}"):
        spectrum.load(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 4, "eigenvalues": np.ones((1, 3))}, r"eigenvalues must be 4, got shape \(1, 3\)"),
        ({"dim": 2, "eigenvalues": np.array([[1.0, np.inf]])}, "eigenvalues must be finite"),
        (
            {"dim": 2, "nodes": np.ones((1, 2)), "weights": np.ones((1, 2)), "exact": False},
            "sum to 1",
        ),
    ],
)
def test_spectra_and_nodes_that_do_not_fit_together_are_refused(tmp_path, fields, message):
    np.savez(tmp_path / "bad.npz", version=1, **fields)
    with pytest.raises(ValueError, match=rf"bad\.npz must be a spectral measure, got .*{message}"):
        spectrum.load(tmp_path / "bad.npz")


# --- Callbacks -----------------------------------------------------------------------------------


def test_callbacks_are_looked_at_before_the_run():
    def never(vector):
        raise AssertionError("no product was to be made")

    operator = Partial(jax.pure_callback, never, jax.ShapeDtypeStruct((8,), jnp.float32))
    settings = {"dim": 8, "num_steps": 4}
    for name in ("stop", "on_progress"):
        with pytest.raises(TypeError, match=f"{name} must be a function or None, got 3"):
            spectrum.Monitor(**{name: 3})
    with pytest.raises(TypeError, match="monitor must be a Monitor, got int 3"):
        spectrum.run_probes(operator, jax.random.key(0), **settings, monitor=3)
    with pytest.raises(TypeError, match="f must be a function of eigenvalues, got str"):
        spectrum.trace_within(operator, jax.random.key(0), "f", dim=8, tolerance=0.1)
