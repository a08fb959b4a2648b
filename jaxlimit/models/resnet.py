"""Residual nets with a 3x3 stem and no first pool, for small images."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlimit.models._layers import ConvNorm, Head, check_images


class ResNet(nn.Module):
    """A 3x3 stem, four or so stages of residual blocks, a global average, a linear head.

    Every stage after the first halves the image and doubles the channels.

    Attributes:
        num_classes: number of logits.
        stage_sizes: number of blocks in each stage.
        bottleneck: 1x1, 3x3, 1x1 blocks with 4 times wider outputs, in place of 3x3, 3x3.
        width: channels of the stem and of the first stage.
        dtype: precision of the arithmetic; parameters stay float32.

    Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    bottleneck: bool = False
    width: int = 64
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False
    ) -> Float[Array, "n classes"]:
        """Return the logits of images whose sides are at least 2 ** (len(stage_sizes) - 1)."""
        check_images("ResNet", images, min_size=2 ** (len(self.stage_sizes) - 1))
        stem = ConvNorm(self.width, dtype=self.dtype)
        x = nn.relu(stem(images.astype(self.dtype), train=train))
        for stage, num_blocks in enumerate(self.stage_sizes):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = ResidualBlock(self.width * 2**stage, stride, self.bottleneck, self.dtype)(
                    x, train=train
                )
        return Head(self.num_classes)(x.mean((1, 2)))


class ResidualBlock(nn.Module):
    """ReLU(x + branch(x)); x is projected by a 1x1 convolution where the shapes differ.

    Attributes:
        width: channels of the branch, a quarter of its output's if `bottleneck`.
        stride: step of the branch's first 3x3 convolution and of the projection.
        bottleneck: 1x1, 3x3, 1x1 convolutions in place of 3x3, 3x3.
        dtype: precision of the arithmetic.
    """

    width: int
    stride: int
    bottleneck: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n i j d"]:
        """Return the block's output, ReLU included."""
        if self.bottleneck:
            layers = ((self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1))
        else:
            layers = ((self.width, 3, self.stride), (self.width, 3, 1))
        branch = x
        for i, (features, kernel_size, stride) in enumerate(layers):
            branch = nn.relu(branch) if i > 0 else branch
            conv = ConvNorm(features, kernel_size, stride, dtype=self.dtype)
            branch = conv(branch, train=train)
        if x.shape != branch.shape:
            projection = ConvNorm(
                branch.shape[-1], 1, self.stride, dtype=self.dtype, name="projection"
            )
            x = projection(x, train=train)
        return nn.relu(x + branch)
