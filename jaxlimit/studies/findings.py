"""The results of the stages of a study, as they are kept and reported."""

from typing import NamedTuple

import numpy as np


class Measured(NamedTuple):
    """The effect of magnitude pruning on this network.

    Attributes:
        dim: D, weights under study.
        epsilon: ε, the tolerated rise of the loss.
        epsilon_error: its standard error.
        dense_loss: L(w*).
        dense_accuracy: on held-out data, or on training data if there are none; NaN without an
            accuracy.
        ratios: of the sweep, ascending.
        losses: at each.
        radii: R at each.
        accuracies: at each; NaN without an accuracy.
        by_loss: smallest ratio within ε, at it and at all larger ones of the sweep.
        by_accuracy: the same with the accuracy within its tolerance; NaN without an accuracy.
        edge: whether the sweep's smallest ratio still passes.
    """

    dim: int
    epsilon: float
    epsilon_error: float
    dense_loss: float
    dense_accuracy: float
    ratios: np.ndarray
    losses: np.ndarray
    radii: np.ndarray
    accuracies: np.ndarray
    by_loss: float
    by_accuracy: float
    edge: bool


class Found(NamedTuple):
    """The sparsest mask within ε that was found.

    Attributes:
        mask: True where a weight is kept [D].
        num_kept: number of weights kept.
        loss: loss of the pruned network.
        accuracy: accuracy of the pruned network; NaN without one.
        method: the candidate that won.
        names: names of the candidates.
        kept: weights kept by each candidate.
        losses: loss of each candidate.
        notes: candidates that were left out and why, and doubts about the loss.
    """

    mask: np.ndarray
    num_kept: int
    loss: float
    accuracy: float
    method: str
    names: np.ndarray
    kept: np.ndarray
    losses: np.ndarray
    notes: np.ndarray


class Certified(NamedTuple):
    """The fewest weights that any mask within ε of a quadratic model keeps.

    Attributes:
        num_kept: that number.
        slack: allowance for rounding that is included.
        num_products: products used.
        shift: μ that was added to the Hessian to make it convex; NaN for the Gauss-Newton matrix.
        shares: linear, quadratic and remaining shares of ε at the mask found [3]; NaN without one.
    """

    num_kept: int
    slack: float
    num_products: int
    shift: float
    shares: np.ndarray


class AtPrediction(NamedTuple):
    """The effect of magnitude pruning at ρ*."""

    ratio: float
    loss: float
    accuracy: float


class Layers(NamedTuple):
    """How many weights of each layer are kept.

    Attributes:
        names: of the layers, in the order of the flat vector.
        sizes: weights of each.
        magnitude: kept by magnitude at its measured limit.
        found: kept by the mask that was found; -1 without one.
    """

    names: np.ndarray
    sizes: np.ndarray
    magnitude: np.ndarray
    found: np.ndarray


class LayerLimits(NamedTuple):
    """How many weights of each layer the theory asks for, with ε divided among the layers.

    Attributes:
        names: of the layers, as in `Layers`.
        kept: weights that each keeps.
    """

    names: np.ndarray
    kept: np.ndarray


class Guaranteed(NamedTuple):
    """The sparsest ratio that is safe on unseen data, with high probability.

    Attributes:
        ratio: the ratio; 1, the dense network, if even the first step is not shown to be safe.
        tolerance: tolerated share of examples that turn from right to wrong.
        delta: probability that the promise fails.
        num_examples: number of held-out examples.
        accuracy: accuracy on them at the ratio.
        dense_accuracy: accuracy of the dense network on them.
    """

    ratio: float
    tolerance: float
    delta: float
    num_examples: int
    accuracy: float
    dense_accuracy: float
