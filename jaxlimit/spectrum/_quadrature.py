"""Gauss rules of a tridiagonal matrix, with and without a prescribed node, on the host.

The small eigenproblems are solved in float64, whatever the type of the recurrence: a bound divides
eigenvalues by a c that is a thousandth of the largest, so errors of single precision would show.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import eigh_tridiagonal

# Places of the prescribed node between 0 and the nearest Gauss node, as shares of that node.
SHARES = np.concatenate([[1e-3, 1e-2, 5e-2], np.linspace(0.1, 1, 11)[:-1], [0.95, 0.99]])
NUM_PINNED = 2 * len(SHARES) + 2


class Rules(NamedTuple):
    """The Gauss rule of one recurrence, and the pinned family at half and at full depth.

    The family's rules have one more node, prescribed: row 0 at 0, the next ones across the gap
    around 0; the last row is the Gauss rule itself (a node at ±∞).
    """

    nodes: Any  # [m]
    weights: Any  # [m]
    family_nodes: Any  # [2, NUM_PINNED, m + 1]
    family_weights: Any  # [2, NUM_PINNED, m + 1]


def gauss_rule(diagonal: np.ndarray, off_diagonal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Gauss rule: eigenvalues of T, squared first entries of its eigenvectors."""
    if diagonal.size == 1:
        return diagonal.copy(), np.ones(1)
    nodes, vectors = eigh_tridiagonal(diagonal, off_diagonal, lapack_driver="stevd")
    return nodes, vectors[0] ** 2


def radau_rule(
    diagonal: np.ndarray, off_diagonal: np.ndarray, residual_norm: float, node: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rule with one more node, which is prescribed (Golub 1973).

    T is bordered by β_m and the last diagonal entry that makes `node` an eigenvalue. Where `node`
    is an eigenvalue of T already, that entry is infinite and the rule is the Gauss rule.
    """
    diagonal, off_diagonal = np.asarray(diagonal, float), np.asarray(off_diagonal, float)
    pivot = diagonal[0] - node
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for alpha, beta in zip(diagonal[1:], off_diagonal, strict=True):
            pivot = alpha - node - beta * (beta / pivot)
        coupling = residual_norm * (residual_norm / pivot)
    scale = np.abs(diagonal).max() + residual_norm
    if residual_norm == 0 or not np.abs(coupling) < 1e8 * scale:
        return gauss_rule(diagonal, off_diagonal)
    nodes, weights = gauss_rule(
        np.append(diagonal, node + coupling), np.append(off_diagonal, residual_norm)
    )
    nodes[np.argmin(np.abs(nodes - node))] = node
    return nodes, weights


def rules(
    diagonal: np.ndarray, off_diagonal: np.ndarray, residual_norm: float, num_valid: int
) -> Rules:
    """Build all rules of the leading `num_valid` steps, padded with weights 0.

    All NaN if the recurrence holds NaN, as it does where a product was not finite.
    """
    room = diagonal.size
    diagonal, off_diagonal = np.asarray(diagonal, float), np.asarray(off_diagonal, float)
    if np.isnan(diagonal).any():
        unknown = np.full((2, NUM_PINNED, room + 1), np.nan)
        return Rules(unknown[0, 0, :room], unknown[0, 0, :room], unknown, unknown)
    if num_valid == 0:
        empty = np.zeros((2, NUM_PINNED, room + 1))
        return Rules(empty[0, 0, :room], empty[0, 0, :room], empty, empty)
    couplings = np.append(off_diagonal[: num_valid - 1], residual_norm)
    families = [
        _family(diagonal[:depth], couplings[: depth - 1], couplings[depth - 1], room + 1)
        for depth in (max(num_valid // 2, 1), num_valid)
    ]
    nodes, weights = np.stack(families, axis=1)
    return Rules(nodes[1, -1, :room], weights[1, -1, :room], nodes, weights)


def _family(
    diagonal: np.ndarray, off_diagonal: np.ndarray, residual_norm: float, room: int
) -> np.ndarray:
    """Return nodes and weights of the pinned family, [2, NUM_PINNED, room]."""
    gauss = gauss_rule(diagonal, off_diagonal)
    pins = _pins(gauss[0], residual_norm)
    family = [radau_rule(diagonal, off_diagonal, residual_norm, x) for x in pins]
    family.append(gauss)
    padded = np.zeros((2, NUM_PINNED, room))
    for row, rule in enumerate(family):
        padded[:, row, : len(rule[0])] = rule
    return padded


def _pins(nodes: np.ndarray, residual_norm: float) -> np.ndarray:
    """Choose where to prescribe the node: at 0, then across the gap of the Gauss nodes around 0.

    Every rule of the family has exactly one node in that gap, so the pins sample all of them. Where
    all nodes lie on one side, the gap is unbounded on the other, and the pins go on until the rule
    is nearly the Gauss rule.
    """
    reach = np.abs(nodes).max() + residual_norm
    unbounded = reach * SHARES / (1 - SHARES)
    above = nodes[nodes > 0].min() * SHARES if (nodes > 0).any() else unbounded
    below = nodes[nodes < 0].max() * SHARES if (nodes < 0).any() else -unbounded
    return np.concatenate([[0.0], above, below])
