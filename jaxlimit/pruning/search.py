"""The smallest mask that keeps the loss within ε, from several orders of removal."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, PRNGKeyArray

from jaxlimit import limits
from jaxlimit._core.checks import check_choice, check_key, check_known, check_range, check_type
from jaxlimit._core.estimate import value_of
from jaxlimit._core.masks import mask_tree
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, is_weight
from jaxlimit.limits.tolerance import examine
from jaxlimit.pruning.candidates import ORDERS, WHY_NONE, Budget, Network, start
from jaxlimit.pruning.masked import (
    loss_of_mask,
    masked_loss,
    smallest_along,
    some_examples,
)
from jaxlimit.pruning.polish import polish

METHODS = (*ORDERS, "polished")

_BUDGET = Budget()
# Where there are many batches, every so many of them locate the count on an order first.
_STRIDE = 8
# A remainder of more than this share of ε: the quadratic at w is not the loss at the mask.
_LARGE_REMAINDER = 0.25


class Candidate(NamedTuple):
    """The smallest mask that one method found.

    Attributes:
        method: its name.
        num_kept: how many weights it keeps.
        ratio: num_kept / D.
        loss: the true loss over all examples.
        seconds: time taken, including what it computed for later methods.
        num_evaluations: evaluations of the loss over all examples.
    """

    method: str
    num_kept: int
    ratio: float
    loss: float
    seconds: float
    num_evaluations: int


class MaskSearch(NamedTuple):
    """The smallest mask found, and the candidates that it was chosen from.

    Attributes:
        mask: pytree of Booleans like the parameters, True = kept and where not under study.
        num_kept: weights under study that it keeps.
        ratio: num_kept / D.
        loss: its true loss, at most dense_loss + epsilon.
        method: the candidate that won.
        candidates: all candidates, in the order they were tried.
        certificate: how few weights any mask keeps, in the quadratic model; None without one.
        shares: how much of ε is linear, quadratic and remainder at the mask; None without a
            certificate, and where ε is 0.
        dense_loss: L(w).
        epsilon: ε.
        live: pytree like the mask, True = not dead; None if no method needed it.
        notes: which candidates were left out and why, and why the loss is no mean over independent
            examples if it is none.
    """

    mask: Any
    num_kept: int
    ratio: float
    loss: float
    method: str
    candidates: tuple[Candidate, ...]
    certificate: limits.Certificate | None
    shares: limits.Shares | None
    dense_loss: float
    epsilon: float
    live: Any
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        """Show one line for each candidate."""
        lines = [
            f"MaskSearch: {self.ratio:.4%} kept ({self.num_kept:,}) by {self.method}, loss "
            f"{self.loss:.6g} of at most {self.dense_loss + self.epsilon:.6g}"
        ]
        lines += [f"  {c.method:<18} {c.ratio:.4%}  {c.seconds:.1f} s" for c in self.candidates]
        if self.certificate is not None:
            ratio = float(self.certificate.ratio)
            lines.append(f"  {'no mask, certified':<18} {ratio:.4%}  within the quadratic")
        if self.shares is not None:
            parts = (f"{part:.0%} {name}" for name, part in self.shares._asdict().items())
            lines.append(f"  of ε: {', '.join(parts)}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@takes_mesh
def smallest_mask(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    epsilon: Any,
    key: PRNGKeyArray,
    methods: tuple[str, ...] = METHODS,
    budget: Budget = _BUDGET,
    where: Where = is_weight,
    on_progress: Callable[[str, int, int], None] | None = None,
    mesh: Mesh | None = None,
) -> MaskSearch:
    """Search all masks for the smallest that keeps the loss within ε.

        min ‖m‖₀  such that  L(w∘m) ≤ L(w) + ε,  m in {0, 1}ᴰ

    is hard. So several orders of removal compete, and the true loss over all examples decides. Of
    each order the smallest passing count is found exactly: by halving, bisection, and a scan below,
    since a loss is not monotone in the count. The candidates:

    - magnitude, which is always tried, so the result is never worse;
    - live magnitude: dead weights first (`dead_weights`), then magnitude;
    - saliency, signed and absolute: `saliency` with a Gauss-Newton diagonal from probes;
    - relaxed: the z̄ of `limits.certificate`, rounded;
    - greedy: one weight at a time on the quadratic over the live weights, or over the most salient
      ones that fit (`greedy_order`); cautious: the same without gains from the gradient;
    - stepwise: greedy with new quadratics at the masks on the way (`stepwise_order`), if the one at
      w is off by more than a quarter of ε at the best mask so far;
    - polished: exchanges of weights at the best of these.

    The mask and its loss are exact statements about the loss on these examples. The certificate
    holds in the quadratic model alone, whose curvature comes from at most `budget.num_examples`
    examples. A loss that is not split has no Gauss-Newton matrix: the empirical Fisher matrix then
    orders the weights, and there is no certificate.

    Costs about 50 evaluations a candidate, 33 gradients, the products of the certificate, and for
    the greedy search a backward pass for each output of each example and 2n² flops a row.

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples; split, as from
            `curvature.split_loss` or `training.make_loss`, where it can be.
        params: w, pytree of real floating arrays.
        batches: see `curvature.hessian_matvec`.
        *operands: passed on to `loss`.
        epsilon: ε, the tolerated rise, at least 0; a number or an `Estimate`.
        key: random key of the probes.
        methods: the candidates to try, from `METHODS`.
        budget: limits on the quadratic model: memory, operations, examples, products.
        where: which leaves are under study; the others stay.
        on_progress: called as `on_progress("smallest mask", methods_done, methods)`.
        mesh: devices to share the examples; see `magnitude_sweep`.

    Returns:
        A `MaskSearch`.

    Raises:
        TypeError: as `magnitude_sweep`, or if `key` is no typed key.
        ValueError: if ε is negative, the loss is a sum instead of a mean, a method is unknown, or
            as `magnitude_sweep`.
        FloatingPointError: if the loss is not finite at `params`.

    >>> import jax, jax.numpy as jnp
    >>> square = lambda y, x: 0.5 * jnp.mean(y**2)
    >>> from jaxlimit.curvature import split_loss
    >>> loss = split_loss(lambda w, x: x @ (w - jnp.array([3.0, 2.0, 1.0])), square)
    >>> x = jnp.diag(jnp.array([0.1, 1.0, 1.0]))[None]
    >>> found = smallest_mask(
    ...     loss, jnp.array([3.0, 2.0, 1.0]), x, epsilon=0.2, key=jax.random.key(0))
    >>> found.mask, found.method
    (Array([False,  True, False], dtype=bool), 'saliency')

    Zhang, Zhang, Sun, Liu (2024) for the question; LeCun, Denker, Solla (1990) for the quadratic.
    """
    check_key("key", key)
    check_known("smallest_mask", key=key, params=params)
    epsilon = value_of(epsilon)
    check_range("epsilon", epsilon, 0)
    check_type("budget", budget, Budget)
    for name in budget._fields:
        check_range(f"budget.{name}", float(getattr(budget, name)), 0)
    for method in methods:
        check_choice("methods", method, METHODS)
    problem = masked_loss(loss, params, batches, operands, where, mesh)
    doubt = examine(loss, params, batches, *operands, mesh=mesh)
    network = start(
        problem,
        (loss, params, batches, operands),
        key,
        epsilon=float(epsilon),
        budget=budget,
        where=where,
    )
    if not np.isfinite(network.dense_loss):
        raise FloatingPointError(f"loss must be finite at params, got {network.dense_loss}")
    found = _try_all(network, ("magnitude", *methods), on_progress)
    mask = mask_tree(jnp.asarray(found.mask), params, where)
    return MaskSearch(
        mask=mask,
        num_kept=found.best.num_kept,
        ratio=found.best.ratio,
        loss=found.best.loss,
        method=found.best.method,
        candidates=tuple(found.candidates),
        certificate=network.certificate if "relaxed" in methods else None,
        shares=_shares(network, found) if "relaxed" in methods else None,
        dense_loss=network.dense_loss,
        epsilon=network.epsilon,
        live=None if network.found_live is None else mask_tree(network.found_live, params, where),
        notes=(*found.notes, *filter(None, [doubt])),
    )


def _shares(network: Network, found: "_Found") -> limits.Shares | None:
    if network.certificate is None or not network.epsilon:
        return None
    at = (network.operator, network.gradient, network.problem.weights, found.mask)
    return limits.shares(*at, network.epsilon, rise=found.best.loss - network.dense_loss)


class _Found(NamedTuple):
    mask: Bool[np.ndarray, "D"]
    best: Candidate
    candidates: list[Candidate]
    notes: list[str]


def _try_all(network: Network, methods: tuple[str, ...], on_progress: Any) -> _Found:
    names = [name for name in METHODS if name in methods]
    candidates, masks, notes = [], [], []
    for i, name in enumerate(names, start=1):
        begin = time.perf_counter()
        if name == "polished":
            found = _polish(network, _best(candidates, masks))
        elif name == "stepwise greedy" and _holds(network, *_best(candidates, masks)):
            continue
        else:
            found = _search_along(network, name)
        if found is None:
            notes += [WHY_NONE[name]] if name in WHY_NONE else []
        else:
            mask, loss, evaluations = found
            seconds = time.perf_counter() - begin
            kept = int(mask.sum())
            candidate = Candidate(name, kept, kept / mask.size, loss, seconds, evaluations)
            candidates.append(candidate)
            masks.append(mask)
            network.best_kept = min(network.best_kept, kept)
        if on_progress is not None:
            on_progress("smallest mask", i, len(names))
    mask, best = _best(candidates, masks)
    return _Found(mask, best, candidates, notes)


def _holds(network: Network, mask: Bool[np.ndarray, "D"], best: Candidate) -> bool:
    """Say whether the quadratic at w predicts the loss of a mask."""
    if not network.epsilon:
        return True
    at = (network.operator, network.gradient, network.problem.weights, mask, network.epsilon)
    shares = limits.shares(*at, rise=best.loss - network.dense_loss)
    return abs(shares.remainder) <= _LARGE_REMAINDER


def _best(candidates: list[Candidate], masks: list) -> tuple[Bool[np.ndarray, "D"], Candidate]:
    # Among equally small masks the first one tried wins, which is the simplest.
    winner = min(range(len(candidates)), key=lambda i: candidates[i].num_kept)
    return masks[winner], candidates[winner]


def _search_along(network: Network, name: str) -> tuple | None:
    order = ORDERS[name](network)
    if order is None:
        return None
    problem, limit = network.problem, network.dense_loss + network.epsilon
    guess, fewer = None, some_examples(problem, _STRIDE)
    if fewer is not None:
        dense = loss_of_mask(fewer, jnp.ones(order.shape, bool))
        near = smallest_along(fewer, order, lambda losses: losses <= dense + network.epsilon)
        guess = near.num_kept
    found = smallest_along(problem, order, lambda losses: losses <= limit, guess=guess)
    mask = np.asarray(order < found.num_kept)
    return mask, found.loss, found.num_evaluations


def _polish(network: Network, best: tuple) -> tuple | None:
    mask, candidate = best
    support = network.support
    if support is None or support.matrix is None:
        return None
    limit = network.dense_loss + network.epsilon
    at = (mask, candidate.loss, support.chosen, support.matrix)
    found = polish(network.problem, *at, limit=limit)
    if found.mask.sum() == candidate.num_kept:
        return None
    return found.mask, found.loss, 2 * found.num_gradients
