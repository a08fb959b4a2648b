"""What users hand over by mistake: each is named before minutes are spent, and nothing is left."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlimit import StudySettings, study
from jaxlimit._core import files, locks

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((2, 16, 4)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(3, size=(2, 16)))
PARAMS = {"kernel": jnp.asarray(RNG.standard_normal((4, 3)), jnp.float32)}
QUIET = StudySettings(quiet=True, num_ratios=9)


def loss(params, batch):
    logits = batch[0] @ params["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def look(loss=loss, params=PARAMS, batches=(X, LABELS), **given):
    given = {"settings": QUIET, "budget": 0.0} | given
    return study(loss, params, batches, key=jax.random.key(0), **given)


def test_a_sum_is_refused_whether_epsilon_is_given_or_not(tmp_path):
    def total(params, batch):
        return len(batch[1]) * loss(params, batch)

    for epsilon in (None, 0.1):
        settings = StudySettings(quiet=True, num_ratios=9, epsilon=epsilon)
        with pytest.raises(ValueError, match="got their sum"):
            look(total, settings=settings, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", [0, 1])
def test_labels_out_of_range_are_named(where):
    wrong = LABELS.at[where, 5].set(3)
    for epsilon in (None, 0.1):
        settings = StudySettings(quiet=True, num_ratios=9, epsilon=epsilon)
        with pytest.raises(FloatingPointError, match="labels out of range"):
            look(batches=(X, wrong), settings=settings)


def test_an_accuracy_that_is_none_is_named():
    with pytest.raises(TypeError, match="one real floating number"):
        look(accuracy=lambda params, batch: jnp.argmax(batch[0], -1) == batch[1])
    with pytest.raises(ValueError, match=r"accuracy must lie in \[0, 1\], got 32"):
        look(accuracy=lambda params, batch: jnp.float32(32.0))


def test_params_pruned_to_nothing_are_named():
    found = look(params=jax.tree.map(jnp.zeros_like, PARAMS))
    assert "100 % of the weights are 0 already" in str(found)


def test_a_second_writer_is_told_who_is_first(tmp_path):
    code = "import sys, pathlib\nfrom jaxlimit._core import locks\n"
    code += "with locks.hold(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n"
    code += "    sys.stdin.read()\n"
    first = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(locks.InUseError, match=str(first.pid)):
            look(folder=tmp_path)
        assert not (tmp_path / "stages").exists()
    finally:
        first.communicate()
    assert look(folder=tmp_path).measured.dim == 12


def test_a_full_disk_under_the_stages_leaves_the_earlier_ones(tmp_path, monkeypatch):
    settings = StudySettings(quiet=True, num_ratios=9, num_steps=4, num_gap_steps=2)
    whole = files.save

    def full(path, *args, **fields):
        if path.name == "mask.npz":
            raise OSError(28, f"could not write {path}: No space left on device")
        return whole(path, *args, **fields)

    monkeypatch.setattr(files, "save", full)
    with pytest.raises(OSError, match="No space left"):
        look(folder=tmp_path, budget=None, settings=settings)
    assert [path.name for path in (tmp_path / "stages").iterdir()] == ["magnitude.npz"]
