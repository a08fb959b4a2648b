"""Residual nets with a 3x3 stem and no first pool, for small images."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlimit.models._layers import ConvNorm, Head, check_images


class ResNet(nn.Module):
    """A 3x3 stem, stages of residual blocks, a global average, a linear head.

    Every stage after the first halves the image and doubles the channels.

    Attributes:
        num_classes: number of logits.
        stage_sizes: number of blocks in each stage.
        bottleneck: 1x1, 3x3, 1x1 blocks with 4 times wider outputs, in place of 3x3, 3x3.
        width: channels of the stem and of the first stage.
        streams: channels of the residual stream of each stage, in place of those by `width`; for a
            bottleneck net, those of the stem come first.
        inner: channels of the convolutions inside each block but its last, in place of those by
            `width`.
        dtype: precision of the arithmetic; parameters stay float32.

    He, Zhang, Ren, Sun (2016).
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    bottleneck: bool = False
    width: int = 64
    streams: tuple[int, ...] | None = None
    inner: tuple[tuple[int, ...], ...] | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False
    ) -> Float[Array, "n classes"]:
        """Return the logits of images whose sides are at least 2 ** (len(stage_sizes) - 1)."""
        check_images("ResNet", images, min_size=2 ** (len(self.stage_sizes) - 1))
        streams, inner = self._streams(), self._inner()
        x = nn.relu(ConvNorm(streams[0], dtype=self.dtype)(images.astype(self.dtype), train=train))
        outputs, number = streams[-len(self.stage_sizes) :], 0
        for stage, num_blocks in enumerate(self.stage_sizes):
            for block in range(num_blocks):
                first = block == 0
                x = ResidualBlock(
                    inner=inner[number],
                    features=outputs[stage],
                    stride=2 if stage > 0 and first else 1,
                    project=first and (stage > 0 or self.bottleneck),
                    dtype=self.dtype,
                )(x, train=train)
                number += 1
        return Head(self.num_classes)(x.mean((1, 2)))

    def _streams(self) -> tuple[int, ...]:
        widths = [self.width * 2**stage for stage in range(len(self.stage_sizes))]
        default = (self.width, *(4 * w for w in widths)) if self.bottleneck else tuple(widths)
        return _checked("streams", self.streams, default)

    def _inner(self) -> tuple[tuple[int, ...], ...]:
        num = 2 if self.bottleneck else 1
        default = tuple(
            (self.width * 2**stage,) * num
            for stage, num_blocks in enumerate(self.stage_sizes)
            for _ in range(num_blocks)
        )
        return _checked("inner", self.inner, default)


def _checked(name: str, given: tuple | None, default: tuple) -> tuple:
    if given is None:
        return default
    if list(map(np.shape, given)) != list(map(np.shape, default)):
        raise ValueError(f"ResNet: {name} must have the form of {default}, got {given}")
    return given


class ResidualBlock(nn.Module):
    """ReLU(x + branch(x)), x projected by a 1x1 convolution where a stage begins.

    Attributes:
        inner: channels of the branch's convolutions but the last: one before a 3x3, or two for 1x1,
            3x3, 1x1.
        features: channels of the output.
        stride: step of the branch's first 3x3 convolution and of the projection.
        project: whether x is projected.
        dtype: precision of the arithmetic.
    """

    inner: tuple[int, ...]
    features: int
    stride: int
    project: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n i j d"]:
        """Return the block's output, ReLU included."""
        kernels = (3, 3) if len(self.inner) == 1 else (1, 3, 1)
        branch = x
        for i, features in enumerate((*self.inner, self.features)):
            branch = nn.relu(branch) if i > 0 else branch
            stride = self.stride if i == kernels.index(3) else 1
            conv = ConvNorm(features, kernels[i], stride, dtype=self.dtype)
            branch = conv(branch, train=train)
        if self.project:
            projection = ConvNorm(
                self.features, 1, self.stride, dtype=self.dtype, name="projection"
            )
            x = projection(x, train=train)
        return nn.relu(x + branch)
