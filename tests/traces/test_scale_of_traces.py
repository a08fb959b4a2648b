"""H·s for s from 1e-30 to 1e30: the same trace and the same error, times s."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxlimit import traces

SCALES = [1e-30, 1e-20, 1e-19, 1e-15, 1e15, 1e18, 1e20, 1e30]
DIM, KEY = 40, jax.random.key(0)
Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))
MATRIX = (Q * (4.0 / np.arange(1, DIM + 1) ** 2 - 0.2)) @ Q.T
METHODS = {
    "hutchinson": (traces.hutchinson, {"num_matvecs": 12}),
    "sphere": (traces.hutchinson, {"num_matvecs": 12, "distribution": "sphere"}),
    "hutch++": (traces.hutch_plus_plus, {"num_matvecs": 15}),
    "xtrace": (traces.xtrace, {"num_matvecs": 14}),
    "xdiag": (traces.diagonal, {"num_matvecs": 14}),
    "hutchinson diagonal": (traces.diagonal, {"num_matvecs": 13, "method": "hutchinson"}),
    "diagonal in blocks": (
        traces.diagonal,
        {"num_matvecs": 13, "method": "hutchinson", "block_size": 5},
    ),
    "exact": (traces.xtrace, {"num_matvecs": DIM}),
}


def estimate(name, s):
    method, settings = METHODS[name]
    matvec = Partial(jnp.matmul, jnp.asarray(MATRIX, jnp.float32) * jnp.float32(s))
    return method(matvec, KEY, dim=DIM, **settings)


@pytest.mark.parametrize("name", list(METHODS))
def test_traces_and_their_errors_are_free_of_scale(name):
    wanted = estimate(name, 1.0)
    for s in SCALES:
        for ours, theirs in zip(estimate(name, s), wanted, strict=True):
            ours, theirs = np.float64(ours) / float(np.float32(s)), np.float64(theirs)
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max(), rtol=0)
    if name != "exact":
        assert np.all(np.float64(wanted.standard_error) > 0)


@pytest.mark.parametrize("s", SCALES)
@pytest.mark.parametrize("name", ["hutch++", "xtrace"])
def test_no_error_of_zero_beside_a_wrong_value(name, s):
    found = estimate(name, s)
    truth = np.trace(MATRIX) * float(np.float32(s))
    assert abs(float(found.value) - truth) > 1e-4 * abs(truth)  # no sketch holds the whole range
    assert float(found.standard_error) > 0
    assert float(found.upper) > float(found.lower)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("method", [traces.hutchinson, traces.diagonal])
def test_narrow_probes_are_averaged_in_float32(method, dtype):
    """2,000 products of 300, or their entries added: in float16 the sum would be infinite."""
    settings = {"method": "hutchinson"} if method is traces.diagonal else {}
    found = method(lambda v: 300 * v, KEY, dim=300, num_matvecs=2000, dtype=dtype, **settings)
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, 9e4 if method is traces.hutchinson else 300, rtol=0.01)


def test_operators_that_promote_work_where_64_bits_are_on():
    with jax.enable_x64(True):
        matvec = lambda v: jnp.arange(8.0) * v  # noqa: E731
        for method in (traces.hutchinson, traces.hutch_plus_plus, traces.xtrace):
            for num_matvecs in (6, 8):
                found = method(matvec, KEY, dim=8, num_matvecs=num_matvecs)
                assert found.value.dtype == jnp.float32
                assert float(found.lower) - 1e-4 <= 28 <= float(found.upper) + 1e-4
        for way in traces.DIAGONAL_METHODS:
            found = traces.diagonal(matvec, KEY, dim=8, num_matvecs=6, method=way)
            assert found.value.dtype == jnp.float32
