"""AlexNet with its published kernels, on small images enlarged to the size it was made for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlimit._core.checks import check_count
from jaxlimit.models._layers import Head, check_images, he_init


class AlexNet(nn.Module):
    """Five convolutions, three overlapping pools, two dense layers, a linear head.

    Dropout is off by default, though AlexNet is usually trained with rate 0.5: the limits hold at a
    minimum of the loss in evaluation mode, which training with dropout does not seek. A positive
    rate acts only with `train=True`, and needs `rngs={"dropout": key}`.

    Attributes:
        num_classes: number of logits.
        channels: output channels of the five convolutions.
        hidden: units of the dense layers.
        image_size: side to which the input is resized by nearest neighbour, at least 65, of
            which the last pool leaves one pixel.
        dropout_rate: fraction of the dense layers' inputs dropped in training.
        dtype: precision of the arithmetic; parameters stay float32.

    Krizhevsky, Sutskever, Hinton (2012), without local response normalization, on one device.
    """

    num_classes: int
    channels: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    hidden: tuple[int, ...] = (4096, 4096)
    image_size: int = 224
    dropout_rate: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False
    ) -> Float[Array, "n classes"]:
        """Return the logits of images of any size; `train` switches dropout."""
        check_images("AlexNet", images)
        check_count("AlexNet: image_size", self.image_size, 65)
        n, _, _, c = images.shape
        x = jax.image.resize(images, (n, self.image_size, self.image_size, c), "nearest")
        x = self._conv(x.astype(self.dtype), 0, kernel_size=11, stride=4, padding=1)
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        x = self._conv(x, 1, kernel_size=5, padding=2)
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        for layer in (2, 3, 4):
            x = self._conv(x, layer, kernel_size=3, padding=1)
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        x = x.reshape(n, -1)
        for width in self.hidden:
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            x = nn.relu(nn.Dense(width, dtype=self.dtype, kernel_init=he_init)(x))
        return Head(self.num_classes)(x)

    def _conv(
        self, x: Array, layer: int, *, kernel_size: int, stride: int = 1, padding: int
    ) -> Array:
        conv = nn.Conv(
            self.channels[layer],
            (kernel_size, kernel_size),
            stride,
            padding=padding,
            dtype=self.dtype,
            kernel_init=he_init,
        )
        return nn.relu(conv(x))
