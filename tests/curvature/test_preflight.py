import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_problems import (
    BF16,
    EPS,
    LABELS,
    MLP,
    MLP_DIM,
    MLP_HESSIAN,
    SCALE,
    X,
    mlp_loss,
)
from jax.tree_util import Partial

from jaxlimit import curvature
from jaxlimit.curvature.preflight import _asymmetry, _problems

# --- preflight --------------------------------------------------------------------------------

SYMMETRIC = jnp.asarray((MLP_HESSIAN + MLP_HESSIAN.T) / 2, jnp.float32)


def preflight(matvec, dim=MLP_DIM, **settings):
    return curvature.check(matvec, jax.random.key(0), dim=dim, **settings)


@pytest.mark.parametrize("product_dtype", [None, jnp.bfloat16])
def test_nothing_is_wrong_with_a_hessian(product_dtype):
    matvec = curvature.hessian_matvec(
        mlp_loss, MLP, (X[None], LABELS[None]), SCALE, product_dtype=product_dtype
    )
    report = preflight(matvec)
    assert report.problems == ()
    assert report.finite
    assert report.repeat_error == report.precision_error == 0
    assert report.product_dtypes == ("bfloat16" if product_dtype else "float32",)
    unit = BF16 if product_dtype else EPS
    assert report.symmetry_error < 20 * unit
    assert report.linearity_error < 20 * unit
    operands = sum(leaf.nbytes for leaf in jax.tree.leaves(matvec))
    assert operands + 2 * 4 * MLP_DIM <= report.num_bytes < 4 * operands + 10_000


@pytest.mark.parametrize(
    ("matvec", "problem"),
    [
        (lambda v: SYMMETRIC @ v + 0.1 * jnp.roll(v, 1), "not symmetric"),
        (lambda v: SYMMETRIC @ v + 0.1, "not linear"),
        (lambda v: SYMMETRIC @ jnp.abs(v), "not linear"),
        (lambda v: SYMMETRIC @ v + jnp.nan * (v[0] > 0), "not finite"),
        (lambda v: SYMMETRIC @ v / jnp.zeros(()), "not finite"),
    ],
)
def test_what_is_wrong_with_an_operator_is_named(matvec, problem):
    report = preflight(matvec)
    assert any(problem in text for text in report.problems)
    assert not any("not deterministic" in text for text in report.problems)


def test_asymmetry_is_measured_in_frobenius_norms():
    matrix = np.random.default_rng(8).normal(size=(300, 300)).astype(np.float32)
    matrix = matrix + 0.7 * matrix.T
    expected = np.linalg.norm(matrix - matrix.T) / np.linalg.norm(matrix)
    found = [
        curvature.check(Partial(jnp.matmul, matrix), key, dim=300).symmetry_error
        for key in jax.random.split(jax.random.key(1), 5)
    ]
    # Six pairs a draw: a mean of 30 squared normals, within four of its deviations √(2/30).
    np.testing.assert_allclose(np.mean(np.square(found)), expected**2, rtol=4 * (2 / 30) ** 0.5)


def test_asymmetry_is_neither_under_nor_overstated():
    """Of 200 draws of six pairs: 1,200 squared normals, whose mean is known to √(2/1200)."""
    rng = np.random.default_rng(8)
    matrix = rng.normal(size=(60, 60)) + 0.7 * rng.normal(size=(60, 60)).T
    expected = np.linalg.norm(matrix - matrix.T) / np.linalg.norm(matrix)
    vectors = rng.normal(size=(200, 4, 60)).astype(np.float32)
    products = vectors @ matrix.T.astype(np.float32)
    found = [
        _asymmetry(jnp.asarray(u), jnp.asarray(p)) for u, p in zip(vectors, products, strict=True)
    ]
    np.testing.assert_allclose(np.mean(np.square(found)), expected**2, rtol=5 * (2 / 1200) ** 0.5)


def test_an_operator_that_changes_between_calls_is_named():
    calls = iter(range(100))

    def drifting():
        return [(X * (1 + next(calls)), LABELS)]

    report = preflight(curvature.hessian_matvec_over(mlp_loss, MLP, drifting, SCALE))
    assert "not deterministic" in report.problems[0]
    assert report.num_bytes is report.precision_error is report.product_dtypes is None


def test_reduced_precision_is_named_and_told_from_rounding():
    full = preflight(Partial(jnp.matmul, SYMMETRIC))
    assert full.precision_error < 10 * EPS
    reduced = full._replace(precision_error=2.0**-11)
    problems = _problems(reduced, tolerance=1e-2, rounding=100 * EPS)
    assert len(problems) == 1
    assert "TF32" in problems[0]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
def test_tf32_is_found_where_there_is_some():
    matrix = jax.random.normal(jax.random.key(2), (512, 512))
    with jax.default_matmul_precision("tensorfloat32"):
        report = preflight(Partial(jnp.matmul, matrix + matrix.T), dim=512)
    assert any("TF32" in problem for problem in report.problems)


def test_zero_and_one_dimension_pass_the_preflight():
    assert preflight(lambda v: 0 * v).problems == ()
    assert preflight(lambda v: 3 * v, dim=1).problems == ()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: preflight(lambda v: v[:2]), ValueError, r"matvec must map \[21\] to \[21\]"),
        (lambda: preflight(lambda v: v > 0), TypeError, "matvec must return real floating"),
        (lambda: preflight(lambda v: v, dim=0), ValueError, "dim must be at least 1"),
        (lambda: preflight(lambda v: v, tolerance=-1), ValueError, "tolerance .*-1"),
        (lambda: preflight(lambda v: v, dtype=jnp.int32), TypeError, "dtype must be real floating"),
    ],
)
def test_bad_input_of_the_preflight_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_what_is_wrong_is_free_of_scale(scale):
    """Squares of such entries underflow or overflow in float32."""
    rng = np.random.default_rng(3)
    matrix = rng.normal(size=(30, 30))
    symmetric, nilpotent = matrix + matrix.T, np.triu(matrix, 1)
    found = [
        curvature.check(
            Partial(jnp.matmul, jnp.asarray(scale * a, jnp.float32)), jax.random.key(0), dim=30
        )
        for a in (symmetric, nilpotent)
    ]
    assert found[0].problems == ()
    assert [problem[:23] for problem in found[1].problems] == ["matvec is not symmetric"]
    np.testing.assert_allclose(
        found[1].symmetry_error,
        np.linalg.norm(nilpotent - nilpotent.T) / np.linalg.norm(nilpotent),
        rtol=0.5,
    )


def test_a_zero_product_that_is_none_the_second_time_is_named():
    calls = iter(range(99))
    operator = curvature.Operator(
        lambda v: jnp.float32(next(calls) >= 4) * v, 5, jnp.float32, traceable=False
    )
    found = curvature.check(operator, jax.random.key(0))
    assert found.repeat_error == 1
    assert any("not deterministic" in problem for problem in found.problems)
