import os
from pathlib import Path

# Modules and workers share the programs that XLA compiles, as do processes that tests start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Most of the time was XLA's, compiling programs that run for milliseconds: it optimises them little
# and emits them by the older of its two ways, which takes a third off the whole suite.
# `JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= make test` tests programs as they run elsewhere.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import pytest

# Needs PyTorch, which only the comparisons with the peers have.
collect_ignore = ["jaxlimit/lab/torch_networks.py"]


# Files in which most time goes, longest first: begun last, one would keep one worker busy alone.
LONGEST = (
    "tests/test_mesh.py",
    "tests/experiments/test_experiments.py",
    "tests/studies/test_estimation.py",
    "tests/experiments/test_smoke.py",
    "tests/limits/test_limits.py",
    "tests/training/test_training.py",
    "tests/experiments/test_theory_experiments.py",
    "tests/geometry/test_geometry.py",
    "tests/studies/test_narrow_parameters.py",
    "tests/curvature/test_losses.py",
    "tests/spectrum/test_spectrum.py",
    "tests/studies/test_study.py",
    "tests/reports/test_reports.py",
    "tests/cli/test_interrupts.py",
    "tests/pruning/test_smallest_mask.py",
    "tests/models/test_vit.py",
)


def pytest_configure(config):
    """Let pytest-xdist deal out files in their order, not by how many tests they have."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Begin with the longest files."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(LONGEST)))


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Unload programs before XLA has mapped too many into memory: there are 65,530 maps in all."""
    yield
    if _num_maps() > 30_000:
        jax.clear_caches()


def _num_maps():
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # not on Linux
        return float("inf")
