"""Every public function that takes one of the library's results names what is none."""

import inspect
import re

import jax
import jax.numpy as jnp
import pytest
from test_example_weights import public_functions

from jaxlimit import spectrum
from jaxlimit.studies import Task

RESULTS = re.compile(
    r"\b(SweepResult|SpectralMeasure|PruningLimit|LanczosState|Tridiagonalization|Study"
    r"|StudySettings|Budget)\b"
)
MEASURE = spectrum.exact_measure(jnp.arange(1.0, 5.0))
WEIGHTS = jnp.arange(4.0)


def loss(params, batch):
    return jnp.mean((batch @ params) ** 2)


OTHERS = {  # what the functions take beside
    "batches": jnp.ones((2, 4, 4)),
    "dense_loss": 1.0,
    "dim": 4,
    "epsilon": 0.1,
    "estimate": None,
    "folder": "folder",
    "function": jnp.abs,
    "f": jnp.abs,
    "key": jax.random.key(0),
    "loss": loss,
    "matvec": lambda vector: vector,
    "measure": MEASURE,
    "measured": 0.3,
    "measures": {"a": MEASURE},
    "num_rows": 2,
    "num_steps": 2,
    "params": WEIGHTS,
    "path": "path.npz",
    "points": jnp.linspace(0, 1, 3),
    "predicted": 0.3,
    "radius": 1.0,
    "removed_measure": MEASURE,
    "ridge": 0.1,
    "task": Task(loss, WEIGHTS, jnp.ones((2, 4, 4))),
    "threshold": 0.1,
    "title": "",
    "weights": WEIGHTS,
    "whole": MEASURE,
    "width": 0.1,
}
# Of a sweep's two the second is looked at after the first; states come with runs of their own.
LATER = {("plotting.plot_sweep", "accuracy"), ("spectrum.run_probes", "states")}


def annotation(parameter):
    found = parameter.annotation
    return found.__name__ if isinstance(found, type) else str(found)


def takers():
    functions = {function: path for path, function in public_functions()}
    for function, path in functions.items():
        for name, parameter in inspect.signature(function).parameters.items():
            if RESULTS.search(annotation(parameter)) and (path, name) not in LATER:
                yield pytest.param(function, name, id=f"{path} {name}")


@pytest.mark.parametrize("bad", [None, 5, "a", [1.0]], ids=["None", "int", "string", "list"])
@pytest.mark.parametrize(("function", "name"), list(takers()))
def test_what_is_no_result_is_named(function, name, bad, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parameters = inspect.signature(function).parameters
    if bad is None and "None" in annotation(parameters[name]):
        pytest.skip("it may be left out")
    given, named = [], {}
    for other, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if other != name and parameter.default is not parameter.empty:
            continue
        value = bad if other == name else OTHERS.get(other)
        if parameter.kind == parameter.KEYWORD_ONLY or parameter.default is not parameter.empty:
            named[other] = value
        else:
            given.append(value)
    with pytest.raises(TypeError, match=rf"^{name}(\[.*\])? must be"):
        function(*given, **named)
    assert not list(tmp_path.iterdir())
