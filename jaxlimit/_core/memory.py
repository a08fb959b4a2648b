"""The memory of devices: refuse runs that cannot fit, and report when a device runs out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


def host_memory() -> int | None:
    """Return the bytes of the host's memory; None if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def device_memory(device: Any = None) -> int | None:
    """Return the bytes that a device can hold (for a CPU, the host's memory); None if unknown."""
    device = device or jax.local_devices()[0]
    return (device.memory_stats() or {}).get("bytes_limit") or (
        host_memory() if device.platform == "cpu" else None
    )


def check_memory(what: str, num_bytes: float, advice: str) -> None:
    """Raise `MemoryError` if `what` is known to be more than the default device can hold."""
    limit = device_memory()
    if limit is not None and num_bytes > limit:
        raise MemoryError(
            f"{what} takes {num_bytes / 2**30:.3g} GiB, the device holds {limit / 2**30:.3g} GiB: "
            f"{advice}"
        )


class DeviceMemoryError(MemoryError):
    """A device ran out of memory.

    Attributes:
        states: the Lanczos states before the failure, one a probe, to continue from; may be empty.
    """

    def __init__(self, message: str, states: tuple = ()) -> None:
        super().__init__(message)
        self.states = states


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device ran out of memory.

    Args:
        error: the error.

    Returns:
        True if it does.

    >>> is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    True
    """
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


@contextmanager
def catching_refusals(what: str, states: Any = ()) -> Iterator[None]:
    """Turn a device's out-of-memory error into a `DeviceMemoryError` with the states."""
    message = None
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        message = f"the device ran out of memory {what}: {error}"
    if message is not None:
        # Raised outside, so that it keeps no frame whose arrays still take memory.
        raise DeviceMemoryError(message, tuple(states))
