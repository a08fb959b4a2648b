"""The machine and the versions that a result was made with."""

import os
import platform
from importlib.metadata import version
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """Describe the machine and the versions that a result was made with."""
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "num_devices": jax.device_count(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
