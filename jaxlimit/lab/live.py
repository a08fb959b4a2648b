"""A trained network cut to its live units, with its limits.

What an l1 penalty leaves of a network is often a thirtieth of it. The network of the live units has
the same outputs, and so the same masks and refits, at a thirtieth of the cost. Ratios remain those
of the whole network.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlimit import curvature, datasets, flatten_weights, limits, pruning, spectrum, training
from jaxlimit.lab.runs import Net

# The smallest mask of these methods is nearly that of all, at a part of the cost.
METHODS = ("live magnitude", "saliency", "absolute saliency", "relaxed", "greedy")


class Live(NamedTuple):
    """A network without its dead units.

    Attributes:
        net: the smaller network, with its data.
        dim: weights of the whole, which ratios are of.
        epsilon: ε of the whole.
        limit: L(w*) + ε, above which a loss is too high.
    """

    net: Net
    dim: int
    epsilon: float
    limit: float

    @property
    def batches(self) -> list:
        """All training images."""
        return datasets.to_batches(self.net.train)

    @property
    def problem(self) -> tuple:
        """Loss, parameters, data and state, as the analysis takes them."""
        return (*self.net.args, self.batches, self.net.trained.state)

    def at(self, params: Any) -> tuple:
        """Return the problem at other parameters."""
        return (self.net.loss, params, self.batches, self.net.trained.state)

    def loss(self, params: Any) -> float:
        """Return the mean training loss."""
        return float(self._evaluated(params, self.net.train).loss)

    def accuracy(self, params: Any) -> float:
        """Return the test accuracy."""
        return float(self._evaluated(params, self.net.test).accuracy)

    def _evaluated(self, params: Any, data: datasets.Dataset) -> training.Evaluation:
        trained = self.net.trained
        return training.evaluate(
            self.net.module, params, trained.state, data, normalization=trained.normalization
        )


def cut(net: Net, key: Any, *, least: int = 20_000) -> Live:
    """Set dead weights to 0, and remove the units that then do nothing.

    A network of fewer than `least` weights is not changed: it is cheap, and networks of one shape
    share their programs.
    """
    batches, state = datasets.to_batches(net.train), net.trained.state
    epsilon = float(limits.loss_tolerance(*net.args, batches, state))
    dim = flatten_weights(net.trained.params)[0].size
    if dim < least:
        whole = Live(net, dim, epsilon, 0.0)
        return whole._replace(limit=whole.loss(net.trained.params) + epsilon)
    dead = pruning.dead_weights(*net.args, batches, state, key=key)
    params = jax.tree.map(lambda w, gone: jnp.where(gone, 0, w), net.trained.params, dead)
    small = pruning.compress(net.module, params, state)
    trained = net.trained._replace(params=small.params, state=small.state)
    live = Live(net._replace(module=small.module, trained=trained), dim, epsilon, 0.0)
    return live._replace(limit=live.loss(small.params) + epsilon)


def sides(live: Live, params: Any, epsilon: float, key: Any, methods: tuple = METHODS) -> dict:
    """Find the smallest mask of a network, and certify how few weights any mask keeps."""
    found = pruning.smallest_mask(*live.at(params), epsilon=epsilon, key=key, methods=methods)
    certificate = found.certificate
    return {
        "found": found.num_kept,
        "method": found.method,
        "certified": None if certificate is None else int(certificate.num_kept),
        "magnitude": found.candidates[0].num_kept,
        "accuracy": live.accuracy(pruning.apply_mask(params, found.mask)),
    }


def predicted(live: Live, params: Any, epsilon: float, key: Any, num_steps: int) -> float:
    """Predict ρ* from the Hessian's spectrum, in weights."""
    weights, _ = flatten_weights(params)
    matvec = curvature.hessian_matvec(*live.at(params))
    steps = min(num_steps, weights.size)
    measure = spectrum.spectral_measure(matvec, key, num_steps=steps)
    return float(limits.pruning_limit(measure, weights, epsilon).ratio) * weights.size


def quadratic(live: Live, params: Any) -> tuple[Any, Any, Any, Any]:
    """Return Gauss-Newton operator, gradient, weights and diagonal."""
    at = live.at(params)
    return (
        curvature.gauss_newton_matvec(*at),
        curvature.mean_gradient(*at),
        flatten_weights(params)[0],
        curvature.diagonal(*at),
    )


def crossing(counts: list[float], losses: list[float], limit: float) -> float:
    """Return the count at which the loss, from dense to sparse, first passes `limit`.

    Between two counts the loss is linear in the logarithm of the count.

    >>> crossing([100, 10, 1], [0.0, 1.0, 3.0], 2.0).__round__(3)
    3.162
    """
    order = np.argsort(-np.asarray(counts, float))
    count, loss = np.log(np.asarray(counts, float)[order]), np.asarray(losses, float)[order]
    above = np.flatnonzero(~(loss <= limit))
    if not above.size:
        return float(np.exp(count[-1]))
    if above[0] == 0:
        return float(np.exp(count[0]))
    i = above[0]
    if not np.isfinite(loss[i]):
        return float(np.exp(count[i - 1]))
    share = (limit - loss[i - 1]) / (loss[i] - loss[i - 1])
    return float(np.exp(count[i - 1] + share * (count[i] - count[i - 1])))
