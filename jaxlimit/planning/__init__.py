"""What a run will take, before it runs: memory on one device, and time on many.

`measure` looks at a loss, its parameters and its data and runs nothing; `plan` says what of it fits
and where the Lanczos basis goes; `project` says what products and Lanczos steps cost on a machine.
Everything is plain arithmetic on counts of bytes and operations, so a network that is nowhere
at hand can be planned for from its numbers alone.
"""

from jaxlimit._core.memory import DeviceMemoryError, is_out_of_memory
from jaxlimit.planning.cost import (
    Cost,
    Network,
    count_flops,
    product_cost,
    product_flops,
    transformer,
)
from jaxlimit.planning.devices import (
    H100,
    H100_FLOPS,
    INFINIBAND,
    Machine,
    data_sheet_flops,
    usable_memory,
)
from jaxlimit.planning.memory import (
    MODES,
    Plan,
    Workload,
    describe,
    lanczos_bytes,
    lighter,
    measure,
    plan,
    prepare,
    share,
)

__all__ = [
    "H100",
    "H100_FLOPS",
    "INFINIBAND",
    "MODES",
    "Cost",
    "DeviceMemoryError",
    "Machine",
    "Network",
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
    "product_cost",
    "product_flops",
    "share",
    "transformer",
    "usable_memory",
]
