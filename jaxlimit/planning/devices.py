"""Machines as the numbers that a plan needs."""

import re
from typing import Any, NamedTuple

import jax

from jaxlimit._core.checks import check_choice
from jaxlimit._core.memory import device_memory


class Machine(NamedTuple):
    """The speed and memory of one kind of device, and of the links between devices.

    Attributes:
        flops: operations a second of large matrix products, at the precision in use.
        memory_bandwidth: bytes a second, read and written together.
        link_bandwidth: bytes a second that a device sends to the others.
        memory: bytes of the device.
    """

    flops: float
    memory_bandwidth: float
    link_bandwidth: float
    memory: float


# NVIDIA's data sheet of the SXM5 board, without sparsity: matrix products by the type of their
# operands, HBM3, and NVLink one way within a node. Nothing of it was measured here.
H100_FLOPS = {"bfloat16": 989e12, "tf32": 495e12, "float32": 67e12}
H100 = Machine(H100_FLOPS["bfloat16"], memory_bandwidth=3.35e12, link_bandwidth=450e9, memory=80e9)
# The H200 computes as fast; the PCIe and NVL boards of both are slower.
_SXM5 = re.compile(r"NVIDIA H[12]00\b(?!.*(PCIe|NVL))")
INFINIBAND = 50e9  # bytes a second between nodes, 400 Gb/s a device


def data_sheet_flops(precision: str, device: Any = None) -> float | None:
    """Return the operations a second on the data sheet of a device; None if it is unknown.

    Args:
        precision: of the operands of matrix products, a key of `H100_FLOPS`.
        device: by default the first one of this process.

    Returns:
        The operations a second, without sparsity; None for other devices than H100 and H200.

    Raises:
        ValueError: if `precision` is unknown.

    >>> data_sheet_flops("bfloat16", jax.devices("cpu")[0]) is None
    True
    """
    check_choice("precision", precision, tuple(H100_FLOPS))
    kind = (device or jax.local_devices()[0]).device_kind
    return H100_FLOPS[precision] if _SXM5.match(kind) else None


def usable_memory(device: Any = None) -> int:
    """Return the bytes that a device has for arrays; for a CPU half of the host's memory.

    A device refuses an allocation that is too large, but a host may kill the process, and other
    processes use its memory too.

    Args:
        device: by default the first one of this process.

    Returns:
        The bytes.

    Raises:
        ValueError: if the device does not report its memory.

    >>> usable_memory() > 0
    True
    """
    device = device or jax.local_devices()[0]
    memory = device_memory(device)
    if memory is None:
        raise ValueError(f"memory must be given, since {device} does not report how much it has")
    return memory // 2 if device.platform == "cpu" else memory
