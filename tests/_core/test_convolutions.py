"""Every form of a convolution against XLA's own in float64, and its derivatives."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit._core import convolutions
from jaxlimit._core.convolutions import Window, block_size, choose
from jaxlimit._core.programs import canonical_convolutions

ORDERS = ("NHWC", "HWIO", "NHWC")
ONE = (1, 1)
ROUNDING = {jnp.float32: 2e-6, jnp.bfloat16: 8e-3}  # of the largest entry of the result


class Case(NamedTuple):
    """Images, channels, kernel, and how it moves."""

    pixels: tuple[int, int]
    channels: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int] = ONE
    padding: str | tuple = "SAME"
    image_dilation: tuple[int, int] = ONE
    kernel_dilation: tuple[int, int] = ONE
    groups: int = 1


CASES = {
    "winograd": Case((8, 8), (64, 64), (3, 3)),
    "odd sizes and uneven edges": Case((9, 11), (64, 65), (3, 3), padding=((1, 1), (0, 2))),
    "4x4": Case((4, 4), (128, 128), (3, 3)),
    "2x2": Case((2, 2), (8, 6), (3, 3)),
    "2x2, strided": Case((2, 2), (8, 6), (3, 3), strides=(2, 2)),
    "one pixel": Case((1, 1), (8, 6), (3, 3)),
    "one pixel, 1x1": Case((1, 1), (8, 6), (1, 1)),
    "1x1, strided": Case((7, 5), (8, 6), (1, 1), strides=(2, 2)),
    "5x5, narrow images": Case((12, 3), (5, 6), (5, 5)),
    "11x11": Case((12, 12), (5, 6), (11, 11)),
    "11x11, strided": Case((15, 15), (3, 6), (11, 11), strides=(4, 4), padding=(ONE, ONE)),
    "strided": Case((8, 8), (16, 16), (3, 3), strides=(2, 2)),
    "dilated kernel": Case((8, 8), (16, 16), (3, 3), kernel_dilation=(2, 2)),
    "whole image": Case((5, 6), (8, 8), (5, 6), padding="VALID"),
    "groups": Case((8, 8), (8, 8), (3, 3), groups=4),
    "holes": Case((3, 3), (8, 8), (2, 2), padding=((1, 0), (0, 2)), image_dilation=(2, 1),
                  kernel_dilation=(1, 2)),
    "negative edges": Case((6, 6), (8, 8), (3, 3), padding=((-1, 0), (0, -1))),
}  # fmt: skip


def operands(case, dtype, num=4):
    keys = jax.random.split(jax.random.key(0))
    inner, out = case.channels
    images = jax.random.normal(keys[0], (num, *case.pixels, inner), dtype)
    return images, jax.random.normal(keys[1], (*case.kernel, inner // case.groups, out), dtype)


def convolution(case):
    return partial(
        jax.lax.conv_general_dilated,
        window_strides=case.strides,
        padding=case.padding,
        lhs_dilation=case.image_dilation,
        rhs_dilation=case.kernel_dilation,
        dimension_numbers=ORDERS,
        feature_group_count=case.groups,
    )


def value_and_gradients(convolve, images, kernel):
    value, pull = jax.vjp(convolve, images, kernel)
    return (value, *pull(jnp.cos(value.round())))


def by_hand(case, images, kernel, cotangent):
    """Add up tap by tap in float64: the convolution, and what it pulls a cotangent back to."""
    images, kernel, cotangent = (np.float64(x) for x in (images, kernel, cotangent))
    edges = case.padding
    if isinstance(edges, str):
        seen = np.multiply(case.kernel_dilation, np.subtract(case.kernel, 1)) + 1
        edges = jax.lax.padtype_to_pads(case.pixels, seen, case.strides, edges)
    reach = 30  # zeros around, so that edges may be negative
    holed = [d * (p - 1) + 1 for d, p in zip(case.image_dilation, case.pixels, strict=True)]
    canvas = np.zeros((len(images), *(size + 2 * reach for size in holed), images.shape[-1]))
    pixels = np.s_[
        :, *(slice(reach, reach + n, d) for n, d in zip(holed, case.image_dilation, strict=True))
    ]
    canvas[pixels] = images
    value, of_canvas, of_kernel = np.zeros_like(cotangent), canvas * 0, kernel * 0
    (inner, out), groups = kernel.shape[2:], case.groups
    for tap in np.ndindex(case.kernel):
        starts = np.multiply(case.kernel_dilation, tap) + reach - np.array(edges)[:, 0]
        stops = starts + np.multiply(case.strides, np.subtract(value.shape[1:3], 1)) + 1
        seen = np.s_[:, *map(slice, starts, stops, case.strides)]
        for group in range(groups):
            read, write = (np.s_[..., group * num : (group + 1) * num]
                           for num in (inner, out // groups))  # fmt: skip
            met, taps = canvas[seen][read], kernel[tap][write]
            value[write] += met @ taps
            of_canvas[seen][read] += cotangent[write] @ taps.T
            of_kernel[tap][write] += np.einsum("nhwi,nhwo->io", met, cotangent[write])
    return value, of_canvas[pixels], of_kernel


def product(convolve, images, kernel):
    """Multiply the Hessian of a nonlinear function of both with a vector."""

    def loss(images, kernel):
        return jnp.sin(convolve(images, kernel)).sum()

    direction = tuple(jnp.cos(x) for x in (images, kernel))
    return jax.jvp(jax.grad(loss, (0, 1)), (images, kernel), direction)[1]


def in_float64(function, *arrays):
    with jax.enable_x64(True):
        return jax.jit(function)(*(jnp.asarray(np.float64(array)) for array in arrays))


def assert_near(got, wanted, tolerance):
    for one, other in zip(got, wanted, strict=True):
        other = np.asarray(other)
        error = np.abs(np.float64(one) - other).max() / np.abs(other).max()
        assert error < tolerance


NARROW = ("4x4", "2x2", "one pixel", "1x1, strided", "strided")


@pytest.mark.parametrize(
    ("name", "dtype", "narrow"),
    [
        *((name, jnp.float32, False) for name in CASES),
        ("winograd", jnp.bfloat16, False),
        *((name, jnp.bfloat16, True) for name in NARROW),
    ],
)
def test_values_and_gradients_are_those_of_float64(name, dtype, narrow, monkeypatch):
    monkeypatch.setattr(convolutions, "narrow_is_fast", lambda: narrow)
    arrays = operands(CASES[name], dtype)
    of = partial(value_and_gradients, convolution(CASES[name]))
    got = jax.jit(canonical_convolutions(of))(*arrays)
    assert all(array.dtype == dtype for array in got)
    wanted = by_hand(CASES[name], *arrays, jnp.cos(got[0].round()))
    assert_near(got, wanted, ROUNDING[dtype])


@pytest.mark.parametrize("name", ["winograd", "2x2", "4x4", "strided"])
def test_second_derivatives_are_those_of_float64(name):
    of = partial(product, convolution(CASES[name]))
    arrays = operands(CASES[name], jnp.float32, num=2)
    small = arrays[0], arrays[1] / np.prod(arrays[1].shape[:-1]) ** 0.5
    assert_near(jax.jit(canonical_convolutions(of))(*small), in_float64(of, *small), 1e-5)


@pytest.mark.parametrize("name", ["winograd", "2x2"])
def test_forms_can_be_differentiated_and_mapped_themselves(name):
    """The forms are traced after the derivatives as a rule, yet others may follow."""
    convolve = canonical_convolutions(convolution(CASES[name]))
    images, kernel = operands(CASES[name], jnp.float32, num=2)
    kernel = kernel / np.prod(kernel.shape[:-1]) ** 0.5
    of = partial(product, convolution(CASES[name]))
    got = jax.jit(partial(product, convolve))(images, kernel)
    assert_near(got, in_float64(of, images, kernel), 1e-5)
    stack = jnp.stack([images, 2 * images])
    got = jax.vmap(convolve, (0, None))(stack, kernel)
    assert_near(got, jax.lax.map(lambda x: convolution(CASES[name])(x, kernel), stack), 2e-6)


def test_blocks_of_images_change_nothing_but_rounding(monkeypatch):
    case = Case((8, 8), (64, 64), (3, 3))
    of = partial(value_and_gradients, convolution(case))
    arrays = operands(case, jnp.float32)
    monkeypatch.setattr(convolutions, "block_size", lambda *_: 2)
    got = jax.jit(canonical_convolutions(of))
    assert str(jax.make_jaxpr(got)(*arrays)).count("scan") == 3
    got = got(*arrays)
    assert_near(got, by_hand(case, *arrays, jnp.cos(got[0].round())), 2e-6)


def chosen(images, kernel, space, *, narrow=False, **window):
    given = {"window_strides": ONE, "padding": (ONE, ONE), "lhs_dilation": ONE,
             "rhs_dilation": ONE} | window  # fmt: skip
    return choose(images, kernel, space, Window.of(given), narrow=narrow)


@pytest.mark.parametrize(
    ("form", "arguments", "settings"),
    [
        ("winograd", ((32, 32, 32, 64), (3, 3, 64, 64), (32, 32)), {}),
        ("winograd", ((32, 16, 16, 128), (3, 3, 128, 128), (16, 16)), {"narrow": True}),
        ("shifts", ((32, 8, 8, 256), (3, 3, 256, 256), (8, 8)), {"narrow": True}),
        ("direct", ((32, 32, 32, 16), (3, 3, 16, 16), (32, 32)), {}),
        ("direct", ((32, 16, 16, 64), (3, 3, 64, 128), (8, 8)), {"window_strides": (2, 2)}),
        ("apart", ((64, 32, 32, 32), (32, 32, 32, 64), (3, 3)), {}),
        ("places", ((64, 16, 16, 32), (8, 8, 32, 128), (3, 3)), {"rhs_dilation": (2, 2)}),
        ("dense", ((128, 2, 2, 512), (3, 3, 512, 512), (2, 2)), {}),
    ],
)
def test_the_form_follows_from_the_shapes(form, arguments, settings):
    assert chosen(*arguments, **settings) == form


def test_blocks_divide_the_images_or_are_not_taken():
    for num in range(1, 40):
        for each in (1, 3, 7, 100):
            size = block_size(num, each, room=20)
            assert num % size == 0
            assert size == num or 2 * size >= min(max(1, 20 // each), num)


def test_whether_narrow_products_are_fast_is_measured_once_and_also_while_tracing():
    convolutions.narrow_is_fast.cache_clear()
    found = []
    jax.jit(lambda x: found.append(convolutions.narrow_is_fast()) or x)(1.0)
    assert found[0] is convolutions.narrow_is_fast()
    assert convolutions.narrow_is_fast.cache_info().misses == 1
