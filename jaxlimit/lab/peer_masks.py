"""Common scores for pruning, for chains of dense layers with ReLU between them.

The benchmark compares them with `pruning.smallest_mask`. They follow the formulas of their papers,
not anyone's code. A layer's weights are [in + 1, out]: the bias is the weight of one more input
that is always 1, so all weights under study get a score.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit import flatten_weights


class Layer(NamedTuple):
    """A dense layer: its weights with the bias as the last row, and its inputs on all examples."""

    path: tuple[str, ...]
    weights: Float[np.ndarray, "in out"]
    inputs: Float[np.ndarray, "n in"]


def layers_of(params: Any, images: Float[np.ndarray, "n ..."]) -> list[Layer]:
    """Return the layers of a `models.MLP` with their inputs."""
    dense = sorted((name for name in params if name.startswith("Dense_")), key=_number)
    paths: list[tuple[str, ...]] = [*((name,) for name in dense), ("Head_0", "Dense_0")]
    x = np.asarray(images, np.float32).reshape(len(images), -1)
    layers = []
    for path in paths:
        leaves = _at(params, path)
        weights = np.vstack([leaves["kernel"], leaves["bias"][None]])
        x = np.hstack([x, np.ones((len(x), 1), x.dtype)])
        layers.append(Layer(path, weights, x))
        x = np.maximum(x @ weights, 0)
    return layers


def _number(name: str) -> int:
    return int(name.split("_")[1])


def _at(params: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        params = params[name]
    return params


def assemble(params: Any, layers: list[Layer], values: list[np.ndarray]) -> Any:
    """Put values [in + 1, out] of each layer in the places of its kernel and bias."""
    tree: Any = jax.tree.map(jnp.asarray, params)  # dictionaries of its own
    for layer, value in zip(layers, values, strict=True):
        leaves = _at(tree, layer.path)
        leaves["kernel"], leaves["bias"] = jnp.asarray(value[:-1]), jnp.asarray(value[-1])
    return tree


def flat(params: Any, layers: list[Layer], values: list[np.ndarray]) -> Float[Array, "D"]:
    """Lay values of each layer out as the flat vector of the weights."""
    return flatten_weights(assemble(params, layers, values))[0]


def wanda(layer: Layer) -> Float[np.ndarray, "in out"]:
    """Score by |wᵢⱼ| ‖xᵢ‖₂, xᵢ the input over all examples.

    Sun, Liu, Bair, Kolter (2024).
    """
    return np.abs(layer.weights) * np.linalg.norm(layer.inputs, axis=0)[:, None]


def evenly(scores: Float[np.ndarray, "in out"]) -> Float[np.ndarray, "in out"]:
    """Turn scores into ranks among the weights of the same output, as fractions.

    Ordered by these, every output of every layer keeps the same fraction, as Wanda does.
    """
    ranks = np.argsort(np.argsort(scores, axis=0, kind="stable"), axis=0, kind="stable")
    return ((ranks + 1) / len(scores)).astype(np.float32)


def damped_inverse(inputs: Float[np.ndarray, "n in"], damping: float) -> np.ndarray:
    """Return (XᵀX/n + λI)⁻¹ in float64, λ the damping times the mean of the diagonal."""
    x = np.asarray(inputs, np.float64)
    hessian = x.T @ x / len(x)
    return np.linalg.inv(hessian + damping * np.diag(hessian).mean() * np.eye(len(hessian)))


def layer_obs(layer: Layer, damping: float = 0.01) -> Float[np.ndarray, "in out"]:
    """Score by ½ wᵢⱼ²/(H⁻¹)ᵢᵢ, H = XᵀX/n: the rise of the output's error if the others adapt.

    Hassibi, Stork (1993), equation 5.
    """
    inverse = damped_inverse(layer.inputs, damping)
    return (layer.weights**2 / (2 * np.diag(inverse)[:, None])).astype(np.float32)


def sparse_gpt(
    layer: Layer, threshold: float, *, block_size: int = 128, damping: float = 0.01
) -> Float[np.ndarray, "in out"]:
    """Prune one input after the other, and let the following inputs compensate.

    At the start of each block of inputs, weights with a score of at most the threshold are chosen.
    The score is ½ wᵢⱼ² over the i-th diagonal entry of the inverse of H on the inputs from i on.
    The paper chooses a share of each block; a threshold lets layers differ.

    Frantar, Alistarh (2023), algorithm 1.
    """
    # Row i of the upper factor of H⁻¹ holds the first row of the inverse of H on i and behind it,
    # over the root of its first entry.
    upper = np.linalg.cholesky(damped_inverse(layer.inputs, damping)).T
    weights = np.array(layer.weights, np.float64)
    for start in range(0, len(weights), block_size):
        block = slice(start, start + block_size)
        scores = weights[block] ** 2 / (2 * np.diag(upper)[block, None] ** 2)
        goes = scores <= threshold
        for i in range(start, start + len(goes)):
            errors = np.where(goes[i - start], weights[i], 0) / upper[i, i]
            weights[i:] -= upper[i, i:, None] * errors
            weights[i, goes[i - start]] = 0
    return weights.astype(layer.weights.dtype)


def wood_fisher(
    weights: Float[np.ndarray, "D"],
    rows: Iterable[Float[np.ndarray, "m D"]],
    *,
    block_size: int = 50,
    damping: float = 1e-5,
) -> Float[np.ndarray, "D"]:
    """Score by ½ wᵢ²/(F⁻¹)ᵢᵢ, F the empirical Fisher matrix, on the diagonal by blocks, + λI.

    Args:
        weights: w.
        rows: pieces of B with F = BᵀB, as `curvature.factor_rows` gives them.
        block_size: consecutive weights of a block.
        damping: λ.

    Singh, Alistarh (2020).
    """
    dim = weights.size
    num_blocks = -(-dim // block_size)
    fisher = np.zeros((num_blocks, block_size, block_size), np.float32)
    for piece in rows:
        padded = np.pad(piece, ((0, 0), (0, num_blocks * block_size - dim)))
        blocks = np.ascontiguousarray(
            padded.reshape(len(piece), num_blocks, block_size).swapaxes(0, 1)
        )
        fisher += blocks.swapaxes(1, 2) @ blocks
    scores = np.empty(num_blocks * block_size, np.float32)
    padded = np.pad(np.asarray(weights, np.float64), (0, scores.size - dim))
    for i, block in enumerate(fisher):
        at = slice(i * block_size, (i + 1) * block_size)
        inverse = np.linalg.inv(block.astype(np.float64) + damping * np.eye(block_size))
        scores[at] = padded[at] ** 2 / (2 * np.diag(inverse))
    return scores[:dim]
