import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from curvature_problems import (
    BF16,
    EPS,
    LABELS,
    MODES,
    NET_BATCHES,
    NET_DIM,
    NUM_EXAMPLES,
    SOFTMAX,
    X,
    make_net,
    net_loss,
    program_of,
    softmax_factors,
    softmax_loss,
)
from jax.extend import core

from jaxlimit import curvature
from jaxlimit._core import convolutions
from jaxlimit._core.programs import (
    canonical_convolutions,
    change_products,
    highest_precision,
    product_dtypes,
)

# --- full precision ---------------------------------------------------------------------------


def precisions(matvec, size=NET_DIM):
    return set(re.findall(r"Precision\.[A-Z]+", str(program_of(matvec, jnp.ones(size)))))


@pytest.mark.parametrize("mode", MODES)
def test_products_are_exact_unless_the_caller_has_said_how(mode):
    """NVIDIA's devices take TF32 for float32 by default; "tensorfloat32" is JAX's `HIGH`."""
    params, state = make_net()
    make = partial(curvature.hessian_matvec, net_loss, params, NET_BATCHES, state, mode=mode)
    assert precisions(make()) == {"Precision.HIGHEST"}
    with jax.default_matmul_precision("tensorfloat32"):
        assert precisions(make()) == {"Precision.HIGH"}
    assert "Precision" not in str(
        jax.make_jaxpr(net_loss)(params, jax.tree.map(lambda x: x[0], NET_BATCHES), state)
    )


def test_narrow_products_ask_for_no_passes_of_float32():
    params, state = make_net()
    make = partial(curvature.hessian_matvec, net_loss, params, NET_BATCHES, state)
    assert precisions(make(product_dtype=jnp.bfloat16)) == set()


# --- narrower products ------------------------------------------------------------------------


def test_bfloat16_products_stay_within_their_rounding():
    """Componentwise error analysis of H v = Xᵀ S X v with both operands of a product rounded."""
    matvec = curvature.hessian_matvec(
        softmax_loss, SOFTMAX, [(X, LABELS)], product_dtype=jnp.bfloat16
    )
    curvatures, inputs = softmax_factors()
    rounding = 2 * BF16 + BF16**2
    for vector in np.random.default_rng(5).normal(size=(5, 15)):
        v = np.float32(vector).reshape(5, 3).astype(float)
        slope = np.einsum("nab,nb->na", curvatures, inputs @ v) / NUM_EXAMPLES
        # The bias enters by no product, the kernel by one with X.
        slope_error = np.einsum(
            "nab,nb->na", np.abs(curvatures), rounding * np.abs(X) @ np.abs(v[1:])
        )
        slope_error /= NUM_EXAMPLES
        error = np.abs(inputs.T) @ slope_error
        error[1:] += rounding * np.abs(X.T) @ (np.abs(slope) + slope_error)
        found = np.abs(
            np.asarray(matvec(jnp.asarray(v.ravel(), jnp.float32))) - (inputs.T @ slope).ravel()
        )
        assert np.all(found <= error.ravel() + 100 * EPS)
        assert found.max() > 10 * EPS


def test_every_product_of_a_network_is_narrowed_and_its_result_is_not(monkeypatch):
    # Other forms of a convolution may widen the rounded operands again, where that is faster.
    monkeypatch.setattr(convolutions, "choose", lambda *_, **__: "direct")
    jax.clear_caches()  # of programs that other tests have traced
    params, state = make_net()
    exact, narrow = (
        curvature.hessian_matvec(net_loss, params, NET_BATCHES, state, product_dtype=dtype)
        for dtype in (None, jnp.bfloat16)
    )
    vector = jnp.asarray(np.random.default_rng(6).normal(size=NET_DIM), jnp.float32)
    program = program_of(narrow, vector)
    assert "remat" in str(program)
    assert product_dtypes(program.jaxpr) == {"bfloat16"}
    assert "preferred_element_type=bfloat16" not in str(program)
    assert product_dtypes(program_of(exact, vector).jaxpr) == {"float32"}
    exact, narrow = exact(vector), narrow(vector)
    assert narrow.dtype == jnp.float32
    # Three layers, each with at most six products of two rounded operands.
    difference = jnp.linalg.norm(exact - narrow) / jnp.linalg.norm(exact)
    assert 10 * EPS < difference < 3 * 6 * 2 * BF16


def test_what_only_products_read_is_stored_narrow():
    matvec = curvature.hessian_matvec(
        softmax_loss, SOFTMAX, [(X, LABELS)], product_dtype=jnp.bfloat16
    )
    stored = {leaf.shape[-2:]: leaf.dtype for leaf in jax.tree.leaves(matvec) if leaf.ndim > 1}
    assert stored[X.shape] == jnp.bfloat16


@pytest.mark.parametrize("wrap", ["scan", "cond", "while", "jit", "custom_jvp", "remat"])
def test_products_are_changed_inside_loops_branches_and_calls(wrap):
    matrix = jnp.eye(3)

    def product(x):
        return matrix @ x

    @jax.custom_jvp
    def custom(x):
        return product(x)

    custom.defjvp(lambda x, t: (product(x[0]), product(t[0])))
    functions = {
        "scan": lambda x: jax.lax.scan(lambda x, _: (product(x), None), x, length=2)[0],
        "cond": lambda x: jax.lax.cond(x[0] > 0, product, jnp.sin, x),
        "while": lambda x: jax.lax.while_loop(lambda x: x[0] < 0, product, x),
        "jit": jax.jit(product),
        "custom_jvp": custom,
        "remat": jax.checkpoint(product),
    }
    program = jax.make_jaxpr(functions[wrap])(jnp.ones(3))
    precise = change_products(program, highest_precision)
    assert "HIGHEST" not in str(program)
    assert str(precise).count("Precision.HIGHEST") == 2
    (result,) = core.jaxpr_as_fun(precise)(jnp.ones(3))
    np.testing.assert_array_equal(result, functions[wrap](jnp.ones(3)))


# --- convolutions in loops ----------------------------------------------------------------------


def orders(program):
    """The dimension numbers of all convolutions, also within loops."""
    return re.findall(r"lhs_spec=\(([^)]*)\), rhs_spec=\(([^)]*)\), out_spec=\(([^)]*)\)", program)


@pytest.mark.parametrize("mode", [*MODES, "bfloat16"])
def test_convolutions_of_a_product_have_their_channels_last(mode):
    """As XLA's CPU backend needs them within loops, where it does not reorder them itself."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"kernel": jax.random.normal(keys[0], (3, 2, 2, 4))}
    images = jax.random.normal(keys[1], (2, 3, 9, 8, 2))

    def strided(params, images):
        convolved = jax.lax.conv_general_dilated(
            images, params["kernel"], (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.mean(jnp.tanh(convolved) ** 2)

    settings = {"product_dtype": jnp.bfloat16} if mode == "bfloat16" else {"mode": mode}
    matvec = curvature.hessian_matvec(strided, params, images, **settings)
    vector = jax.random.normal(keys[2], (48,))
    found = orders(str(program_of(matvec, vector)))
    assert found
    assert set(found) == {("0, 3, 1, 2", "3, 2, 0, 1", "0, 3, 1, 2")}
    whole = lambda w: strided({"kernel": w.reshape(3, 2, 2, 4)}, images.reshape(6, 9, 8, 2))  # noqa: E731
    wanted = jax.hessian(whole)(params["kernel"].ravel()) @ vector
    error = np.linalg.norm(matvec(vector) - wanted) / np.linalg.norm(wanted)
    assert error < (2e-2 if mode == "bfloat16" else 1e-5)


@pytest.mark.parametrize("pixels", [(9, 8), (2, 1)])
@pytest.mark.parametrize(
    ("numbers", "settings"),
    [
        (("NHWC", "HWIO", "NHWC"), {"rhs_dilation": (1, 2)}),
        (("NCHW", "OIHW", "NHWC"), {"lhs_dilation": (1, 2)}),
        (("HWCN", "IHWO", "CHNW"), {"feature_group_count": 2}),
    ],
)
def test_any_convolution_and_its_derivatives_stay_what_they_were(numbers, settings, pixels):
    sizes = {
        "N": 2,
        "C": 4,
        "H": pixels[0],
        "W": pixels[1],
        "I": 4 // settings.get("feature_group_count", 1),
        "O": 6,
    }
    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], [sizes[axis] for axis in numbers[0]])
    kernel = jax.random.normal(keys[1], [(sizes | {"H": 3, "W": 2})[a] for a in numbers[1]])

    def convolve(kernel, images):
        settings_of = {"dimension_numbers": numbers, **settings}
        padding = ((1, 0), (0, 2))
        convolved = jax.lax.conv_general_dilated(images, kernel, (2, 1), padding, **settings_of)
        return jnp.sum(jnp.sin(convolved)), convolved

    gradient = jax.value_and_grad(convolve, argnums=(0, 1), has_aux=True)
    changed = canonical_convolutions(gradient)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4),
        jax.jit(changed)(kernel, images),
        gradient(kernel, images),
    )
    found = orders(str(jax.make_jaxpr(changed)(kernel, images)))
    assert set(found) <= {("0, 3, 1, 2", "3, 2, 0, 1", "0, 3, 1, 2")}
    forward = canonical_convolutions(lambda *arrays: convolve(*arrays)[0])
    by_product = pixels == (2, 1) and "feature_group_count" not in settings
    assert len(orders(str(jax.make_jaxpr(forward)(kernel, images)))) == (not by_product)
