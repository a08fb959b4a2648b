import os
from pathlib import Path

import pytest

# Helpers without tests; the first needs torch, which is optional.
collect_ignore = ["torch_references.py", "curvature_problems.py"]


@pytest.fixture(scope="session")
def data_dir():
    """The TFDS data directory with real data, or a skip that says where it was looked for."""
    named = os.environ.get("TFDS_DATA_DIR")
    beside = Path(__file__).parents[2] / "shared" / "tensorflow_datasets"
    folder = Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is no folder; name one in TFDS_DATA_DIR")
    return folder
