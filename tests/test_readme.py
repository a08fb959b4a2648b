"""The README's Python runs as it stands there, block after block, and gives what it says."""

import re
from pathlib import Path

import numpy as np
import pytest

from jaxlimit import geometry

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def names():
    """What the blocks define, run in order in one namespace."""
    pytest.importorskip("equinox")
    text = README.read_text()
    found = {}
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        # Blank lines before it, so that an error tells the line of the README.
        above = "\n" * (text[: block.start()].count("\n") + 1)
        exec(compile(above + block[1], str(README), "exec"), found)
    return found


def test_every_step_gives_the_limit_of_the_whole_chain(names):
    """Of one probe and depth 32, near the full depth of 40; both within the wider interval."""
    whole, steps = names["estimate"].prediction, names["limit"]
    assert 0 < whole.lower <= whole.ratio <= whole.upper < 1
    assert names["epsilon"] == pytest.approx(float(names["estimate"].epsilon), rel=1e-5)
    assert steps.lower <= whole.upper
    assert whole.lower <= steps.upper


def test_the_trained_network_learns_and_keeps_its_statistics(names):
    trained, (images, labels, _) = names["trained"], names["digits"]
    loss = trained.history.loss
    assert loss[-1] < loss[0] < 1.5 * np.log(10)
    pixels = trained.normalization
    inputs = (images.astype(np.float32) - pixels.mean) / pixels.std
    logits, after = names["forward"](trained.params, trained.state, inputs, train=False, key=None)
    assert np.mean(np.argmax(logits, 1) == labels) > 0.8
    # In evaluation the statistics stay; in training they have moved from 0 and 1.
    mean, start = (np.asarray(s["norm"]["mean"][...]) for s in (trained.state, names["statistics"]))
    np.testing.assert_array_equal(after["norm"]["mean"][...], mean)
    assert np.abs(start).max() == 0
    assert np.abs(mean).min() > 0


def test_the_cone_has_the_dimension_that_the_comment_tells(names):
    delta = names["delta"]
    assert abs(delta.value - 30) < 4 * delta.standard_error
    low, high = geometry.kinematic_band(30.0, 40, 0.95)
    np.testing.assert_allclose([names["low"], names["high"]], [low, high], atol=1.0)
