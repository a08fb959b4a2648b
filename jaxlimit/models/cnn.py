"""A small convolutional net without normalisation."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlimit.models._layers import Head, check_images, he_init


class CNN(nn.Module):
    """Convolutions of 3x3 with ReLU, each but the first of stride 2, the mean over places, a head.

    Attributes:
        num_classes: number of logits.
        channels: of the convolutions, first to last.
        dtype: precision of the arithmetic; parameters stay float32.
    """

    num_classes: int
    channels: tuple[int, ...] = (16, 32, 32)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False
    ) -> Float[Array, "n classes"]:
        """Return the logits of images of any size; `train` changes nothing here."""
        check_images("CNN", images)
        x = images.astype(self.dtype)
        for layer, width in enumerate(self.channels):
            stride = 1 if layer == 0 else 2
            x = nn.Conv(width, (3, 3), stride, padding=1, dtype=self.dtype, kernel_init=he_init)(x)
            x = nn.relu(x)
        return Head(self.num_classes)(x.mean((1, 2)))
