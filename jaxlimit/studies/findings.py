"""What the stages of a study give, as they are kept and reported."""

from typing import NamedTuple

import numpy as np


class Measured(NamedTuple):
    """What magnitude pruning does to this network.

    Attributes:
        dim: D, weights under study.
        epsilon: ε, the tolerated rise of the loss.
        epsilon_error: its standard error.
        dense_loss: L(w*).
        dense_accuracy: on held-out data, or on the training data if there are none; NaN without.
        ratios: of the sweep, ascending.
        losses: at each.
        radii: R at each.
        accuracies: at each; NaN without an accuracy.
        by_loss: smallest ratio within ε, at it and at all larger ones of the sweep.
        by_accuracy: the same within the tolerance of accuracy; NaN without.
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
        mask: True where a weight stays [D].
        num_kept: how many those are.
        loss: of the network so pruned.
        accuracy: of the network so pruned; NaN without one.
        method: which candidate won.
        names: of the candidates.
        kept: weights that each keeps.
        losses: of each.
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
        slack: bound of the rounding that is included.
        num_products: spent.
        shift: μ that the Hessian was made convex by; NaN where it is the Gauss-Newton matrix.
        shares: of ε that are linear, quadratic and beyond the model at the mask found [3]; NaN
            where there is none.
    """

    num_kept: int
    slack: float
    num_products: int
    shift: float
    shares: np.ndarray


class AtPrediction(NamedTuple):
    """What magnitude pruning at ρ* does."""

    ratio: float
    loss: float
    accuracy: float


class Layers(NamedTuple):
    """How many weights of each layer are kept.

    Attributes:
        names: of the layers, in the order of the flat vector.
        sizes: weights of each.
        magnitude: kept by magnitude at its measured limit.
        found: kept by the mask that was found; -1 if there is none.
    """

    names: np.ndarray
    sizes: np.ndarray
    magnitude: np.ndarray
    found: np.ndarray


class LayerLimits(NamedTuple):
    """How many weights of each layer the theory asks for, the tolerance shared out among them.

    Attributes:
        names: of the layers, as in `Layers`.
        kept: weights that each keeps.
    """

    names: np.ndarray
    kept: np.ndarray


class Guaranteed(NamedTuple):
    """The sparsest ratio that is safe on unseen data, with high probability.

    Attributes:
        ratio: that ratio; 1, the dense network, where even the first step is not shown to be safe.
        tolerance: share of examples that may turn from right to wrong.
        delta: probability that the promise fails.
        num_examples: held-out examples.
        accuracy: on them at the ratio.
        dense_accuracy: that of the dense network on them.
    """

    ratio: float
    tolerance: float
    delta: float
    num_examples: int
    accuracy: float
    dense_accuracy: float
