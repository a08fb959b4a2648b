"""A small vision transformer, which the paper's tables lack."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxlimit.models._layers import Head, check_images

_normal = nn.initializers.normal(0.02)


class ViT(nn.Module):
    """Patches as tokens beside a class token, learnt positions, blocks with LayerNorm first.

    A patch is flattened and mapped by one dense layer, so all of the net is matrix products.
    LayerNorm's scale and shift are constants to `curvature.is_weight`; the class token and the
    positions are weights under study, as biases are.

    Attributes:
        num_classes: number of logits.
        patch: side of a patch, in pixels.
        width: features of a token, a multiple of `num_heads`.
        num_blocks: attention and MLP blocks.
        num_heads: heads of each attention; one number, or one for each block.
        head_width: features of a head; `width` over the heads if None.
        hidden: units of each block's MLP; one number, or one for each block; 4 `width` if None.
        dtype: precision of the arithmetic; parameters stay float32.
    """

    num_classes: int
    patch: int = 4
    width: int = 192
    num_blocks: int = 6
    num_heads: int | tuple[int, ...] = 3
    head_width: int | None = None
    hidden: int | tuple[int, ...] | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], *, train: bool = False
    ) -> Float[Array, "n classes"]:
        """Return the logits; `train` changes nothing here."""
        check_images("ViT", images, self.patch)
        tokens = nn.Dense(self.width, dtype=self.dtype, name="embed")(self._patches(images))
        first = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
        first = jnp.broadcast_to(first, (len(tokens), 1, self.width)).astype(self.dtype)
        tokens = jnp.concatenate([first, tokens], axis=1)
        self._check_num_tokens(tokens)
        positions = self.param("positions", _normal, (1, *tokens.shape[1:]))
        tokens = tokens + positions.astype(self.dtype)
        for num_heads, hidden in zip(*self.sizes(), strict=True):
            head_width = self.head_width or self.width // num_heads
            tokens = Block(num_heads, head_width, hidden, self.dtype)(tokens)
        return Head(self.num_classes)(nn.LayerNorm(dtype=self.dtype)(tokens[:, 0]))

    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the heads and the hidden units of each block."""
        given = (self.num_heads, self.hidden or 4 * self.width)
        heads, hidden = ((x,) * self.num_blocks if isinstance(x, int) else tuple(x) for x in given)
        return heads, hidden

    def _check_num_tokens(self, tokens: Array) -> None:
        if self.is_initializing():
            return
        expected = self.variables["params"]["positions"].shape[1]
        if tokens.shape[1] != expected:
            raise ValueError(
                f"ViT: its positions were made for {expected - 1} patches, "
                f"got {tokens.shape[1] - 1}: images of another size need parameters of their own"
            )

    def _patches(self, images: Float[Array, "n h w c"]) -> Float[Array, "n tokens values"]:
        n, height, width, channels = images.shape
        rows, columns = height // self.patch, width // self.patch
        if (rows * self.patch, columns * self.patch) != (height, width):
            raise ValueError(
                f"ViT: images must have sides that are multiples of the patch, {self.patch}, "
                f"got {height}x{width}"
            )
        cut = images.reshape(n, rows, self.patch, columns, self.patch, channels)
        return cut.swapaxes(2, 3).reshape(n, rows * columns, -1).astype(self.dtype)


class Block(nn.Module):
    """Attention and an MLP with GELU, each after a LayerNorm and added to its input.

    Attributes:
        num_heads: heads of the attention.
        head_width: features of a head.
        hidden: units of the MLP.
        dtype: precision of the arithmetic.
    """

    num_heads: int
    head_width: int
    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        """Return the tokens after the block."""
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads,
            qkv_features=self.num_heads * self.head_width,
            out_features=x.shape[-1],
            dtype=self.dtype,
            deterministic=True,
            name="attention",
        )
        x = x + attention(nn.LayerNorm(dtype=self.dtype)(x))
        hidden = nn.Dense(self.hidden, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x))
        return x + nn.Dense(x.shape[-1], dtype=self.dtype)(nn.gelu(hidden))
