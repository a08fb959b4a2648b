import os
from pathlib import Path

import pytest

# Helpers without tests, some of which need torch, which is optional; and cases that need
# eight devices, which test_mesh.py runs in a process of their own.
collect_ignore = [
    "make_torch_fixtures.py",
    "curvature_problems.py",
    "mesh_cases.py",
]


@pytest.fixture(scope="session")
def data_dir():
    """The TFDS data directory with real data, or a skip that says where it was looked for."""
    named = os.environ.get("TFDS_DATA_DIR")
    beside = Path(__file__).parents[2] / "shared" / "tensorflow_datasets"
    folder = Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is no folder; name one in TFDS_DATA_DIR")
    return folder
