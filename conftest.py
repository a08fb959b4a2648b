import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Unload a module's programs: XLA maps each into memory, and a process has 65,530 maps."""
    yield
    jax.clear_caches()
