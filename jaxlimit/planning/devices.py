"""Machines as the numbers that a plan needs."""

import os
from typing import Any, NamedTuple

import jax


class Machine(NamedTuple):
    """What one device of a kind can do, and how devices are joined.

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


# NVIDIA's data sheet of the SXM5 board: dense bfloat16, HBM3, and NVLink one way within a node.
# Nothing of it was measured here.
H100 = Machine(flops=989e12, memory_bandwidth=3.35e12, link_bandwidth=450e9, memory=80e9)
INFINIBAND = 50e9  # bytes a second between nodes, 400 Gb/s a device


def device_memory(device: Any = None) -> int:
    """Return the bytes that a device has for arrays: half of the host's memory if it is a CPU.

    A device refuses what is too much; a host ends the process, and its memory has other users.

    >>> device_memory() > 0
    True
    """
    device = device or jax.local_devices()[0]
    statistics = device.memory_stats() or {}
    return int(statistics.get("bytes_limit") or host_memory() / 2)


def host_memory() -> int:
    """Return the bytes of the host's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
