"""Every public function that takes a key names one that is none, and works or says so traced."""

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


# They decide by numbers on the host, run_probes under `jit` alone.
ON_HOST = {"curvature.check", "estimate_limit", "prune_to", "pruning.dead_weights",
           "pruning.smallest_mask", "spectrum.trace_within", "studies.layer_limits",
           "studies.study_task", "study"}  # fmt: skip
TRANSFORMS = {"jit": lambda f, keys: jax.jit(f)(keys[0]), "vmap": lambda f, keys: jax.vmap(f)(keys)}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", TAKES_KEY)
def test_traced_keys_give_the_same_or_are_named(name, transform):
    function, keys = TAKES_KEY[name], jax.random.split(jax.random.key(3), 2)

    def arrays(key):
        return [leaf for leaf in jax.tree.leaves(function(key=key)) if jnp.ndim(leaf) >= 0]

    said = name.split(".")[-1].removesuffix("_task")
    if name in ON_HOST or (name, transform) == ("spectrum.run_probes", "jit"):
        with pytest.raises(TypeError, match=rf"^key must be known.*: {said} "):
            TRANSFORMS[transform](arrays, keys)
        return
    wanted = [arrays(key) for key in keys]
    wanted = wanted[0] if transform == "jit" else [*map(jnp.stack, zip(*wanted, strict=True))]
    found = TRANSFORMS[transform](arrays, keys)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ON_HOST - {"curvature.check", "spectrum.trace_within"}))
def test_traced_parameters_are_named_where_numbers_decide(name):
    call, key = TAKES_KEY[name], jax.random.key(0)

    def traced(params):
        whole = name == "studies.study_task"
        args = (Task(LOSS, params, BATCHES),) if whole else (LOSS, params, BATCHES)
        return call.func(*args, **call.keywords, key=key)

    with pytest.raises(TypeError, match=r"^params must be known, got a traced one: "):
        jax.jit(traced)(WEIGHTS)


@pytest.mark.parametrize("bad", NO_KEYS)
@pytest.mark.parametrize("name", TAKES_KEY)
def test_what_is_no_key_is_named(name, bad):
    with pytest.raises((TypeError, ValueError), match=r"^key must "):
        TAKES_KEY[name](key=NO_KEYS[bad])
