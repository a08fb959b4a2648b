"""Digests of trees that hold random keys, as networks with dropout keep them."""

import jax
import jax.numpy as jnp
import pytest

from jaxlimit import curvature, spectrum
from jaxlimit._core.digests import digests, fingerprint
from jaxlimit.studies import StudySettings, study

BATCHES = [jnp.array([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0]])]
PARAMS = jnp.array([1.0, -2.0])
SPLIT = curvature.split_loss(
    lambda w, batch, state: batch @ w * state["scale"], lambda y, batch: jnp.mean((y - 1) ** 2)
)


def state(seed):
    return {"key": jax.random.key(seed), "scale": jnp.array(2.0)}


@pytest.mark.parametrize("of", [digests, fingerprint])
def test_a_key_is_told_from_another(of):
    assert of(state(0)) == of(state(0))
    assert of(state(0)) != of(state(1))


def test_a_study_in_a_folder_takes_a_key_among_its_operands(tmp_path):
    settings = StudySettings(num_ratios=4, quiet=True)
    call = lambda seed: study(  # noqa: E731
        SPLIT, PARAMS, BATCHES, state(seed), key=jax.random.key(0), budget=0.0,
        folder=tmp_path, settings=settings,
    )  # fmt: skip
    found = call(0)
    stages = {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()}
    again = call(0)
    assert stages == {path: path.stat().st_mtime_ns for path in (tmp_path / "stages").iterdir()}
    assert fingerprint(again.measured) == fingerprint(found.measured)


def test_a_kept_lanczos_run_takes_a_key_among_its_operands(tmp_path):
    product = curvature.hessian_matvec(SPLIT, PARAMS, BATCHES, state(0))
    monitor = spectrum.Monitor(checkpoint_dir=tmp_path)
    run = lambda: spectrum.run_probes(  # noqa: E731
        product, jax.random.key(1), num_steps=2, monitor=monitor
    )
    first, again = run(), run()
    assert fingerprint(first) == fingerprint(again)
