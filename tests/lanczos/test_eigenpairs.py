import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from jaxlimit import lanczos

DIM, PAIRS = 60, 4
WHICH = ("largest", "smallest", "both", "magnitude")
SAMPLES = np.random.default_rng(3).standard_normal((40, DIM))
SPECTRA = {
    "wishart": np.linalg.eigvalsh(SAMPLES.T @ SAMPLES / 40),  # 20 zeros
    "clustered": np.concatenate([1 + 1e-3 * np.arange(8), np.linspace(0, 0.5, DIM - 8)]),
    "triple at both ends": np.concatenate(
        [[5.0, 5, 5, 4, 4], np.linspace(-1, 1, DIM - 8), [-2.0, -2, -2]]
    ),
    "rank 3": np.concatenate([[3.0, 2, -1], np.zeros(DIM - 3)]),
    "indefinite": np.linspace(-2, 3, DIM),
    # By magnitude, λ and -λ tie for the last of four places.
    "symmetric": np.concatenate([[3.0, 0], np.linspace(1, 2, 29), -np.linspace(1, 2, 29)]),
    "outlier": np.concatenate([[1e3], 1e-1 * np.cos(np.arange(DIM - 1))]),
    "multiple of the identity": np.full(DIM, 7.0),
    "zero": np.zeros(DIM),
}


def dense(eigenvalues):
    q = stats.ortho_group.rvs(len(eigenvalues), random_state=0)
    return (q * eigenvalues) @ q.T


def find(matrix, key=0, **settings):
    settings = {"dim": DIM, "num_pairs": PAIRS} | settings
    matvec = Partial(jnp.matmul, jnp.asarray(matrix, settings.get("dtype", jnp.float32)))
    return lanczos.extremal_eigenpairs(matvec, jax.random.key(key), **settings)


def expected(eigenvalues, which, num_pairs=PAIRS):
    ascending = np.sort(eigenvalues)
    if which == "smallest":
        return ascending[:num_pairs]
    if which == "both":
        top = -(-num_pairs // 2)
        return np.concatenate([ascending[::-1][:top], ascending[: num_pairs - top][::-1]])
    order = np.argsort(-np.abs(ascending) if which == "magnitude" else -ascending)
    return ascending[order][:num_pairs]


def check_against_dense(pairs, eigenvalues, which, tolerance, rounding):
    """Values, vectors and residuals against the dense matrix, all relative to its norm."""
    matrix = dense(eigenvalues)
    norm = np.abs(eigenvalues).max()
    values, vectors = np.float64(pairs.values), np.float64(pairs.vectors)
    wanted = expected(eigenvalues, which, len(values))
    if which == "magnitude":  # λ and -λ tie
        np.testing.assert_allclose(np.abs(values), np.abs(wanted), atol=tolerance * norm)
    else:
        np.testing.assert_allclose(values, wanted, atol=tolerance * norm)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=rounding)
    residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(pairs.residual_norms, residuals, atol=rounding * norm)
    assert residuals.max() <= (tolerance + rounding) * norm
    assert bool(pairs.converged.all())
    assert bool(pairs.complete)
    assert pairs.failed_product == -1


# --- Against dense linear algebra -------------------------------------------------------------


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_pairs_match_the_dense_ones(which, spectrum):
    eigenvalues = SPECTRA[spectrum]
    pairs = find(dense(eigenvalues), which=which)
    assert pairs.values.dtype == jnp.float32
    # An eigenvalue lies within ‖Hv - λv‖, by default ε^(2/3) ‖H‖ at the most.
    check_against_dense(pairs, eigenvalues, which, tolerance=2.4e-5, rounding=5e-6)


def test_float64_pairs_match_the_dense_ones_to_float64_accuracy():
    with jax.enable_x64(True):
        for spectrum in ("wishart", "triple at both ends", "outlier", "multiple of the identity"):
            eigenvalues = SPECTRA[spectrum]
            pairs = find(dense(eigenvalues), which="both", dtype=jnp.float64)
            check_against_dense(pairs, eigenvalues, "both", tolerance=3.7e-11, rounding=1e-13)


def test_values_agree_with_matfree():
    decomp = pytest.importorskip("matfree.decomp")
    eig = pytest.importorskip("matfree.eig")
    matrix = jnp.asarray(dense(SPECTRA["indefinite"]), jnp.float32)
    solve = eig.eigh_partial(decomp.tridiag_sym(DIM, reortho="full"))
    theirs, _ = solve(lambda v: matrix @ v, jax.random.normal(jax.random.key(1), (DIM,)))
    ours = find(matrix, which="both").values
    np.testing.assert_allclose(ours, jnp.concatenate([theirs[-1:-3:-1], theirs[1::-1]]), atol=1e-4)


# --- Multiplicity -----------------------------------------------------------------------------


def test_the_first_krylov_space_has_no_copies_and_the_search_finds_them():
    eigenvalues = np.concatenate([[5.0, 5, 5, 4], np.linspace(-1, 1, DIM - 4)])
    with jax.enable_x64(True):
        settings = {"dtype": jnp.float64, "basis_size": 12}
        first = find(dense(eigenvalues), max_products=12 + PAIRS, **settings)
        np.testing.assert_allclose(first.values[:2], [5, 4], atol=1e-3)
        assert not bool(first.complete)
        searched = find(dense(eigenvalues), **settings)
        np.testing.assert_allclose(searched.values, [5, 5, 5, 4], atol=1e-9)
        assert bool(searched.complete)


def test_no_copy_is_missed_over_many_seeds():
    # The missing copy of 1 has to come up past 0.999 before it can be told from the bulk, whose
    # gap is 2 % of the spectrum: that takes a fresh vector several times the steps of one restart.
    eigenvalues = np.concatenate([[1.0, 1, 0.999], np.linspace(0, 0.98, 997)])
    matvec = Partial(jnp.multiply, jnp.asarray(eigenvalues, jnp.float32))

    @jax.jit
    @jax.vmap
    def run(key):
        return lanczos.extremal_eigenpairs(matvec, key, dim=1000, num_pairs=2)

    pairs = run(jax.random.split(jax.random.key(0), 20))
    assert bool(pairs.complete.all())
    np.testing.assert_allclose(pairs.values, 1, atol=3e-5)


def test_opposite_eigenvalues_changing_places_are_nothing_new():
    matrix = dense(np.concatenate([np.tile([2.0, -2.0], 3), np.linspace(-1, 1, DIM - 6)]))
    for key in range(10):
        pairs = find(matrix, key=key, which="magnitude")
        np.testing.assert_allclose(jnp.abs(pairs.values), 2, atol=5e-5)
        assert bool(pairs.complete)
        # A basis of 24, at most two rounds of 20, and 4 residuals.
        assert pairs.num_products <= 24 + 2 * 20 + 4


@pytest.mark.parametrize(("dim", "num_pairs"), [(1, 1), (6, 5)])
def test_all_or_nearly_all_pairs_of_a_small_operator(dim, num_pairs):
    eigenvalues = np.array([2.0, 2, -1, -1, 0, 0][:dim])
    diagonal = jnp.asarray(eigenvalues, jnp.float32)
    pairs = lanczos.extremal_eigenpairs(
        Partial(jnp.multiply, diagonal),
        jax.random.key(0),
        dim=dim,
        num_pairs=num_pairs,
        which="both",
        basis_size=100,
    )
    np.testing.assert_allclose(pairs.values, expected(eigenvalues, "both", num_pairs), atol=1e-5)
    np.testing.assert_allclose(pairs.vectors @ pairs.vectors.T, np.eye(num_pairs), atol=1e-5)
    assert bool(pairs.converged.all())
    assert bool(pairs.complete)
    assert pairs.num_products == dim + num_pairs


# --- Trouble ----------------------------------------------------------------------------------


def test_what_has_not_converged_says_so():
    eigenvalues = np.linspace(0, 1, DIM) ** 0.25  # crowded at the top
    pairs = find(dense(eigenvalues), basis_size=8, max_products=40)
    assert pairs.num_products <= 40
    assert not bool(pairs.converged.all())
    assert not bool(pairs.complete)
    vectors, values = np.float64(pairs.vectors), np.float64(pairs.values)
    residuals = np.linalg.norm(vectors @ dense(eigenvalues) - values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(pairs.residual_norms, residuals, atol=1e-6)
    # Each value is within its residual norm of an eigenvalue, converged or not.
    distances = np.abs(eigenvalues - values[:, None]).min(1)
    assert np.all(distances <= residuals)


def test_a_looser_tolerance_takes_fewer_products():
    matrix = dense(SPECTRA["indefinite"])
    strict, loose = find(matrix), find(matrix, tolerance=1e-2)
    assert loose.num_products < strict.num_products
    assert loose.residual_norms.max() <= 1e-2 * 3


def test_a_product_that_is_not_finite_ends_the_run_and_is_named():
    remaining = [0]

    def product(vector):
        remaining[0] -= 1
        return np.where(remaining[0] == -1, np.nan, np.arange(6, dtype=np.float32)) * vector

    @jax.jit
    def matvec(vector):
        result = jax.ShapeDtypeStruct((6,), jnp.float32)
        return jax.pure_callback(product, result, vector)

    run = lambda: lanczos.extremal_eigenpairs(  # noqa: E731
        matvec, jax.random.key(0), dim=6, num_pairs=2
    )
    compiled = jax.jit(run)
    # Six products fill the basis, the last two measure the residuals.
    for failing in (0, 3, 7):
        remaining[0] = failing
        with pytest.raises(FloatingPointError, match=f"NaN or infinity in product {failing}"):
            run()
        remaining[0] = failing
        pairs = compiled()
        assert pairs.failed_product == failing
        assert all(np.isfinite(x).all() for x in (pairs.values, pairs.vectors))
        assert np.isinf(pairs.residual_norms).all()
        assert not bool(pairs.converged.any())
        assert not bool(pairs.complete)


def test_bad_arguments_are_named():
    matvec, key = Partial(jnp.multiply, 2.0), jax.random.key(0)

    def fails(error, match, **settings):
        with pytest.raises(error, match=match):
            lanczos.extremal_eigenpairs(matvec, key, **({"dim": 50, "num_pairs": 3} | settings))

    fails(ValueError, "num_pairs must be at least 1, got 0", num_pairs=0)
    fails(ValueError, "num_pairs must be at most dim = 50, got 51", num_pairs=51)
    fails(TypeError, "num_pairs must be a static int", num_pairs=2.0)
    fails(ValueError, "basis_size must exceed num_pairs = 3, got 3", basis_size=3)
    fails(ValueError, "max_products must be at least 13, got 12", basis_size=10, max_products=12)
    fails(ValueError, "which must be one of 'largest', 'smallest'", which="LM")
    fails(ValueError, "tolerance must be positive, got 0", tolerance=0)
    fails(TypeError, "dtype must be real floating, got int32", dtype=jnp.int32)
    with pytest.raises(ValueError, match=r"matvec must map \[50\] to \[50\]"):
        lanczos.extremal_eigenpairs(lambda v: v[1:], key, dim=50, num_pairs=3)
