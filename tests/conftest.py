import os
from pathlib import Path

import pytest

# Helpers without tests, some of which need torch, which is optional; and cases that need
# eight devices, which test_mesh.py runs in a process of their own.
collect_ignore = [
    "make_torch_fixtures.py",
    "adam_cnn.py",
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


@pytest.fixture(scope="session")
def adam_study(tmp_path_factory):
    """A whole study of the network of `adam_cnn`, with its folder."""
    import adam_cnn
    import jax

    from jaxlimit import StudySettings
    from jaxlimit.studies import study_task

    folder = tmp_path_factory.mktemp("study")
    settings = StudySettings(
        num_steps=64,
        num_gap_steps=16,
        num_layer_steps=0,
        num_ratios=30,
        tolerance=0,
        num_held_out=8,
        accuracy_tolerance=0.03,
        quiet=True,
    )
    task = adam_cnn.task(folder)
    return study_task(task, key=jax.random.key(0), folder=folder / "run", settings=settings)
