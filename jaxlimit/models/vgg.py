"""VGG with BatchNorm and a single linear head, for small images."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlimit.models._layers import ConvNorm, Head, check_images

VGG16_STAGES = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)


class VGG(nn.Module):
    """Stages of 3x3 convolutions with BatchNorm and ReLU, a 2x2 pool after each; a linear head.

    The pixels after the last pool (one for an image of 32x32) are averaged.

    Attributes:
        num_classes: number of logits.
        stages: output channels of the convolutions, stage by stage.
        dtype: precision of the arithmetic; parameters stay float32.

    Simonyan, Zisserman (2015), configuration D for `VGG16_STAGES`, without the dense layers.
    """

    num_classes: int
    stages: tuple[tuple[int, ...], ...] = VGG16_STAGES
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False
    ) -> Float[Array, "n classes"]:
        """Return the logits of images whose sides are at least 2 ** len(stages)."""
        check_images("VGG", images, min_size=2 ** len(self.stages))
        x = images.astype(self.dtype)
        for stage in self.stages:
            for features in stage:
                conv = ConvNorm(features, use_bias=True, dtype=self.dtype)
                x = nn.relu(conv(x, train=train))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        return Head(self.num_classes)(x.mean((1, 2)))
