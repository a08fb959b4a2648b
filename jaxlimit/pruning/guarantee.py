"""A ratio that holds on unseen data with a stated probability, from held-out examples."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from jaxlimit._core.batches import check_like, group_batches
from jaxlimit._core.checks import as_array, check_count, check_range
from jaxlimit._core.losses import example_losses, mean_loss
from jaxlimit.pruning.magnitude import apply_mask


class GuaranteedRatio(NamedTuple):
    """The sparsest ratio that passed, and the walk to it.

    Attributes:
        ratio: the ratio at which, with probability at least 1-δ over the held-out examples, the
            mean rise on unseen data is at most ε; 1, the dense network, if no ratio passed.
        num_passed: how many ratios passed, from the dense end.
        p_values: of "the rise is above ε" at each ratio [r]; those after the first failure have no
            effect.
        mean_rises: mean rise on the held-out examples [r], weighted where they have weights.
    """

    ratio: float
    num_passed: int
    p_values: Float[np.ndarray, "r"]
    mean_rises: Float[np.ndarray, "r"]


def guaranteed_ratio(
    dense_losses: Any,
    pruned_losses: Any,
    ratios: Any,
    *,
    epsilon: float,
    delta: float = 0.05,
    bounds: tuple[float, float] | None = None,
    weights: Any = None,
) -> GuaranteedRatio:
    """Find the sparsest ratio whose mean rise on unseen data is at most ε, with confidence.

    Goes from dense to sparse and tests at each ratio the hypothesis E[ℓ(pruned) - ℓ(dense)] > ε on
    the paired differences, by `hoeffding_bentkus`; stops at the first that is not rejected at level
    δ. The ratio before it holds with probability at least 1-δ: a wrong answer needs a false
    rejection at the first ratio where the hypothesis is true, and the order is fixed beforehand.
    Valid for any number of examples. They must be independent draws from the unseen data, used
    neither in training nor to choose masks.

    Args:
        dense_losses: losses of the dense network on n held-out examples [n]; or Booleans, whether
            each example is correct, which count as losses of 0 and 1.
        pruned_losses: the same of the pruned networks on the same examples [r, n].
        ratios: fractions kept [r], from dense to sparse.
        epsilon: ε, the tolerated mean rise, above 0.
        delta: δ, the tolerated probability of a wrong answer, in (0, 1).
        bounds: the least and the greatest possible loss of an example; (0, 1) for Booleans. It must
            be known beforehand, not taken from the examples.
        weights: w of the examples [n], in [0, 1], to test E[w(ℓ(pruned) - ℓ(dense))]/E[w] in place
            of the mean rise. Divide weights by the greatest possible weight, which must be known
            beforehand too. Examples of weight 0 do not count.

    Returns:
        A `GuaranteedRatio`.

    Raises:
        ValueError: if shapes do not match, the ratios do not fall, `epsilon`, `delta` or a weight
            is out of range, the loss has no bounds or exceeds them, or there are too few examples
            for even an unchanged network to pass.

    >>> import numpy as np
    >>> dense = np.ones(2000, bool)  # all correct
    >>> pruned = np.arange(2000) >= np.array([[0], [20], [300]])
    >>> guaranteed_ratio(dense, pruned, [0.5, 0.1, 0.01], epsilon=0.1).ratio
    0.1

    Angelopoulos, Bates, Candès, Jordan, Lei (2021); Bates, Angelopoulos, Lei, Malik, Jordan (2021).
    """
    dense, pruned, (low, high) = _check_losses(dense_losses, pruned_losses, bounds)
    weights, counts = _check_weights(weights, dense.size)
    ratios = _check_ratios(ratios, len(pruned))
    check_range("epsilon", epsilon, 0, open_low=True)
    check_range("delta", delta, 0, 1)
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}")
    # A difference lies within ±(high - low); scaled to [0, 1], no change is ½.
    width = 2 * (high - low)
    level = min(epsilon / width + 0.5, 1.0)
    rises = (pruned - dense)[:, counts]
    # w(rise - ε) is above 0 in expectation where the weighted rise is above ε.
    unchanged = level - weights.mean() * epsilon / width
    _check_enough(weights.size, unchanged, level, delta)
    means = unchanged + (weights * rises).mean(1) / width
    p_values = hoeffding_bentkus(np.clip(means, 0, 1), level, weights.size)
    failed = np.flatnonzero(p_values > delta)
    num_passed = int(failed[0]) if failed.size else len(ratios)
    ratio = float(ratios[num_passed - 1]) if num_passed else 1.0
    rises = (weights * rises).sum(1) / weights.sum()
    return GuaranteedRatio(ratio, num_passed, p_values, rises)


def hoeffding_bentkus(means: Any, level: float, num_examples: int) -> Float[np.ndarray, "..."]:
    """Bound the probability of a mean this small or smaller, if the expectation is above a level.

        p = min(exp(-n h(min(x̄, α), α)), e · P(Bin(n, α) ≤ ⌈n x̄⌉)),
        h(a, b) = a log(a/b) + (1-a) log((1-a)/(1-b)),

    a p-value of "E x > α" for the mean x̄ of n independent x in [0, 1].

    Args:
        means: x̄, of losses scaled to [0, 1].
        level: α in [0, 1].
        num_examples: n.

    Returns:
        The p-values, at most 1.

    Raises:
        TypeError: if `num_examples` is no static int.
        ValueError: if a mean or the level lies outside [0, 1], or `num_examples` < 1.

    >>> float(hoeffding_bentkus(0.0, 0.1, 50).round(4))
    0.0052

    Hoeffding (1963), theorem 1; Bentkus (2004), theorem 1.1.
    """
    as_array("means", means)
    means = np.asarray(means, np.float64)
    check_range("means", means, 0, 1)
    check_range("level", level, 0, 1)
    check_count("num_examples", num_examples)
    below = np.minimum(means, level)
    entropy = special.rel_entr(below, level) + special.rel_entr(1 - below, 1 - level)
    hoeffding = np.exp(-num_examples * entropy)
    count = np.minimum(np.ceil(num_examples * means), num_examples)
    bentkus = np.e * special.bdtr(count, num_examples, level)
    return np.minimum(np.minimum(hoeffding, bentkus), 1.0)


def _check_losses(dense: Any, pruned: Any, bounds: Any) -> tuple[np.ndarray, np.ndarray, tuple]:
    for name, losses in {"dense_losses": dense, "pruned_losses": pruned}.items():
        as_array(name, losses)
    dense, pruned = np.asarray(dense), np.asarray(pruned)
    if dense.ndim != 1 or pruned.ndim != 2 or pruned.shape[1] != dense.size or not pruned.size:
        raise ValueError(
            "dense_losses must be [n] and pruned_losses [r, n] on the same examples, "
            f"got shapes {dense.shape} and {pruned.shape}"
        )
    if (dense.dtype == bool) != (pruned.dtype == bool):
        raise ValueError("dense_losses and pruned_losses must both be losses or both correctness")
    if dense.dtype == bool:
        dense, pruned, bounds = ~dense, ~pruned, (0.0, 1.0)
    if bounds is not None and as_array("bounds", bounds).shape != (2,):
        raise ValueError(f"bounds must be a pair (low, high), got {bounds!r}")
    if bounds is None or not np.isfinite(bounds).all() or not bounds[0] < bounds[1]:
        raise ValueError(
            f"bounds must be the finite ends (low, high) of a single loss, got {bounds}: a mean "
            "of unbounded losses, such as cross-entropy, can be guaranteed from no number of "
            "examples; clip it beforehand, or pass Booleans, whether each example is correct"
        )
    dense, pruned = dense.astype(np.float64), pruned.astype(np.float64)
    for name, losses in {"dense_losses": dense, "pruned_losses": pruned}.items():
        if not ((losses >= bounds[0]) & (losses <= bounds[1])).all():
            raise ValueError(
                f"{name} must lie within bounds {tuple(bounds)}, got values from {losses.min()} "
                f"to {losses.max()}"
            )
    return dense, pruned, tuple(bounds)


def _check_ratios(ratios: Any, num: int) -> np.ndarray:
    ratios = np.asarray(ratios, np.float64)
    check_range("ratios", ratios, 0, 1)
    if ratios.shape != (num,) or (np.diff(ratios) >= 0).any():
        raise ValueError(
            f"ratios must be {num}, one for each row of pruned_losses, falling from dense to "
            f"sparse, got {ratios}"
        )
    return ratios


def _check_weights(weights: Any, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights above 0, and which they are."""
    weights = np.ones(num) if weights is None else weights
    check_range("weights", weights, 0, 1)
    weights = np.asarray(weights, np.float64)
    counts = weights > 0
    if weights.shape != (num,) or not counts.any():
        raise ValueError(
            f"weights must be [{num}], one for each example, some above 0, got shape "
            f"{weights.shape}, {counts.sum()} above 0"
        )
    return weights[counts], counts


def _check_enough(num: int, unchanged: float, level: float, delta: float) -> None:
    """Raise if not even differences of 0, whose scaled mean is `unchanged`, would pass."""
    if level >= 1 or hoeffding_bentkus(unchanged, level, num) <= delta:
        return
    entropy = special.rel_entr(unchanged, level) + special.rel_entr(1 - unchanged, 1 - level)
    raise ValueError(
        f"examples are too few: with {num} not even an unchanged network would pass at this "
        f"epsilon and delta; about {int(np.ceil(-np.log(delta) / entropy))} would do"
    )


def held_out_losses(
    loss: Callable,
    params: Any,
    masks: Sequence[Any],
    batches: Any,
    *operands: Any,
    trained_on: Any = None,
) -> tuple[Array, ...]:
    """Evaluate a loss on each held-out example, for the dense network and each pruned one.

    Costs one evaluation of the data for each mask. Cross-entropy is not bounded: clip it, or pass
    an accuracy as `loss` and use the result as Booleans.

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples; or their losses,
            [n]; or their losses and weights, a pair of arrays [n, ...].
        params: pytree of real floating arrays.
        masks: pytrees like `params`, True = kept, from dense to sparse.
        batches: held-out data; see `curvature.hessian_matvec`.
        *operands: passed on to `loss`.
        trained_on: the data of the training and of the masks, if available; a warning says so if
            `batches` are the same arrays.

    Returns:
        Losses [n] of the dense and [r, n] of the pruned networks; and where the loss returns
        weights, a third array, the weights [n]. Divided by the greatest possible weight, these are
        the `weights` of `guaranteed_ratio`.

    Raises:
        TypeError: if `loss` returns none of the three, or a mask is not boolean.
        ValueError: if a mask has another structure than `params`, or there are no masks or data.

    >>> import jax.numpy as jnp
    >>> square, x = lambda w, x: jnp.mean((x @ w) ** 2), jnp.array([[[1.0, 0.0], [1.0, 2.0]]])
    >>> held_out_losses(square, jnp.ones(2), [jnp.array([True, False])], x)
    (Array([1., 9.], dtype=float32), Array([[1., 1.]], dtype=float32))
    """
    loss, operands = mean_loss(loss, params, batches, operands)
    if not len(masks):
        raise ValueError("masks must hold at least one mask, got none")
    for mask in masks:
        check_like("masks", mask, params)
    if _same_arrays(batches, trained_on):
        warnings.warn(
            "the held-out data are the data that the network was trained on: what holds on them "
            "says nothing of unseen data, whatever the confidence",
            stacklevel=2,
        )
    examples = group_batches(batches)
    dense, weights = example_losses(loss, params, examples, operands)
    pruned = [apply_mask(params, mask) for mask in masks]
    losses = jnp.stack([example_losses(loss, p, examples, operands)[0] for p in pruned])
    return (dense, losses) if weights is None else (dense, losses, weights)


def _same_arrays(one: Any, other: Any) -> bool:
    known = {id(leaf) for leaf in jax.tree.leaves(other)}
    return any(id(leaf) in known for leaf in jax.tree.leaves(one))
