import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import sparse, stats
from scipy.sparse import linalg

from jaxlimit import adapters, curvature, lanczos, spectrum, traces
from jaxlimit._core import memory

DIM = 40
EIGENVALUES = np.concatenate([[9.0, 7.0, -4.0], np.linspace(-1, 2, DIM - 3)])
ROTATION = stats.ortho_group.rvs(DIM, random_state=0)
MATRIX = np.float32((ROTATION * EIGENVALUES) @ ROTATION.T)


def test_scipy_solves_on_a_matvec():
    operator = adapters.to_scipy(Partial(jnp.matmul, jnp.asarray(MATRIX)), DIM)
    assert operator.shape == (DIM, DIM)
    assert operator.dtype == np.float32
    values, vectors = linalg.eigsh(operator, k=3, which="LM", tol=1e-5)
    np.testing.assert_allclose(np.sort(values), [-4, 7, 9], rtol=1e-4)
    np.testing.assert_allclose(MATRIX @ vectors, vectors * values, atol=1e-3)
    assert operator.num_products >= 3

    shifted = adapters.to_scipy(lambda v: jnp.asarray(MATRIX) @ v + 5 * v, DIM)
    right = np.ones(DIM, np.float32)
    solution, status = linalg.cg(shifted, right, rtol=1e-6)
    assert status == 0
    np.testing.assert_allclose(
        solution, np.linalg.solve(MATRIX + 5 * np.eye(DIM), right), atol=1e-4
    )


def test_scipy_sees_a_symmetric_operator_in_float64_where_jax_has_it():
    with jax.enable_x64(True):
        matrix = np.float64(MATRIX)
        operator = adapters.to_scipy(Partial(jnp.matmul, jnp.asarray(matrix)), DIM, jnp.float64)
        block = np.random.default_rng(0).standard_normal((DIM, 3))
        for product in (operator @ block, operator.T @ block, operator.H @ block):
            np.testing.assert_allclose(product, matrix @ block, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(operator.rmatvec(block[:, 0]), matrix @ block[:, 0], rtol=1e-10)


def test_the_algorithms_run_on_scipy_operators():
    forms = (MATRIX, sparse.csr_array(MATRIX), linalg.aslinearoperator(np.float64(MATRIX)))
    vector = jnp.arange(DIM, dtype=jnp.float32)
    for form in forms:
        matvec = adapters.from_scipy(form)
        product = jax.jit(matvec)(vector)
        assert product.dtype == jnp.float32
        np.testing.assert_allclose(product, MATRIX @ np.arange(DIM), rtol=1e-4, atol=1e-3)
    pairs = lanczos.extremal_eigenpairs(matvec, jax.random.key(0), dim=DIM, num_pairs=2)
    np.testing.assert_allclose(pairs.values, [9, 7], rtol=1e-5)
    estimate = traces.diagonal(matvec, jax.random.key(0), dim=DIM, num_matvecs=DIM, block_size=DIM)
    np.testing.assert_allclose(estimate.value, np.diag(MATRIX), rtol=1e-5)


def test_a_block_of_vectors_is_one_product_of_the_host():
    calls = []

    def matmat(block):
        calls.append(block.shape)
        return MATRIX @ block

    operator = linalg.LinearOperator(
        MATRIX.shape, matvec=lambda v: MATRIX @ v, matmat=matmat, dtype=MATRIX.dtype
    )
    matvec = adapters.from_scipy(operator)
    block = jax.random.normal(jax.random.key(0), (2, 3, DIM))
    products = jax.vmap(jax.vmap(matvec))(block)
    np.testing.assert_allclose(products, block @ MATRIX, rtol=1e-4, atol=1e-4)
    assert calls == [(DIM, 6)]


def test_a_matvec_written_out_is_its_matrix(monkeypatch):
    matrix = np.random.default_rng(1).normal(size=(7, 7)).astype(np.float32)
    matvec = Partial(jnp.matmul, jnp.asarray(matrix))
    np.testing.assert_array_equal(adapters.to_dense(matvec, 7, block_size=3), matrix)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        adapters.to_dense(matvec, 7, block_size=0)
    monkeypatch.setattr(memory, "device_memory", lambda: 100)
    with pytest.raises(MemoryError, match="a matrix of order 7 takes"):
        adapters.to_dense(matvec, 7)


def test_there_and_back_is_the_same_matvec():
    matvec = Partial(jnp.matmul, jnp.asarray(MATRIX))
    operator = adapters.from_scipy(adapters.to_scipy(matvec, DIM))
    assert adapters.from_scipy(adapters.to_scipy(operator)) is operator


def test_lineax_operators():
    lineax = pytest.importorskip("lineax")
    matrix = lineax.MatrixLinearOperator(jnp.asarray(MATRIX), lineax.symmetric_tag)
    vector = jax.random.normal(jax.random.key(0), (DIM,))
    expected = MATRIX @ np.asarray(vector)
    # A composed operator, and a function on a pytree, through `jit` as operands.
    composed = matrix + 2.0 * lineax.IdentityLinearOperator(matrix.in_structure())
    structure = {"a": jax.ShapeDtypeStruct((3, 10), jnp.float32)}
    structure["b"] = jax.ShapeDtypeStruct((10,), jnp.float32)

    def on_tree(tree):
        flat, unravel = jax.flatten_util.ravel_pytree(tree)
        return unravel(jnp.asarray(MATRIX) @ flat)

    function = lineax.FunctionLinearOperator(on_tree, structure, lineax.symmetric_tag)
    apply = jax.jit(lambda matvec, vector: matvec(vector))
    for operator, shift in ((matrix, 0), (composed, 2), (function, 0)):
        matvec = adapters.from_lineax(operator)
        product = apply(matvec, vector)
        np.testing.assert_allclose(product, expected + shift * vector, rtol=1e-4, atol=1e-4)
    pairs = lanczos.extremal_eigenpairs(matvec, jax.random.key(0), dim=DIM, num_pairs=2)
    np.testing.assert_allclose(pairs.values, [9, 7], rtol=1e-5)


def test_bad_operators_are_named():
    with pytest.raises(ValueError, match=r"matvec must map \[3\] to \[3\]"):
        adapters.to_scipy(lambda v: v[1:], 3)
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        adapters.to_scipy(lambda v: v, 0)
    with pytest.raises(ValueError, match="dtype float64 needs 64-bit JAX"):
        adapters.to_scipy(lambda v: v, 3, np.float64)
    failing = adapters.to_scipy(lambda v: v / v[0], 3)
    failing @ np.ones(3)
    with pytest.raises(FloatingPointError, match="NaN or infinity in product 1"):
        failing @ np.zeros(3)
    with pytest.raises(ValueError, match=r"operator must be square, got shape \(2, 3\)"):
        adapters.from_scipy(np.ones((2, 3)))
    with pytest.raises(TypeError, match="operator must be real, got dtype complex128"):
        adapters.from_scipy(np.eye(2) * 1j)
    with pytest.raises(TypeError, match="operator must be a SciPy operator or a matrix, got str"):
        adapters.from_scipy("H")
    with pytest.raises(ValueError, match=r"vector must have shape \(2,\), got \(3,\)"):
        adapters.from_scipy(np.eye(2))(jnp.ones(3))
    with pytest.raises(TypeError, match="operator must be a lineax operator, got ndarray"):
        adapters.from_lineax(np.eye(2))


def test_lineax_operators_between_other_spaces_are_refused():
    lineax = pytest.importorskip("lineax")
    with pytest.raises(ValueError, match="operator must map a space to itself"):
        adapters.from_lineax(lineax.MatrixLinearOperator(jnp.ones((2, 3))))
    with pytest.raises(TypeError, match="must be on real floating arrays, got dtype complex64"):
        adapters.from_lineax(lineax.MatrixLinearOperator(jnp.eye(2) * 1j))


def quadratic_on_the_host():
    """The Hessian diag(1 … 6) by batches read anew for each product."""
    rows = np.diag(np.sqrt(6 * np.arange(1.0, 7))).astype(np.float32)
    loss = lambda w, batch: 0.5 * jnp.mean((batch @ w) ** 2)  # noqa: E731
    batches = [rows[:4], rows[4:]]
    return (
        curvature.hessian_matvec_over(loss, jnp.zeros(6), lambda: iter(batches)),
        curvature.hessian_matvec(loss, jnp.zeros(6), batches),
    )


def test_products_that_loop_on_the_host_serve_what_runs_eagerly():
    host, device = quadratic_on_the_host()
    np.testing.assert_allclose(adapters.to_dense(host, 6), np.diag(np.arange(1.0, 7)), atol=1e-5)
    values = linalg.eigsh(adapters.to_scipy(host, 6), k=2, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(values), [5, 6], rtol=1e-5)
    settings = {"dim": 6, "num_steps": 4, "num_probes": 2}
    measures = [
        spectrum.spectral_measure(matvec, jax.random.key(0), **settings)
        for matvec in (host, device)
    ]
    np.testing.assert_allclose(measures[0].nodes, measures[1].nodes, atol=1e-4)
    with pytest.raises(ValueError, match="vectorize must be False where matvec loops"):
        spectrum.spectral_measure(host, jax.random.key(0), vectorize=True, **settings)


@pytest.mark.parametrize(
    ("run", "instead"),
    [
        (traces.hutchinson, "use spectrum.spectral_measure"),
        (traces.hutch_plus_plus, "use spectrum.spectral_measure"),
        (traces.xtrace, "use spectrum.spectral_measure"),
        (traces.diagonal, "write it out by adapters.to_dense"),
        (
            lambda *args, dim, num_matvecs: lanczos.extremal_eigenpairs(
                *args, dim=dim, num_pairs=1
            ),
            "use lanczos.two_pass_eigenpairs",
        ),
    ],
)
def test_what_is_compiled_refuses_products_that_loop_on_the_host(run, instead):
    with pytest.raises(TypeError, match=f"cannot be compiled: {instead}.*, or stack the batches"):
        run(quadratic_on_the_host()[0], jax.random.key(0), dim=6, num_matvecs=4)


@pytest.mark.parametrize(
    "run",
    [
        traces.hutch_plus_plus,
        traces.xtrace,
        traces.diagonal,
        lambda *args, dim, num_matvecs, dtype: lanczos.extremal_eigenpairs(
            *args, dim=dim, num_pairs=1, dtype=dtype
        ),
    ],
)
def test_types_that_cannot_be_factored_are_named(run):
    with pytest.raises(TypeError, match=r"dtype must be float32 or float64, .*, got bfloat16"):
        run(lambda v: v, jax.random.key(0), dim=9, num_matvecs=4, dtype=jnp.bfloat16)


def test_two_passes_cannot_be_traced_and_say_so():
    run = lambda v: lanczos.two_pass_eigenpairs(  # noqa: E731
        lambda x: 2 * x, v, num_steps=3, num_pairs=1
    )
    with pytest.raises(TypeError, match=r"cannot run under jit, vmap or scan: .*extremal"):
        jax.jit(run)(jnp.arange(1.0, 5))
