import os
from pathlib import Path

# Modules and workers share the programs that XLA compiles, as do processes that tests start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

# Needs PyTorch, which only the comparisons with the peers have.
collect_ignore = ["jaxlimit/lab/torch_networks.py"]


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Unload a module's programs: XLA maps each into memory, and a process has 65,530 maps."""
    yield
    jax.clear_caches()
