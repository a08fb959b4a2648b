"""The Python of README and docs/ runs as it stands there, block after block."""

import re
from pathlib import Path

import numpy as np
import pytest

from jaxlimit import geometry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def run(page):
    """Run the blocks of a page in order in one namespace, and return what they define."""
    text, found = page.read_text(), {}
    for block in BLOCK.finditer(text):
        # Blank lines before it, for an error to tell the line of the page.
        above = "\n" * (text[: block.start()].count("\n") + 1)
        exec(compile(above + block[1], str(page), "exec"), found)
    return found


@pytest.fixture(scope="module")
def readme():
    return run(ROOT / "README.md")


@pytest.fixture(scope="module")
def guide():
    pytest.importorskip("equinox")
    return run(ROOT / "docs" / "own_checkpoint.md")


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.stem not in ("README", "own_checkpoint")],
    ids=lambda page: page.stem,
)
def test_code_of_other_pages_runs(page):
    run(page)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_the_mask_that_readme_finds_is_within_the_tolerance(readme):
    """By the loss as NumPy computes it, over all examples."""

    def loss(weights):
        logits = np.einsum("bni,io->bno", readme["inputs"], np.asarray(weights, np.float64))
        chosen = np.take_along_axis(logits, np.asarray(readme["labels"])[..., None], -1)[..., 0]
        return (np.log(np.exp(logits).sum(-1)) - chosen).mean()

    dense, pruned = readme["params"]["w"], readme["pruned"].params["w"]
    assert loss(pruned) <= loss(dense) + float(readme["epsilon"]) + 1e-6
    kept = np.count_nonzero(pruned)
    assert 0 < kept <= 2
    assert float(readme["pruned"].certificate.ratio) <= kept / 40
    assert 0 < readme["estimate"].prediction.ratio < 1


def test_every_step_gives_the_limit_of_the_whole_chain(guide):
    """Of one probe and depth 32, near the full depth of 40; both within the wider interval."""
    whole, steps = guide["estimate"].prediction, guide["limit"]
    assert 0 < whole.lower <= whole.ratio <= whole.upper < 1
    assert float(guide["epsilon"]) == pytest.approx(float(guide["estimate"].epsilon), rel=1e-5)
    assert steps.lower <= whole.upper
    assert whole.lower <= steps.upper


def test_the_trained_network_learns_and_keeps_its_statistics(guide):
    trained, (images, labels, _) = guide["trained"], guide["digits"]
    loss = trained.history.loss
    assert loss[-1] < loss[0] < 1.5 * np.log(10)
    pixels = trained.normalization
    inputs = (images.astype(np.float32) - pixels.mean) / pixels.std
    logits, after = guide["forward"](trained.params, trained.state, inputs, train=False, key=None)
    assert np.mean(np.argmax(logits, 1) == labels) > 0.8
    # In evaluation the statistics stay; in training they have moved from 0 and 1.
    mean, start = (np.asarray(s["norm"]["mean"][...]) for s in (trained.state, guide["statistics"]))
    np.testing.assert_array_equal(after["norm"]["mean"][...], mean)
    assert np.abs(start).max() == 0
    assert np.abs(mean).min() > 0


def test_the_cone_has_the_dimension_that_the_comment_tells(guide):
    delta = guide["delta"]
    assert abs(delta.value - 30) < 4 * delta.standard_error
    low, high = geometry.kinematic_band(30.0, 40, 0.95)
    np.testing.assert_allclose([guide["low"], guide["high"]], [low, high], atol=1.0)
