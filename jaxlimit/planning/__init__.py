"""What a run will cost, before it runs.

`measure` counts the sizes of a loss, its parameters and its data without running anything; `plan`
decides what fits and where the Lanczos basis goes. Everything is arithmetic on counts of bytes and
operations.
"""

import importlib
import warnings
from typing import Any

from jaxlimit._core.memory import DeviceMemoryError, is_out_of_memory
from jaxlimit.planning.devices import (
    H100,
    H100_FLOPS,
    INFINIBAND,
    Machine,
    data_sheet_flops,
    usable_memory,
)
from jaxlimit.planning.flops import count_flops
from jaxlimit.planning.memory import (
    Plan,
    describe,
    lanczos_bytes,
    lighter,
    plan,
)
from jaxlimit.planning.workload import MODES, Workload, measure, prepare, share

__all__ = [
    "H100",
    "H100_FLOPS",
    "INFINIBAND",
    "MODES",
    "DeviceMemoryError",
    "Machine",
    "Plan",
    "Workload",
    "count_flops",
    "data_sheet_flops",
    "describe",
    "is_out_of_memory",
    "lanczos_bytes",
    "lighter",
    "measure",
    "plan",
    "prepare",
    "share",
    "usable_memory",
]

# Names of version 0.1; the cost model of large networks now belongs to the benchmarks.
_MOVED = ("COST_MODES", "Cost", "Network", "product_cost", "product_flops", "transformer")


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    message = f"planning.{name} is now lab.cost.{name}; the old name goes in the next version"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module("jaxlimit.lab.cost"), name)
