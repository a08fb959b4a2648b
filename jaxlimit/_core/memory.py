"""What a device can hold: runs that cannot fit are refused, and a device's refusal is reported."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


def host_memory() -> int | None:
    """Return the bytes of the host's memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def device_memory(device: Any = None) -> int | None:
    """Return the bytes that a device can hold, a CPU the host's; None where it does not say."""
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
        states: the Lanczos states as they were before, one a probe, to go on from; empty if none.
    """

    def __init__(self, message: str, states: tuple = ()) -> None:
        super().__init__(message)
        self.states = states


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a device's refusal of memory.

    >>> is_out_of_memory(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    True
    """
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


@contextmanager
def catching_refusals(what: str, states: Any = ()) -> Iterator[None]:
    """Turn a device's refusal of memory into a `DeviceMemoryError` that carries the states."""
    message = None
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        message = f"the device ran out of memory {what}: {error}"
    if message is not None:
        # Raised out here, so that it holds no frame whose arrays would take memory still.
        raise DeviceMemoryError(message, tuple(states))
