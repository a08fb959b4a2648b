"""When a device refuses memory: told from other errors, and carried out with what was done."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax


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
