"""What the families of the zoo share: input checks, convolution with BatchNorm, head."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# A tenth of LeCun's standard deviation: the first loss is near log(num_classes) even where max
# pooling has let the features grow, and the gradient still reaches every layer.
head_init = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
he_init = nn.initializers.he_normal()


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


class ConvNorm(nn.Module):
    """A convolution that keeps the size (over `stride`), then BatchNorm.

    Attributes:
        features: output channels.
        kernel_size: odd side of the kernel.
        stride: step in both directions.
        use_bias: whether the convolution has a bias beside BatchNorm's own.
        dtype: precision of the arithmetic.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n i j d"]:
        """Normalize by the statistics of the batch in training, by the running ones otherwise."""
        x = nn.Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            self.stride,
            padding=self.kernel_size // 2,
            use_bias=self.use_bias,
            dtype=self.dtype,
            kernel_init=he_init,
        )(x)
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)


class Head(nn.Module):
    """Map features to logits in float32 (or wider), whatever precision the layers below use."""

    num_classes: int

    @nn.compact
    def __call__(self, features: Float[Array, "n d"]) -> Float[Array, "n classes"]:
        """Return the logits [N, num_classes]."""
        dtype = jnp.promote_types(features.dtype, jnp.float32)
        return nn.Dense(self.num_classes, dtype=dtype, kernel_init=head_init)(features)
