"""Fully connected nets: the FC5 and FC12 of the paper's tables, and a small FC3 for trials."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlimit.models._layers import Head, check_images, he_init

FC3_WIDTHS = (32, 16)
FC5_WIDTHS = (1000, 600, 300, 100)
FC12_WIDTHS = (1000, 900, 800, 750, 700, 650, 600, 500, 400, 200, 100)


class MLP(nn.Module):
    """Flattened pixels, dense layers with ReLU, a linear head; He initialization, zero biases.

    Attributes:
        widths: units of the hidden layers, first to last.
        num_classes: number of logits.
        dtype: precision of the arithmetic; parameters stay float32.
    """

    widths: tuple[int, ...]
    num_classes: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False
    ) -> Float[Array, "n classes"]:
        """Return the logits; `train` changes nothing here."""
        check_images("MLP", images)
        self._check_num_pixels(images)
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        for width in self.widths:
            x = nn.relu(nn.Dense(width, dtype=self.dtype, kernel_init=he_init)(x))
        return Head(self.num_classes)(x)

    def _check_num_pixels(self, images: Array) -> None:
        if self.is_initializing() or not self.widths:
            return
        expected = self.variables["params"]["Dense_0"]["kernel"].shape[0]
        if images[0].size != expected:
            raise ValueError(
                f"MLP: its parameters were made for images of {expected} values (H*W*C), "
                f"got {images[0].size} from shape {images.shape}"
            )
