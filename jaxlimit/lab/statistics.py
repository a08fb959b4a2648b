"""Statistics that several experiments read off their results."""

from collections.abc import Sequence
from typing import Any

from scipy.stats import spearmanr


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's correlation coefficient, NaN where a side is constant.

    >>> rank_correlation([1.0, 2.0, 3.0], [1.0, 8.0, 9.0])
    1.0
    """
    if min(len(set(first)), len(set(second))) < 2:
        return float("nan")
    result: Any = spearmanr(first, second)
    return float(result.statistic)
