"""The settings of a study."""

import dataclasses
from typing import Any

from jaxlimit._core.checks import check_count, check_range

_LARGEST = 3.4028234663852886e38  # of float32, in which the losses are


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """Settings of a study; the defaults suit a first one."""

    epsilon: float | None = None
    """Tolerated rise of the loss; measured from the data if not given."""
    accuracy_tolerance: float = 0.01
    """Loss of accuracy that the limit by accuracy and the held-out guarantee tolerate."""
    delta: float = 0.05
    """Probability that the held-out guarantee fails."""
    num_ratios: int = 60
    """Ratios of the magnitude sweep, before it is refined at the limit."""
    smallest_ratio: float = 1e-4
    """Smallest ratio of the sweep."""
    certificate_products: int = 200
    """Products that the certificate may take."""
    num_steps: int = 256
    """Lanczos steps a probe, at most."""
    num_probes: int = 1
    """Probes of the spectrum."""
    num_gap_steps: int = 128
    """Lanczos steps on the removed weights, at most."""
    tolerance: float = 0.1
    """Stop Lanczos where the interval is at most this share of ρ*; 0 takes all steps."""
    num_layer_steps: int = 48
    """Lanczos steps on the block of each layer; 0 leaves the layers' own limits out."""
    num_held_out: int = 24
    """Ratios that the held-out walk tests, at most."""
    quiet: bool = False
    """Show no progress."""

    def __post_init__(self) -> None:
        """Raise now what a stage would raise after minutes."""
        for name in ("num_steps", "num_probes", "num_gap_steps", "certificate_products"):
            check_count(name, getattr(self, name))
        check_count("num_ratios", self.num_ratios, 3)
        check_count("num_layer_steps", self.num_layer_steps, 0)
        check_count("num_held_out", self.num_held_out, 2)
        if self.epsilon is not None:
            check_range("epsilon", self.epsilon, 0, _LARGEST)
        check_range("accuracy_tolerance", self.accuracy_tolerance, 0, 1)
        check_range("delta", self.delta, 0, 1, open_low=True)
        check_range("smallest_ratio", self.smallest_ratio, 0, 1, open_low=True)
        check_range("tolerance", self.tolerance, 0)


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a study may use; stages that do not fit are named as missing."""

    seconds: float = float("inf")
    products: float = float("inf")

    def __post_init__(self) -> None:
        """Raise for a negative budget."""
        check_range("budget.seconds", self.seconds, 0)
        check_range("budget.products", self.products, 0)


def as_budget(budget: Any) -> Budget:
    """Return a budget that is given as a `Budget`, as seconds, or as None for no limit.

    Raises:
        TypeError: if it is something else.
    """
    if isinstance(budget, Budget):
        return budget
    if budget is None:
        return Budget()
    if isinstance(budget, int | float) and not isinstance(budget, bool):
        return Budget(seconds=float(budget))
    raise TypeError(f"budget must be seconds or a jaxlimit.studies.Budget, got {budget!r}")
