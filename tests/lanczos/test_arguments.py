"""What is no number, no state and no measure is named, before any product."""

import jax
import jax.numpy as jnp
import pytest

from jaxlimit import lanczos, spectrum

KEY, SETTINGS = jax.random.key(0), {"dim": 5, "num_steps": 2}
MEASURE = spectrum.exact_measure(jnp.array([0.0, 1.0]))
GRID = jnp.arange(1.0, 4.0)
NOTHING = [None, "abc", 1j, [1, "x"], ...]


def never(vector):
    raise AssertionError("no product was to be made")


def matvec(vector):
    return jax.pure_callback(never, vector, vector)


CALLS = {
    "start_vector": lambda x: lanczos.tridiagonalize(matvec, x, num_steps=2),
    "start_vector of two passes": lambda x: lanczos.two_pass_eigenpairs(
        matvec, x, num_steps=2, num_pairs=1
    ),
    "state": lambda x: lanczos.extend(matvec, x, num_steps=2),
    "state to finish": lanczos.finish,
    "state with room": lambda x: lanczos.with_room(x, 3),
    "state on disk": lambda x: lanczos.save("nowhere", x),
    "states": lambda x: spectrum.run_probes(matvec, KEY, states=(x,), **SETTINGS),
    "grid": lambda x: spectrum.density(MEASURE, x, width=1.0),
    "grid of logarithms": lambda x: spectrum.log_density(MEASURE, x, width=1.0),
    "width": lambda x: spectrum.density(MEASURE, GRID, width=x),
    "measure": lambda x: spectrum.density(x, GRID, width=1.0),
    "measure of logarithms": lambda x: spectrum.log_density(x, GRID, width=1.0),
    "measure to truncate": lambda x: spectrum.truncate(x, 2),
    "measure on disk": lambda x: spectrum.save("nowhere", x),
    "tridiagonal": lambda x: spectrum.measure_from(x, dim=3),
    "tridiagonal to pin": lambda x: spectrum.pinned_measure(x, 0.0),
    "dim": lambda x: spectrum.probe(KEY, x),
    "store": lambda x: spectrum.spectral_measure(matvec, KEY, store=x, **SETTINGS),
    "reorthogonalize": lambda x: spectrum.spectral_measure(
        matvec, KEY, reorthogonalize=x, **SETTINGS
    ),
    "sign": lambda x: spectrum.log_density(MEASURE, GRID, width=1.0, sign=x),
}


@pytest.mark.parametrize("value", NOTHING, ids=repr)
@pytest.mark.parametrize("name", list(CALLS))
def test_what_it_is_not_is_named(name, value):
    with pytest.raises((TypeError, ValueError), match=f"^{name.split()[0]} must be"):
        CALLS[name](value)


@pytest.mark.parametrize("value", ["abc", 1j, [1, "x"], ...], ids=repr)
def test_settings_that_may_be_left_out_are_named_too(value):
    run = lambda **given: lanczos.extremal_eigenpairs(  # noqa: E731
        lambda v: v, KEY, dim=5, num_pairs=1, **given
    )
    with pytest.raises(TypeError, match=r"^tolerance must be"):
        run(tolerance=value)
    with pytest.raises(TypeError, match=r"^keep_basis must be True, False or None"):
        lanczos.tridiagonalize(lambda v: v, jnp.ones(3), num_steps=2, keep_basis=value)
