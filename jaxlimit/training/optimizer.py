"""The optax chain of a training step, the penalties in it, and sharpness-aware steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxlimit._core import scale
from jaxlimit._core.checks import check_count, check_range
from jaxlimit._core.weights import Where, is_weight, selected


def penalised(params: PyTree, where: Where = is_weight) -> PyTree:
    """Mark the leaves on which the penalties act.

    Args:
        params: pytree of the parameters.
        where: which leaves are penalised.

    Returns:
        A pytree like `params`, True at those leaves.

    >>> penalised({"Dense_0": {"bias": 0.0}, "BatchNorm_0": {"bias": 0.0}})
    {'BatchNorm_0': {'bias': False}, 'Dense_0': {'bias': True}}
    """
    return jax.tree.unflatten(jax.tree.structure(params), selected(params, where))


def soft_threshold(x: Float[Array, "..."], threshold: Any) -> Float[Array, "..."]:
    """Apply the proximal operator of `threshold`·|x|: sign(x)·max(|x| - threshold, 0).

    Args:
        x: numbers, any shape.
        threshold: at least 0; broadcasts.

    Returns:
        The result, elementwise.

    >>> import jax.numpy as jnp
    >>> soft_threshold(jnp.array([-3.0, 0.5]), 1.0).tolist()
    [-2.0, 0.0]
    """
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


def sgd(
    rate: Any, momentum: Any, l1: Any, l2: Any, *, proximal: bool, where: Where = is_weight
) -> optax.GradientTransformation:
    """Chain penalties, momentum and rate as `TrainingConfig` states them; numbers may be traced.

    Args:
        rate: η of the step.
        momentum: μ.
        l1: strength of the l1 penalty; or a pytree like the parameters with the strength for each
            weight, from `l1_weights`.
        l2: strength of the l2 penalty.
        proximal: whether l1 acts by the soft threshold after the step, or by its subgradient.
        where: which leaves the penalties act on.

    Returns:
        The transformation of the gradient of the data loss to an update; it needs the parameters.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([1.0, 0.01])}
    >>> gradient = {"kernel": jnp.array([0.5, 0.0])}
    >>> optimizer = sgd(0.1, 0.0, 0.2, 0.0, proximal=True)
    >>> update, _ = optimizer.update(gradient, optimizer.init(params), params)
    >>> optax.apply_updates(params, update)["kernel"]  # S(1 - 0.05, 0.02), S(0.01, 0.02)
    Array([0.93, 0.  ], dtype=float32)
    """

    def shrink(update: PyTree, params: PyTree) -> PyTree:
        def one(u: Array, w: Array, l1: Any, on: bool) -> Array:
            return soft_threshold(w + u, rate * l1 / (1 - momentum)) - w if on else u

        return jax.tree.map(one, update, params, spread(l1, params), penalised(params, where))

    return optax.chain(
        _pull(0.0 if proximal else l1, l2, where),
        optax.trace(momentum),
        optax.scale_by_learning_rate(rate),
        optax.stateless(shrink) if proximal else optax.identity(),
    )


def adam(
    rate: Any, momentum: Any, l1: Any, l2: Any, *, where: Where = is_weight
) -> optax.GradientTransformation:
    """Chain penalties, Adam and rate as `TrainingConfig` states them; numbers may be traced.

    Args:
        rate: η of the step.
        momentum: β₁.
        l1: strength of the l1 penalty, as in `sgd`; by its subgradient.
        l2: strength of the l2 penalty.
        where: which leaves the penalties act on.

    Returns:
        The transformation of the gradient of the data loss to an update; it needs the parameters.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([1.0, -3.0])}
    >>> optimizer = adam(0.1, 0.9, 0.0, 0.0)
    >>> update, _ = optimizer.update(params, optimizer.init(params), params)
    >>> update["kernel"].round(6).tolist()  # the first step has the length of the rate
    [-0.1..., 0.1...]

    Kingma, Ba (2015), algorithm 1.
    """
    return optax.chain(
        _pull(l1, l2, where),
        optax.scale_by_adam(b1=momentum),
        optax.scale_by_learning_rate(rate),
    )


def _pull(l1: Any, l2: Any, where: Where) -> optax.GradientTransformation:
    """Add the subgradients of the penalties to a gradient."""

    def pull(gradient: PyTree, params: PyTree) -> PyTree:
        def one(g: Array, w: Array, l1: Any, on: bool) -> Array:
            return g + (l1 * jnp.sign(w) + l2 * w) if on else g

        return jax.tree.map(one, gradient, params, spread(l1, params), penalised(params, where))

    return optax.stateless(pull)


def spread(l1: Any, params: PyTree) -> PyTree:
    """Return the strength for each leaf; one number is repeated."""
    if jax.tree.structure(l1) == jax.tree.structure(params):
        return l1
    return jax.tree.map(lambda _: l1, params)


def l1_weights(
    params: PyTree, delta: Any, *, strength: Any = 1.0, sensitivity: PyTree = None
) -> PyTree:
    """Weigh the l1 penalty of each weight by how small it is: strength · r / (r·|w| + δ).

    With v the weights before, Σ_i r_i|w_i|/(r_i|v_i| + δ) is a linear majorant of
    Σ_i log(r_i|w_i| + δ) up to a constant. So reweighted penalties descend on that sum, which is
    closer than ‖w‖₁ to the number of nonzero weights. With r_i = √(h_i/h̄), h the diagonal of the
    curvature, r_i|w_i| is the root of the saliency ½ h_i w_i² up to a factor: small weights are
    then those that can be removed cheaply.

    Args:
        params: pytree of the weights.
        delta: δ > 0, the magnitude below which a weight counts as small.
        strength: a factor.
        sensitivity: r ≥ 0, a pytree like `params`, as from `sensitivity`; 1 by default.

    Returns:
        A pytree like `params`, the `l1` of `sgd` and `distance_from_minimum`.

    Raises:
        TypeError: if `delta` is no real number.
        ValueError: if `delta` is not above 0.

    >>> import jax.numpy as jnp
    >>> l1_weights({"kernel": jnp.array([0.0, -0.75])}, 0.25)["kernel"].tolist()
    [4.0, 1.0]

    Candès, Wakin, Boyd (2008), section 2.2; LeCun, Denker, Solla (1990) for the saliency.
    """
    check_range("delta", delta, 0, open_low=True)

    def one(w: Array, r: Any) -> Array:
        wide = jnp.abs(w.astype(scale.wide_type(w.dtype)))
        return (strength * r / (r * wide + delta)).astype(w.dtype)

    if sensitivity is None:
        sensitivity = jax.tree.map(lambda _: 1, params)
    return jax.tree.map(one, params, sensitivity)


class ReweightedL1State(NamedTuple):
    """The state of `reweighted_l1`: updates since the last reweighting, and penalty weights."""

    num_updates: Int[Array, ""]
    weights: PyTree


def reweighted_l1(
    strength: Any, delta: Any, *, every: int, where: Where = is_weight
) -> optax.GradientTransformation:
    """Add the subgradient of a reweighted l1 penalty, strength·Σ_i |w_i|/(|v_i| + δ).

    v are the weights at the last multiple of `every` updates. This is for your own optimiser; `fit`
    has the same by `TrainingConfig(l1_delta=...)`, reweighted every epoch. The state is one more
    copy of the parameters; a run that restores it continues with the same bits.

    Args:
        strength: of the penalty.
        delta: δ > 0; see `l1_weights`.
        every: updates between two reweightings, at least 1, such as the steps of an epoch.
        where: which leaves the penalty acts on.

    Returns:
        The transformation of a gradient; it needs the parameters.

    Raises:
        TypeError: if an argument is no real number, or `every` no static int.
        ValueError: if an argument is out of range; of the update, if parameters are missing.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([1.0, -0.25])}
    >>> transform = reweighted_l1(0.5, 0.25, every=10)
    >>> gradient, _ = transform.update(
    ...     {"kernel": jnp.zeros(2)}, transform.init(params), params)
    >>> gradient["kernel"].tolist()  # 0.5 / 1.25, -0.5 / 0.5
    [0.4, -1.0]

    Candès, Wakin, Boyd (2008), section 2.
    """
    check_range("delta", delta, 0, open_low=True)
    check_count("every", every)

    def init(params: PyTree) -> ReweightedL1State:
        return ReweightedL1State(jnp.zeros((), jnp.int32), l1_weights(params, delta))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple:
        if params is None:
            raise ValueError("params must be given to update, got None")
        due = state.num_updates == 0
        weights = jax.tree.map(
            lambda now, before: jnp.where(due, now, before),
            l1_weights(params, delta),
            state.weights,
        )
        updates = jax.tree.map(
            lambda g, w, u, on: g + strength * u * jnp.sign(w) if on else g,
            updates,
            params,
            weights,
            penalised(params, where),
        )
        return updates, ReweightedL1State((state.num_updates + 1) % every, weights)

    return optax.GradientTransformation(init, update)


def sam(optimizer: optax.GradientTransformation, radius: float) -> Any:
    """Take the gradient at w + radius·g/‖g‖ in place of w: `optax.contrib.sam`, as in the paper.

    For your own loop: the same steps as `TrainingConfig(sam_radius=radius)`, with two differences.
    Where g = 0, optax divides by 0 and gives NaN, while `fit` stays at w. And optax also climbs
    along entries that a mask keeps at 0.

    Args:
        optimizer: makes the step from the gradient found there.
        radius: how far to climb, at least 0.

    Returns:
        A transformation whose `update(gradient, state, params, grad_fn=...)` takes
        `grad_fn(params, i)`, the gradient of the same batch at other parameters.

    Raises:
        TypeError: if `radius` is no real number.
        ValueError: if `radius` is negative.

    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: jnp.sum(w**2)
    >>> optimizer, w = sam(optax.sgd(0.25), 0.5), jnp.array([3.0, 4.0])
    >>> gradient = jax.grad(lambda w, i: loss(w))
    >>> update, _ = optimizer.update(gradient(w, 0), optimizer.init(w), w, grad_fn=gradient)
    >>> update.tolist()  # -¼ · 2 (w + ½ w/‖w‖)
    [-1.65, -2.2]

    Foret, Kleiner, Mobahi, Neyshabur (2021), algorithm 1.
    """
    check_range("radius", radius, 0)
    uphill = optax.chain(optax.contrib.normalize(), optax.sgd(radius))
    return optax.contrib.sam(optimizer, uphill, opaque_mode=True)


def tree_norm(tree: PyTree) -> Float[Array, ""]:
    """Return the Euclidean norm over all leaves, in float32 at least and free of scale.

    >>> import jax.numpy as jnp
    >>> tree_norm([jnp.array(3e-30), jnp.array([4e-30])])
    Array(5.e-30, dtype=float32)
    """
    leaves = jax.tree.leaves(tree)
    largest = jnp.max(jnp.stack([scale.magnitude(leaf).reshape(()) for leaf in leaves]))
    squares = [jnp.sum((leaf / largest) ** 2) for leaf in leaves]
    return largest * jnp.sqrt(sum(squares, jnp.zeros((), largest.dtype)))


def climb(params: PyTree, gradient: PyTree, radius: Any, mask: PyTree = None) -> PyTree:
    """Return w + radius·g/‖g‖, the norm over all parameters; w where g = 0 or the mask is False.

    >>> import jax.numpy as jnp
    >>> climb(jnp.zeros(2), jnp.array([3.0, 4.0]), 0.5).tolist()
    [0.3..., 0.4...]
    """
    if mask is not None:
        gradient = jax.tree.map(lambda g, keep: jnp.where(keep, g, 0), gradient, mask)
    norm = tree_norm(gradient)
    norm = jnp.where(norm > 0, norm, 1)
    return jax.tree.map(lambda w, g: (w + radius * (g / norm)).astype(w.dtype), params, gradient)


def penalty(params: PyTree, l1: Any, l2: Any, *, where: Where = is_weight) -> Float[Array, ""]:
    """Return Σ l1·|w| + ½·l2·‖w‖² over the penalised leaves; l1 as in `sgd`."""

    def one(w: Array, l1: Any, on: bool) -> Any:
        if not on:
            return 0.0
        w = w.astype(scale.wide_type(w.dtype))
        norm = scale.norm(w)
        pull = (l1 * jnp.abs(w)).sum() if jnp.ndim(l1) else l1 * jnp.abs(w).sum()
        return pull + 0.5 * (l2 * norm) * norm

    terms = jax.tree.map(one, params, spread(l1, params), penalised(params, where))
    return sum(jax.tree.leaves(terms), jnp.zeros(()))
