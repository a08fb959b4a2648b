"""Operators: what they know, what they do with vectors, and what they refuse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxlimit
from jaxlimit import adapters, curvature, lanczos, pruning, spectrum, traces
from jaxlimit._core.operator import Operator, prepare

MATRIX = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
MATRIX += MATRIX.T
KEY = jax.random.key(0)


def dense(matrix=MATRIX, **settings):
    matrix = jnp.asarray(matrix)
    return Operator(Partial(jnp.matmul, matrix), len(matrix), matrix.dtype, **settings)


def on_host(matrix=MATRIX):
    """A product that only NumPy can make."""
    return Operator(
        lambda v: jnp.asarray(np.asarray(matrix) @ np.asarray(v)),
        len(matrix),
        jnp.float32,
        traceable=False,
    )


def trace_within(H, **kw):
    f = lambda x: jnp.abs(x) / (jnp.abs(x) + 1)  # noqa: E731
    return spectrum.trace_within(H, KEY, f, tolerance=0.1, num_probes=1, **kw)


# Every function that takes an operator, with what it makes of one with and without `dim=`.
ALGORITHMS = {
    "spectral_measure": lambda H, **kw: spectrum.spectral_measure(H, KEY, num_steps=5, **kw),
    "run_probes": lambda H, **kw: spectrum.run_probes(
        H, KEY, num_steps=5, monitor=spectrum.Monitor(chunk=2), **kw
    ),
    "trace_within": trace_within,
    "extremal_eigenpairs": lambda H, **kw: lanczos.extremal_eigenpairs(H, KEY, num_pairs=2, **kw),
    "hutchinson": lambda H, **kw: traces.hutchinson(H, KEY, num_matvecs=4, **kw),
    "hutch_plus_plus": lambda H, **kw: traces.hutch_plus_plus(H, KEY, num_matvecs=6, **kw),
    "xtrace": lambda H, **kw: traces.xtrace(H, KEY, num_matvecs=4, **kw),
    "diagonal": lambda H, **kw: traces.diagonal(H, KEY, num_matvecs=4, **kw),
    "to_dense": lambda H, **kw: adapters.to_dense(H, **kw),
    "to_scipy": lambda H, **kw: adapters.to_scipy(H, **kw) @ np.ones(7, np.float32),
    "check": lambda H, **kw: curvature.check(H, KEY, **kw)._replace(num_bytes=None),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_operator_needs_no_dim(name):
    run = ALGORITHMS[name]
    chex.assert_trees_all_equal(run(dense()), run(Partial(jnp.matmul, jnp.asarray(MATRIX)), dim=7))
    with pytest.raises(ValueError, match=r"matvec must map \[8\] to \[8\], it maps \[7\]"):
        run(dense(), dim=8)
    with pytest.raises(ValueError, match=r"matvec must map \[6\] to \[6\], it maps \[7\]"):
        run(dense(), dim=6)
    with pytest.raises(TypeError, match="dim must be given, an int"):
        run(lambda v: v)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_operator_on_the_host_gives_the_same_or_is_refused(name):
    run, refused = ALGORITHMS[name], {"extremal_eigenpairs", "diagonal", "hutchinson"}
    if name in refused | {"hutch_plus_plus", "xtrace"}:
        with pytest.raises(TypeError, match="cannot be compiled"):
            run(on_host())
        return
    result, wanted = run(on_host()), run(dense())
    if name == "check":
        assert result.problems == wanted.problems == ()
    else:
        chex.assert_trees_all_close(result, wanted, rtol=1e-4, atol=1e-4)


def test_functions_of_a_start_vector():
    start = jnp.arange(1.0, 8.0)
    one = lanczos.tridiagonalize(dense(), start, num_steps=4)
    chex.assert_trees_all_equal(
        one, lanczos.tridiagonalize(lambda v: jnp.asarray(MATRIX) @ v, start, num_steps=4)
    )
    with pytest.raises(ValueError, match=r"must map \[6\] to \[6\], it maps \[7\]"):
        lanczos.tridiagonalize(dense(), start[:6], num_steps=4)
    state = lanczos.start(start[:6], num_steps=4)
    with pytest.raises(ValueError, match=r"must map \[6\] to \[6\], it maps \[7\]"):
        lanczos.extend(dense(), state, num_steps=1)
    pairs = lanczos.two_pass_eigenpairs(dense(), start, num_steps=7, num_pairs=1)
    np.testing.assert_allclose(pairs.values, np.linalg.eigvalsh(MATRIX)[-1:], rtol=1e-4)
    forecast = pruning.taylor_forecast(jnp.ones(7), dense(), start, [0.0])
    wanted = -start.sum() + start @ MATRIX @ start / 2
    np.testing.assert_allclose(forecast, [wanted], rtol=1e-5)


@chex.variants(with_jit=True, without_jit=True)
class TestVariants(chex.TestCase):
    """A product is the same in and out of `jit`, and a part is the matrix's own."""

    def test_product(self):
        apply = self.variant(lambda operator, vector: operator(vector))
        vector = jnp.arange(7.0)
        np.testing.assert_allclose(apply(dense(), vector), MATRIX @ np.arange(7), rtol=1e-5)
        mask = np.array([True, False, True, True, False, True, False])
        part = dense().restrict(mask)
        assert part.dim == 4
        wanted = MATRIX[np.ix_(mask, mask)] @ np.arange(4)
        np.testing.assert_allclose(apply(part, jnp.arange(4.0)), wanted, rtol=1e-5)


def test_a_part_can_do_what_the_whole_can():
    mask = np.arange(7) % 2 == 0
    part = on_host().restrict(mask).restrict(np.array([True, False, True, True]))
    assert (part.dim, part.dtype, part.traceable) == (3, np.float32, False)
    chosen = [0, 4, 6]
    wanted = MATRIX[np.ix_(chosen, chosen)] @ np.ones(3)
    np.testing.assert_allclose(part(jnp.ones(3)), wanted, rtol=1e-5)
    loss = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)  # noqa: E731
    for mode, kept in (("linearized", True), ("forward-over-reverse", False)):
        args = (loss, jnp.ones(3), jnp.ones((1, 4, 3)))
        operator = curvature.hessian_matvec(*args, mode=mode)
        assert operator.linearized is kept
        assert operator.restrict([True, False, True]).linearized is kept
        assert operator.dtype == np.float32


def test_operators_are_pytrees():
    stacked = jax.vmap(dense)(jnp.stack([MATRIX, 2 * MATRIX]))
    products = jax.vmap(lambda operator: operator(jnp.ones(7)))(stacked)
    np.testing.assert_allclose(products, [MATRIX.sum(1), 2 * MATRIX.sum(1)], rtol=1e-4, atol=1e-5)
    double = jax.tree.map(lambda x: 2 * x, dense())
    np.testing.assert_allclose(double(jnp.ones(7)), 2 * MATRIX.sum(1), rtol=1e-5)
    assert repr(double) == "Operator(dim=7, dtype=float32)"
    assert repr(on_host()) == "Operator(dim=7, dtype=float32, traceable=False)"


def test_a_longer_vector_is_zero_past_the_own_entries():
    np.testing.assert_allclose(
        dense().pad(9)(jnp.ones(9)), np.append(MATRIX.sum(1), [0, 0]), rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"must map \[6\] to \[6\], it maps \[7\]"):
        dense().pad(6)


def test_products_come_in_the_type_of_their_vectors():
    """A product that widens, as NumPy constants do with 64-bit floats, still fits a scan."""
    with jax.enable_x64(True):
        eigenvalues = jnp.arange(8.0)
        assert eigenvalues.dtype == np.float64
        widened = Operator(lambda v: eigenvalues * v, 8, jnp.float32)
        assert widened(jnp.ones(8, jnp.float32)).dtype == np.float32
        measure = spectrum.spectral_measure(lambda v: eigenvalues * v, KEY, dim=8, num_steps=8)
        assert measure.nodes.dtype == np.float32
        np.testing.assert_allclose(measure.nodes[0], np.arange(8), atol=1e-5)
        half = lanczos.tridiagonalize(
            lambda v: eigenvalues * v, jnp.ones(8, jnp.float16), num_steps=2
        )
        np.testing.assert_allclose(half.diagonal[0], 3.5, rtol=1e-2)
        double = spectrum.spectral_measure(dense(np.diag(np.arange(8.0))), KEY, num_steps=8)
        assert double.nodes.dtype == np.float64
        np.testing.assert_allclose(double.nodes[0], np.arange(8), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Operator(lambda v: v, dim=0), ValueError, "dim must be at least 1"),
        (lambda: Operator(lambda v: v, dim="7"), TypeError, "dim must be a static int"),
        (lambda: Operator(lambda v: v[:2], 7, jnp.float32), ValueError, r"must map \[7\] to \[7\]"),
        (lambda: Operator(lambda v: v > 0, 7, jnp.float32), TypeError, "real floating entries"),
        (lambda: Operator(lambda v: v, 7, jnp.int32), TypeError, "dtype must be real floating"),
        (lambda: Operator(lambda v: v, 7, mesh="data"), TypeError, "mesh must be a jax"),
        (lambda: prepare(MATRIX, 7), TypeError, "matvec must be an Operator or a function"),
        (lambda: prepare(dense(), dtype=jnp.bfloat16), TypeError, "must have dtype float32"),
        (lambda: dense()(jnp.ones(6)), ValueError, r"must have shape \(7,\), got \(6,\)"),
        (lambda: dense()(jnp.ones(7, jnp.float16)), TypeError, "must have dtype float32"),
        (lambda: dense()(2.0), ValueError, r"must have shape \(7,\), got 2.0"),
        (lambda: dense().restrict(np.ones(6, bool)), ValueError, r"mask must be flat, \[7\]"),
        (lambda: dense().restrict(np.zeros(7, bool)), ValueError, "select at least one"),
        (lambda: dense().restrict(np.ones(7)), TypeError, "mask must be boolean"),
        (lambda: jax.jit(on_host())(jnp.ones(7)), TypeError, "cannot run under jit"),
    ],
)
def test_what_is_wrong_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_old_name_warns():
    with pytest.warns(DeprecationWarning, match=r"now Operator\(..., traceable=False\)"):
        make = curvature.HostMatvec
    assert not make(lambda v: v, 3, jnp.float32).traceable
    assert jaxlimit.Operator is curvature.Operator is Operator


@pytest.mark.parametrize(
    "name", [name for name in ALGORITHMS if name not in ("to_dense", "to_scipy")]
)
@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, r"key must come from jax\.random\.key, got"),
        (jax.random.PRNGKey(0), "wrap an old key by jax.random.wrap_key_data"),
        (None, "key must come from .*None"),
    ],
)
def test_what_is_no_key_is_named(name, key, message, monkeypatch):
    monkeypatch.setitem(globals(), "KEY", key)
    with pytest.raises(TypeError, match=message):
        ALGORITHMS[name](dense())


def test_keys_are_taken_one_at_a_time():
    with pytest.raises(ValueError, match="key must be one key, got shape"):
        traces.hutchinson(dense(), jax.random.split(KEY, 3), num_matvecs=4)
    many = jax.vmap(lambda key: traces.hutchinson(dense(), key, num_matvecs=4).value)
    assert many(jax.random.split(KEY, 3)).shape == (3,)
