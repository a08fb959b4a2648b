"""Bases in bfloat16, in pinned host memory and in no memory at all, against float64 `eigh`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import lanczos
from jaxlimit.lanczos import _basis
from jaxlimit.lanczos.two_pass import _pick_distinct
from jaxlimit.spectrum import spectral_measure, trace_bracket

DIM = 600
OUTLIERS = [20.0, 30.0, 40.0, 70.0, 100.0]
# Random vectors and eigenvectors, as probes are and those of networks: rounding averages out over
# the entries that a vector spreads over, here all.
START = jax.random.normal(jax.random.key(1), (DIM,))
EIGENVALUES = np.concatenate([np.linspace(-1, 1, DIM - len(OUTLIERS)), OUTLIERS])


# √(2/(D+2)/4) times the standard deviation of f below over the spectrum, at most ½.
SPHERE_ERROR = 0.5 * (2 / (DIM + 2) / 4) ** 0.5


def rotated(eigenvalues):
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(len(eigenvalues),) * 2))
    matrix = jnp.asarray((q * eigenvalues) @ q.T, jnp.float32)
    return jax.tree_util.Partial(jnp.matmul, matrix), q


MATVEC, _ = rotated(EIGENVALUES)


def ritz_values(result):
    a, b = (np.asarray(x, np.float64) for x in (result.diagonal, result.off_diagonal))
    return np.linalg.eigvalsh(np.diag(a) + np.diag(b, 1) + np.diag(b, -1))


def run(mode, store, num_steps=120, **settings):
    return lanczos.tridiagonalize(
        MATVEC, START, num_steps=num_steps, reorthogonalize=mode, store=store, **settings
    )


@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize("store", ["bfloat16", "pinned_host"])
def test_outliers_are_found_once_and_to_the_precision_of_the_basis(mode, store):
    values = ritz_values(run(mode, store))
    assert (values > 10).sum() == len(OUTLIERS)
    # Each of up to 120 rows is off by 2⁻⁹/√3 of its length in a random direction: what that
    # leaves in the recurrence is 2⁻⁹ √(m/3D) ‖H‖.
    bound = 2**-9 * (120 / 3 / DIM) ** 0.5 * 100 if store == "bfloat16" else 1e-4
    np.testing.assert_allclose(values[-5:], OUTLIERS, rtol=0, atol=bound)


@pytest.mark.parametrize("store", lanczos.STORES)
def test_full_basis_stays_orthonormal(store):
    result = run("full", store, num_steps=45)
    assert result.basis.dtype == (jnp.bfloat16 if store == "bfloat16" else jnp.float32)
    basis = np.asarray(result.basis, np.float64)
    gram = basis @ basis.T
    # Semi-orthogonality, √eps, is what the spectrum needs (Simon 1984).
    tolerance = np.finfo(np.float32).eps ** 0.5 if store == "bfloat16" else 2e-6
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=tolerance)
    assert basis.shape == (45, DIM)


def test_pinned_host_keeps_the_basis_out_of_device_memory():
    states = {
        store: lanczos.start(jnp.ones(DIM), num_steps=64, reorthogonalize="full", store=store)
        for store in lanczos.STORES
    }
    kinds = {store: state.basis.sharding.memory_kind for store, state in states.items()}
    assert kinds["pinned_host"] == "pinned_host"
    assert kinds["device"] != "pinned_host"
    after = lanczos.extend(MATVEC, states["pinned_host"], num_steps=3)
    assert after.basis.sharding.memory_kind == "pinned_host"
    assert states["bfloat16"].basis.nbytes * 2 == states["device"].basis.nbytes


def test_cutting_the_steps_into_calls_changes_no_bit():
    whole = run("selective", "bfloat16")
    state = lanczos.start(START, num_steps=120, reorthogonalize="selective", store="bfloat16")
    for _ in range(2):
        state = lanczos.extend(MATVEC, state, num_steps=60, reorthogonalize="selective")
    np.testing.assert_array_equal(whole.diagonal, lanczos.finish(state).diagonal)


@pytest.mark.parametrize("store", ["bfloat16", "pinned_host"])
def test_a_stored_recurrence_goes_on_beyond_its_room(store):
    whole = run("full", store, num_steps=20)
    short = lanczos.start(START, num_steps=12, store=store)
    room = lanczos.with_room(lanczos.extend(MATVEC, short, num_steps=12), 20)
    assert _basis.is_on_host(room.basis) == (store == "pinned_host")
    more = lanczos.finish(lanczos.extend(MATVEC, room, num_steps=8))
    np.testing.assert_allclose(more.diagonal, whole.diagonal, atol=1e-4)


@pytest.mark.parametrize("store", ["bfloat16", "pinned_host"])
def test_quadrature_agrees_with_the_exact_trace(store):
    f = lambda x: jnp.abs(x) / (jnp.abs(x) + 0.1)  # noqa: E731
    settings = {"dim": DIM, "num_steps": 96, "num_probes": 4, "store": store}
    estimate = trace_bracket(spectral_measure(MATVEC, jax.random.key(0), **settings), f)
    truth = float(f(EIGENVALUES).mean())
    assert float(estimate.lower) <= truth <= float(estimate.upper)
    assert float(estimate.value) == pytest.approx(truth, abs=6 * SPHERE_ERROR)


def test_invariant_subspace_ends_a_stored_recurrence():
    for store in ("bfloat16", "pinned_host"):
        result = lanczos.tridiagonalize(lambda v: 3 * v, jnp.ones(20), num_steps=10, store=store)
        assert int(result.num_valid) == 1
        np.testing.assert_array_equal(np.asarray(result.basis, np.float32)[1:], 0)


AMONG_GHOSTS = np.concatenate([np.linspace(-1, 1, 294), [-80, -50, -20, 25, 60, 100]])


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_two_passes_find_eigenpairs_among_ghosts(which):
    matvec, q = rotated(AMONG_GHOSTS)
    pairs = lanczos.two_pass_eigenpairs(
        matvec, jnp.ones(300), num_steps=80, num_pairs=3, which=which
    )
    order = {"largest": -AMONG_GHOSTS, "smallest": AMONG_GHOSTS, "magnitude": -abs(AMONG_GHOSTS)}
    wanted = np.argsort(order[which])[:3]
    np.testing.assert_allclose(pairs.values, AMONG_GHOSTS[wanted], atol=2e-4)
    overlap = np.abs(np.sum(np.asarray(pairs.vectors) * q[:, wanted].T, axis=1))
    np.testing.assert_allclose(overlap, 1, atol=1e-5)
    # A vector holds what a copy that is forming takes of it: up to √eps of ‖A‖, by how it rounds.
    assert float(pairs.residual_norms.max()) < np.finfo(np.float32).eps ** 0.5 * 100


@pytest.mark.parametrize("seed", range(2))
def test_a_ghost_still_forming_is_no_eigenpair(seed):
    """At whatever step the run stops: the next copy may then be on its way, at any value."""
    matvec, _ = rotated(AMONG_GHOSTS)
    begin = jax.random.normal(jax.random.key(seed), (300,))
    result = lanczos.tridiagonalize(matvec, begin, num_steps=150, reorthogonalize="none")
    a, b = np.asarray(result.diagonal), np.append(result.off_diagonal, result.residual_norm)
    forming = {}
    for m in range(60, 150, 2):
        t = np.diag(a[:m]) + np.diag(b[: m - 1], 1) + np.diag(b[: m - 1], -1)
        values = np.linalg.eigvalsh(t)
        far = np.abs(values[:, None] - AMONG_GHOSTS[-6:]).min(axis=1) > 0.1
        if (far & (np.abs(values) > 1.1)).any():
            forming[m] = t
    assert len(forming) > 4  # else this test says nothing
    for m, t in forming.items():
        for which, wanted in (("largest", [100, 60, 25]), ("smallest", [-80, -50, -20])):
            s, _ = _pick_distinct(a[:m], b[:m], 3, which, np.finfo(np.float32).eps)
            np.testing.assert_allclose(np.sum(s * (t @ s), axis=0), wanted, atol=1e-3)


def test_two_passes_stop_at_an_invariant_subspace():
    pairs = lanczos.two_pass_eigenpairs(lambda v: 3 * v, jnp.ones(9), num_steps=5, num_pairs=2)
    np.testing.assert_allclose(pairs.values, [3.0])
    np.testing.assert_allclose(pairs.vectors, jnp.ones((1, 9)) / 3, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run("full", "disk"), "store must be one of 'device', 'bfloat16', 'pinned_host'"),
        (
            lambda: lanczos.two_pass_eigenpairs(MATVEC, jnp.ones(DIM), num_steps=3, num_pairs=4),
            "num_pairs must be at most num_steps = 3, got 4",
        ),
        (
            lambda: spectral_measure(
                MATVEC,
                jax.random.key(0),
                dim=DIM,
                num_steps=3,
                vectorize=True,
                store="pinned_host",
            ),
            "vectorize must be False where store is 'pinned_host'",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
