"""What the families of the zoo share: the check of their input and their linear head."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

# The variance of PyTorch's default linear layer: small enough for a first loss near
# log(num_classes), where He's factor of 2 is meant for layers that a ReLU follows.
head_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def check_images(net: str, images: Array, min_size: int = 1) -> None:
    """Raise unless `images` is a floating batch [N, H, W, C] with H and W at least `min_size`."""
    if images.ndim != 4:
        raise ValueError(f"{net}: images must be [N, H, W, C], got shape {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"{net}: images must be floating (normalized), got dtype {images.dtype}")
    height, width = images.shape[1:3]
    if min(height, width) < min_size:
        raise ValueError(
            f"{net}: images must be at least {min_size}x{min_size} pixels, got {height}x{width}"
        )


class Head(nn.Module):
    """Map features to logits in float32 (or wider), whatever precision the layers below use."""

    num_classes: int

    @nn.compact
    def __call__(self, features: Float[Array, "n d"]) -> Float[Array, "n classes"]:
        """Return the logits [N, num_classes]."""
        dtype = jnp.promote_types(features.dtype, jnp.float32)
        return nn.Dense(self.num_classes, dtype=dtype, kernel_init=head_init)(features)
