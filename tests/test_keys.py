"""Every public function that takes a key names one that is none."""

import importlib
import inspect
import pkgutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlimit
from jaxlimit import curvature, geometry, lanczos, pruning, spectrum, studies, traces, training
from jaxlimit.studies import StudySettings, Task

WEIGHTS, BATCHES = jnp.array([3.0, 1.0]), jnp.ones((1, 4, 2))
LOSS = curvature.split_loss(lambda w, x: x @ w, lambda y, x: jnp.mean(y**2))
TASK = (LOSS, WEIGHTS, BATCHES)


def double(vector):
    return 2 * vector


def image(points):
    return points


TAKES_KEY = {
    "curvature.check": partial(curvature.check, double, dim=3),
    "curvature.diagonal": partial(curvature.diagonal, *TASK, num_probes=2),
    "estimate_limit": partial(jaxlimit.estimate_limit, *TASK),
    "geometry.gaussian_width": partial(geometry.gaussian_width, jnp.max, dim=3, num_samples=4),
    "geometry.statistical_dimension": partial(
        geometry.statistical_dimension, image, dim=3, num_samples=4
    ),
    "lanczos.extremal_eigenpairs": partial(lanczos.extremal_eigenpairs, double, dim=3, num_pairs=1),
    "prune_to": partial(jaxlimit.prune_to, *TASK, epsilon=0.1),
    "pruning.dead_weights": partial(pruning.dead_weights, *TASK),
    "pruning.smallest_mask": partial(pruning.smallest_mask, *TASK, epsilon=0.1),
    "spectrum.block_measures": partial(
        spectrum.block_measures, double, blocks={"a": np.array([True, False])}, num_steps=1
    ),
    "spectrum.probe": partial(spectrum.probe, dim=3),
    "spectrum.run_probes": partial(spectrum.run_probes, double, dim=3, num_steps=2),
    "spectrum.spectral_measure": partial(spectrum.spectral_measure, double, dim=3, num_steps=2),
    "spectrum.trace_within": partial(
        spectrum.trace_within, double, f=jnp.abs, dim=3, tolerance=0.1
    ),
    "studies.layer_limits": partial(studies.layer_limits, *TASK, epsilon=0.1),
    "studies.study_task": partial(studies.study_task, Task(*TASK)),
    "study": partial(jaxlimit.study, *TASK, settings=StudySettings(quiet=True)),
    "traces.diagonal": partial(traces.diagonal, double, dim=3, num_matvecs=4),
    "traces.hutch_plus_plus": partial(traces.hutch_plus_plus, double, dim=3, num_matvecs=6),
    "traces.hutchinson": partial(traces.hutchinson, double, dim=3, num_matvecs=4),
    "traces.xtrace": partial(traces.xtrace, double, dim=3, num_matvecs=4),
    "training.augment": partial(training.augment, jnp.ones((2, 8, 8, 3))),
}


def forward(params, state, images, *, train, key):
    del train, key
    return images.reshape(len(images), -1) @ params["kernel"], state


TAKES_KEY["training.sensitivity"] = partial(
    training.sensitivity,
    forward,
    {"kernel": jnp.zeros((1, 2))},
    {},
    (jnp.ones((1, 1, 1, 1)), jnp.array([0])),
)
SAME = {"studies.estimate_limit", "studies.prune_to", "studies.study"}  # at the top too
NO_KEYS = {
    "a number": 0,
    "None": None,
    "a string": "seed",
    "an old key": np.array([0, 0], np.uint32),
    "a list": [0],
    "several keys": jax.random.split(jax.random.key(0), 2),
}


def test_the_list_is_whole():
    rooms = [jaxlimit] + [
        importlib.import_module(f"jaxlimit.{room.name}")
        for room in pkgutil.iter_modules(jaxlimit.__path__)
        if not room.name.startswith("_") and room.name not in ("lab", "cli")
    ]
    found = {
        f"{room.__name__}.{name}".removeprefix("jaxlimit.")
        for room in rooms
        for name in getattr(room, "__all__", vars(room))
        if inspect.isfunction(getattr(room, name)) and not name.startswith("_")
        if "key" in inspect.signature(getattr(room, name)).parameters
    }
    assert found - SAME == set(TAKES_KEY)


@pytest.mark.parametrize("bad", NO_KEYS)
@pytest.mark.parametrize("name", TAKES_KEY)
def test_what_is_no_key_is_named(name, bad):
    with pytest.raises((TypeError, ValueError), match=r"^key must "):
        TAKES_KEY[name](key=NO_KEYS[bad])
