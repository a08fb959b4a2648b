"""What a device can hold, so that a run that cannot fit is refused before it starts."""

import os

import jax


def memory_limit() -> int | None:
    """Return the bytes that the default device can hold, None where it does not tell."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):  # not every system tells
            return None
    return (device.memory_stats() or {}).get("bytes_limit")


def check_memory(what: str, num_bytes: float, advice: str) -> None:
    """Raise `MemoryError` if `what` is known to be more than the device can hold."""
    limit = memory_limit()
    if limit is not None and num_bytes > limit:
        raise MemoryError(
            f"{what} takes {num_bytes / 2**30:.3g} GiB, the device holds {limit / 2**30:.3g} GiB: "
            f"{advice}"
        )
