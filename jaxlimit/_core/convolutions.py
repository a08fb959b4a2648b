"""Convolve fast on a CPU: the form that suits the shape, all of them the same sum.

XLA's own program reaches nine tenths of a product's rate with 3x3 kernels in float32. It does not
with the gradient of a kernel, with images smaller than the kernel, and in bfloat16, which it widens
first. Matrix products in the order that XLA's library takes, with blocks that stay in the cache,
are faster there, and Winograd's algorithm needs fewer multiplications (`docs/convolutions.md`).
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

BLOCK_BYTES = 2**22  # that the copies of a block of images may take, so that they stay in the cache
MOST_PLACES = 64  # of a result that is taken apart, each of them a product in the program
SHORTEST = 512  # rows of a product that its fixed cost may be spread over
WIDE = 64  # fewest channels for which Winograd's products outweigh its sums
NARROW = 128  # fewest channels for which a gradient is faster in bfloat16
SHIFTED = 256  # the same for images
FASTER = 1.3  # how much faster narrow products must be to be used; with instructions it is 1.9
# Winograd's F(2x2, 3x3), by Lavin, Gray (2016): the kernel's side.
KERNEL_SIDE = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])

Shape = tuple[int, ...]
_KEPT = ((0, 0, 0),)  # an axis that is not padded


class Window(NamedTuple):
    """How a kernel moves over images: XLA's words, a number or a pair for each axis of space."""

    strides: Shape
    padding: tuple[tuple[int, int], ...]
    image_dilation: Shape
    kernel_dilation: Shape

    @classmethod
    def of(cls, params: dict) -> "Window":
        """Read it from the parameters of a convolution."""
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
        return cls(*(tuple(params[name]) for name in names))

    @property
    def plain(self) -> bool:
        """Whether it moves by one pixel over images and kernels without holes."""
        return {*self.strides, *self.image_dilation, *self.kernel_dilation} == {1}

    def padded(self, images: Array) -> Array:
        """Put zeros around the images, and between their pixels."""
        holes = [step - 1 for step in self.image_dilation]
        edges = [(*pair, hole) for pair, hole in zip(self.padding, holes, strict=True)]
        return _pad(images, [(0, 0, 0), *edges, (0, 0, 0)])

    def seen(
        self, padded: Array, start: Sequence[int] | np.ndarray, count: Shape, steps: Shape
    ) -> Array:
        """Take `count` pixels of padded images from `start` on, `steps` apart."""
        start = list(map(int, start))
        stop = [a + step * (num - 1) + 1 for a, step, num in zip(start, steps, count, strict=True)]
        num, *_, channels = padded.shape
        return jax.lax.slice(padded, (0, *start, 0), (num, *stop, channels), (1, *steps, 1))

    def tap(self, padded: Array, at: Shape, space: Shape) -> Array:
        """Take the pixels that one tap of the kernel meets, in the shape of the result."""
        return self.seen(padded, np.multiply(self.kernel_dilation, at), space, self.strides)


def choose(images: Shape, kernel: Shape, space: Shape, window: Window, *, narrow: bool) -> str:
    """Name the form for a convolution without groups, from shapes alone.

    Args:
        images: [n, ..., in].
        kernel: [..., in, out].
        space: axes of space of the result.
        window: how the kernel moves.
        narrow: whether the operands are of a narrow type whose products are the faster ones.
    """
    pixels, taps, places = map(int, map(np.prod, (images[1:-1], kernel[:-2], space)))
    channels = min(kernel[-2:])
    if taps == 1:
        return "shifts"
    if places == 1:
        return "places"
    if pixels < taps and pixels * places <= MOST_PLACES and {*window.image_dilation} == {1}:
        return "dense"
    if places < taps:
        if window.plain and len(space) == 2 and min(images[0], kernel[-1]) > 3:
            return "apart"
        return "places" if places <= MOST_PLACES else "direct"
    if narrow and channels >= SHIFTED:
        return "shifts" if places >= 16 else "columns"
    if kernel[:-2] == (3, 3) and window.plain and places >= 64 and channels >= WIDE:
        return "winograd"
    if (places <= 16 and channels >= NARROW) or np.less(images[1:-1], kernel[:-2]).any():
        return "shifts" if places == 16 else "columns" if places < 16 else "direct"
    return "direct"


def convolve(images: Array, kernel: Array, params: dict, direct: Callable) -> Array:
    """Convolve images [n, ..., in] with a kernel [..., in, out]; channels stay last.

    Args:
        images: of any floating type.
        kernel: of the same type.
        params: of XLA's convolution, `preferred_element_type` among them.
        direct: XLA's convolution of the two.
    """
    num, *space, out = jax.eval_shape(direct, images, kernel).shape
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        return direct(images, kernel)
    if 0 in (images.size, kernel.size, num * out * int(np.prod(space))):
        return direct(images, kernel)
    space, window = tuple(space), Window.of(params)
    short = images.dtype == jnp.bfloat16
    form = choose(images.shape, kernel.shape, space, window, narrow=short and narrow_is_fast())
    gradient = form in ("apart", "places")
    long = images.dtype not in (jnp.float32, jnp.bfloat16)
    if form == "direct" or (long and form == "winograd"):
        return direct(images, kernel)
    fewest = NARROW if gradient else WIDE
    # Winograd's form widens its own operands, block by block.
    if short and form != "winograd" and not _stays_narrow(images, kernel, gradient, fewest):
        images, kernel = (operand.astype(jnp.float32) for operand in (images, kernel))
    convolved = FORMS[form](images, kernel, window, space)
    return convolved.reshape(num, *space, out).astype(params["preferred_element_type"])


def _stays_narrow(images: Array, kernel: Array, gradient: bool, fewest: int) -> bool:
    sides = (images.shape[0], kernel.shape[-1]) if gradient else kernel.shape[-2:]
    return min(sides) >= fewest and narrow_is_fast()


@cache
def narrow_is_fast() -> bool:
    """Measure whether products of bfloat16 are faster here than those of float32, once a process.

    Where the processor has instructions for them they take half the time, elsewhere they take
    longer, so that noise does not change the answer. Time spent waiting for others is not counted.
    """
    taken = []
    with jax.ensure_compile_time_eval():
        for dtype in (jnp.float32, jnp.bfloat16):
            square, program = jnp.ones((512, 512), dtype), jax.jit(multiply)
            program(square, square).block_until_ready()
            times = []
            for _ in range(9):
                start = time.process_time()
                program(square, square).block_until_ready()
                times.append(time.process_time() - start)
            taken.append(min(times))
    return taken[0] > FASTER * taken[1]


def multiply(left: Array, right: Array) -> Array:
    """Multiply [m, k] by [k, n] in the order that XLA's library is fast in: k last, then k first.

    Barriers keep XLA from moving a transpose or a copy of the operands into the product.
    """
    left, right = jax.lax.optimization_barrier((left, right))
    accumulate = jnp.promote_types(left.dtype, jnp.float32)
    numbers = (((1,), (0,)), ((), ()))
    return jax.lax.dot_general(left, right, numbers, preferred_element_type=accumulate)


def _shifts(images: Array, kernel: Array, window: Window, space: Shape) -> Array:
    """Add up a product a tap."""
    *taps, inner, out = kernel.shape
    if np.prod(taps) == 1 and {*window.image_dilation} != {1}:  # nothing is gained between pixels
        product = multiply(images.reshape(-1, inner), kernel.reshape(inner, out))
        padded = window.padded(product.reshape(*images.shape[:-1], out))
        return window.seen(padded, (0,) * len(space), space, window.strides)

    def of_block(images: Array) -> Array:
        padded = window.padded(images)
        products = [
            multiply(
                window.tap(padded, tap, space).reshape(-1, inner),
                kernel[tap],
            )
            for tap in np.ndindex(*taps)
        ]
        return sum(products[1:], start=products[0]).reshape(-1, *space, out)

    bytes_each = 4 * int(np.prod(space)) * out
    return _in_blocks(of_block, images, 2 * bytes_each)


def _columns(images: Array, kernel: Array, window: Window, space: Shape) -> Array:
    """Lay all that a place of the result sees in a row, and multiply once."""
    *taps, inner, out = kernel.shape
    padded = window.padded(images)
    seen = [window.tap(padded, tap, space) for tap in np.ndindex(*taps)]
    columns = jnp.concatenate(seen, -1).reshape(-1, len(seen) * inner)
    return multiply(columns, kernel.reshape(-1, out))


def _dense(images: Array, kernel: Array, window: Window, space: Shape) -> Array:
    """Convolve as a dense layer does, whose matrix holds only the taps that meet a pixel."""
    num, *sizes, _ = images.shape
    *taps, _, out = kernel.shape
    blocks = []
    for place in np.ndindex(*space):
        edges = [
            (step * at - low, size - (dilation * (tap - 1) + 1) - (step * at - low), dilation - 1)
            for at, step, (low, _), size, tap, dilation in zip(
                place, window.strides, window.padding, sizes, taps,
                window.kernel_dilation, strict=True,
            )
        ]  # fmt: skip
        blocks.append(_pad(kernel, [*edges, (0, 0, 0), (0, 0, 0)]).reshape(-1, out))
    return multiply(images.reshape(num, -1), jnp.concatenate(blocks, 1))


def _places(images: Array, kernel: Array, window: Window, space: Shape) -> Array:
    """Lay what each place of the result sees one below the other: a product of few, long rows."""
    num, out, taps = images.shape[0], kernel.shape[-1], kernel.shape[:-2]

    def of_block(pixels: Array, moving: Array) -> Array:
        padded = window.padded(pixels)
        starts = [np.multiply(window.strides, place) for place in np.ndindex(*space)]
        seen = [window.seen(padded, start, taps, window.kernel_dilation) for start in starts]
        rows = jnp.moveaxis(jnp.stack(seen), -1, 1).reshape(len(seen) * num, -1)
        return multiply(rows, moving.reshape(-1, out))

    copied = int(np.prod(taps)) * int(np.prod(space)) * num
    total = _over_channels(of_block, images, kernel, copied)
    return jnp.moveaxis(total.reshape(*space, num, out), -2, 0)


def _apart(images: Array, kernel: Array, window: Window, space: Shape) -> Array:
    """Move the images along one axis and the kernel along the other: one square product of both.

    So a gradient of 3x3 kernels takes three copies of each, not nine of one.
    """
    (num, height, width, _), (tall, wide, _, out) = images.shape, kernel.shape
    ((above, _), (left, _)), (rows, columns) = window.padding, space

    def of_block(pixels: Array, moving: Array) -> Array:
        pixels = jax.lax.optimization_barrier(jnp.moveaxis(pixels, -1, 0))
        across = [
            _pad(pixels, [*_KEPT * 3, (left - at, wide - width - left + at, 0)])
            for at in range(columns)
        ]
        down = [
            _pad(moving, [*_KEPT, (at - above, height - tall - at + above, 0), *_KEPT * 2])
            for at in range(rows)
        ]
        first = jnp.concatenate(across).reshape(columns * num, -1)
        return multiply(first, jnp.concatenate(down, -1).reshape(-1, rows * out))

    total = _over_channels(of_block, images, kernel, height * wide * (columns * num + rows * out))
    return jnp.transpose(total.reshape(columns, num, rows, out), (1, 2, 0, 3))


def _over_channels(of_block: Callable, images: Array, kernel: Array, copied: int) -> Array:
    """Add up `of_block` over blocks of channels, which are the images where it is a gradient.

    Both come with the channels first, the order that they have in memory if it is one. `copied` is
    how many elements a channel takes.
    """
    pixels = jnp.transpose(images, (images.ndim - 1, *range(1, images.ndim - 1), 0))
    operands = pixels, jnp.moveaxis(kernel, -2, 0)
    length = int(np.prod(kernel.shape[:-2]))
    num = images.shape[-1]
    size = max(block_size(num, copied * images.dtype.itemsize), block_size(num, length, SHORTEST))
    if size == num:
        return of_block(*operands)
    cut = [operand.reshape(-1, size, *operand.shape[1:]) for operand in operands]
    like = jax.eval_shape(of_block, *(blocks[0] for blocks in cut))

    def add(total: Array, block: list[Array]) -> tuple[Array, None]:
        return total + of_block(*block), None

    return jax.lax.scan(add, jnp.zeros(like.shape, like.dtype), cut)[0]


def _winograd(images: Array, kernel: Array, window: Window, space: Shape) -> Array:
    """Convolve with 3x3 by 16 products for four places, where 36 would be needed (F(2x2, 3x3))."""
    inner, out = kernel.shape[-2:]
    tiles = tuple(-(-size // 2) for size in space)
    narrow, kernel = kernel.dtype, kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    side = jnp.asarray(KERNEL_SIDE, kernel.dtype)
    kernel = jnp.einsum("ai,ijco,bj->abco", side, kernel, side, precision="highest")
    kernel = kernel.reshape(16, inner, out)
    more = [
        (low, 2 * tile + 2 - size - low, 0)
        for tile, size, (low, _) in zip(tiles, images.shape[1:-1], window.padding, strict=True)
    ]

    def of_block(images: Array) -> Array:
        # Narrow images are widened once, not in each of the sums below.
        images = jax.lax.optimization_barrier(images.astype(kernel.dtype))
        padded = _pad(images, [(0, 0, 0), *more, (0, 0, 0)])
        columns = [
            _image_side([window.seen(padded, (i, j), tiles, (2, 2)) for i in range(4)])
            for j in range(4)
        ]
        seen = [part for row in zip(*columns, strict=True) for part in _image_side(row)]
        seen, taps = jax.lax.optimization_barrier((jnp.stack(seen).reshape(16, -1, inner), kernel))
        products = jax.lax.dot_general(seen, taps, (((2,), (1,)), ((0,), (0,))))
        halves = [_result_side(products[j::4]) for j in range(4)]
        parts = [_result_side(row) for row in zip(*halves, strict=True)]
        rows = [jnp.stack([p.reshape(-1, *tiles, out) for p in row], 3) for row in parts]
        result = jnp.stack(rows, 2).reshape(len(images), 2 * tiles[0], 2 * tiles[1], out)
        return result[:, : space[0], : space[1]].astype(narrow)

    bytes_each = 16 * tiles[0] * tiles[1] * inner * kernel.dtype.itemsize
    return _in_blocks(of_block, images, bytes_each)


def _image_side(parts: Iterable[Array]) -> tuple[Array, ...]:
    first, second, third, fourth = parts
    return first - third, second + third, third - second, second - fourth


def _result_side(parts: Iterable[Array]) -> tuple[Array, Array]:
    first, second, third, fourth = parts
    return first + second + third, second - third - fourth


FORMS = {
    "shifts": _shifts,
    "columns": _columns,
    "dense": _dense,
    "places": _places,
    "apart": _apart,
    "winograd": _winograd,
}


def block_size(num: int, each: int, room: int = BLOCK_BYTES) -> int:
    """Return how many of `num` images have room at once: a divisor, or all where none is near.

    >>> block_size(128, 2**20), block_size(97, 2**20)
    (4, 97)
    """
    most = max(1, min(num, room // each))
    size = max(size for size in range(1, most + 1) if num % size == 0)
    return size if 2 * size >= most else num


def _in_blocks(of_block: Callable, images: Array, bytes_each: int) -> Array:
    size = block_size(len(images), bytes_each)
    if size == len(images):
        return of_block(images)
    result = jax.lax.map(of_block, images.reshape(-1, size, *images.shape[1:]))
    return result.reshape(len(images), *result.shape[2:])


def _pad(array: Array, edges: Sequence[tuple[int, int, int]]) -> Array:
    return jax.lax.pad(array, jnp.zeros((), array.dtype), edges)
