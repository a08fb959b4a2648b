import adam_cnn
import jax
import pytest

from jaxlimit import StudySettings
from jaxlimit.studies import study_task


@pytest.fixture(scope="session")
def adam_study(tmp_path_factory):
    """A whole study of the Adam-trained network, with its folder."""
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
