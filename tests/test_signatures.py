"""What every public function and every module of the package keeps to."""

import ast
import importlib
import inspect
import pkgutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlimit
from jaxlimit import spectrum, training
from jaxlimit._core.operator import Operator

MOST_ARGUMENTS = 10
LONGEST_MODULE = 400
LONGEST_BODY = 50


def modules():
    """Every module of the package that can be imported without running anything."""
    for found in pkgutil.walk_packages(jaxlimit.__path__, "jaxlimit."):
        if (
            not found.name.endswith(("__main__", "torch_networks"))
            and "templates" not in found.name
        ):
            yield importlib.import_module(found.name)


def public_functions():
    for module in modules():
        named = getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")])
        if "._" in module.__name__:
            continue
        for name in named:
            value = getattr(module, name)
            if inspect.isfunction(value) and value.__module__.startswith("jaxlimit"):
                yield f"{value.__module__}.{name}", value


def named_arguments(function):
    """Those of its signature; what follows a star has names of its own, or none."""
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind not in kinds]


def test_no_public_function_has_more_than_ten_arguments():
    functions = dict(public_functions())
    assert len(functions) > 300
    many = {name: len(named_arguments(f)) for name, f in functions.items()}
    assert not {name: count for name, count in many.items() if count > MOST_ARGUMENTS}


def test_a_study_names_the_option_that_was_meant():
    with pytest.raises(TypeError, match="study has no argument 'budgte': did you mean 'budget'"):
        jaxlimit.study(None, None, None, key=jax.random.key(0), budgte=1)


def body_lines(function):
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_module_and_no_body_is_too_long():
    long = []
    for path in sorted(Path(jaxlimit.__file__).parent.rglob("*.py")):
        text = path.read_text()
        if len(text.splitlines()) > LONGEST_MODULE:
            long.append(f"{path}: {len(text.splitlines())} lines")
        long += [
            f"{path}: {node.name} has {body_lines(node)} lines"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef) and body_lines(node) > LONGEST_BODY
        ]
    assert not long


# --- Forms of version 0.1 ------------------------------------------------------------------------

IMAGES = np.random.default_rng(0).normal(size=(8, 2, 2, 1)).astype(np.float32)
DATA = IMAGES, (np.arange(8) % 2).astype(np.int32)
CONFIG = training.TrainingConfig(epochs=1, batch_size=4, learning_rate=0.1)
WEIGHTS = {"kernel": np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)}


def forward(params, state, images, *, train, key):
    return images.reshape(len(images), -1) @ params["kernel"], state


def test_fit_takes_its_keywords_of_version_0_1_with_a_warning(tmp_path):
    told = r"fit\(params=..., state=...\) is now fit\(start=Start\(params=..., state=...\)\)"
    path = tmp_path / "metrics.jsonl"
    with (
        pytest.warns(DeprecationWarning, match=told),
        pytest.warns(DeprecationWarning, match=r"is now fit\(monitor=Monitor\(metrics_path=...\)"),
    ):
        old = training.fit(forward, DATA, CONFIG, params=WEIGHTS, state={}, metrics_path=path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        new = training.fit(forward, DATA, CONFIG, start=training.Start(WEIGHTS))
    np.testing.assert_array_equal(old.params["kernel"], new.params["kernel"])
    assert len(path.read_text().splitlines()) == 1
    start = training.Start(WEIGHTS)
    with pytest.raises(TypeError, match="fit takes start or params, not both"):
        training.fit(forward, DATA, CONFIG, start=start, params=WEIGHTS)
    with pytest.raises(TypeError, match=r"got dict; from parameters, training\.Start\(params\)"):
        training.fit(forward, DATA, CONFIG, start=WEIGHTS)
    with pytest.raises(TypeError, match="monitor must be a Monitor, got PosixPath"):
        training.fit(forward, DATA, CONFIG, start=start, monitor=path)


def test_run_probes_takes_its_keywords_of_version_0_1_with_a_warning():
    key, wide = jax.random.key(0), {"num_steps": 4}
    product = lambda v: jnp.arange(4, dtype=v.dtype) * v  # noqa: E731
    seen = []
    with pytest.warns(DeprecationWarning, match=r"run_probes\(monitor=Monitor\(chunk=..., on_prog"):
        old = spectrum.run_probes(
            product, key, dim=4, chunk=2, on_progress=lambda *now: seen.append(now[1]), **wide
        )
    assert seen == [2, 4]
    monitor = spectrum.Monitor(chunk=2)
    new = spectrum.run_probes(product, key, dim=4, monitor=monitor, **wide)
    np.testing.assert_array_equal(old.nodes, new.nodes)
    with jax.enable_x64(True):
        with pytest.warns(DeprecationWarning, match=r"Operator\(matvec, dim, dtype\)"):
            old = spectrum.run_probes(product, key, dim=4, dtype=jnp.float64, **wide)
        new = spectrum.run_probes(Operator(product, 4, jnp.float64), key, **wide)
    assert old.nodes.dtype == jnp.float64
    np.testing.assert_array_equal(old.nodes, new.nodes)
