"""A recurrence says which one it is, and goes on as no other."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import lanczos

OPERATOR = jax.tree_util.Partial(jnp.multiply, jnp.linspace(-1.0, 2.0, 90))
START = jax.random.normal(jax.random.key(0), (90,))


def begin(mode, num_steps=60, **settings):
    return lanczos.start(START, num_steps=num_steps, reorthogonalize=mode, **settings)


@pytest.mark.parametrize("mode", lanczos.REORTHOGONALIZE)
def test_no_call_changes_the_mode(mode):
    state = begin(mode)
    for other in set(lanczos.REORTHOGONALIZE) - {mode}:
        with pytest.raises(ValueError, match=f"that of the state, '{mode}', got '{other}'"):
            lanczos.extend(OPERATOR, state, num_steps=1, reorthogonalize=other)
        with pytest.raises(ValueError, match=f"that of the state, '{mode}', got '{other}'"):
            lanczos.with_room(state, 70, reorthogonalize=other)
    named = lanczos.extend(OPERATOR, state, num_steps=2, reorthogonalize=mode)
    jax.tree.map(np.testing.assert_array_equal, named, lanczos.extend(OPERATOR, state, num_steps=2))
    assert named.reorthogonalize == mode


@pytest.mark.parametrize("mode", lanczos.REORTHOGONALIZE)
def test_mode_and_store_come_back_from_disk(mode, tmp_path):
    for store in lanczos.STORES:
        state = lanczos.extend(OPERATOR, begin(mode, store=store), num_steps=3)
        lanczos.save(tmp_path / "state.npz", state)
        again = lanczos.load(tmp_path / "state.npz")
        assert (again.reorthogonalize, again.store) == (mode, store)
        deeper = (lanczos.extend(OPERATOR, one, num_steps=4) for one in (state, again))
        jax.tree.map(np.testing.assert_array_equal, *deeper)


@pytest.mark.parametrize("mode", lanczos.REORTHOGONALIZE)
def test_files_of_the_first_format_still_load(mode, tmp_path):
    state = lanczos.extend(OPERATOR, begin(mode), num_steps=3)
    lanczos.save(tmp_path / "state.npz", state)
    fields = dict(np.load(tmp_path / "state.npz"))
    for name in ("reorthogonalize", "store"):
        del fields[name]
    np.savez(tmp_path / "old.npz", **(fields | {"version": 1, "on_host": False}))
    again = lanczos.load(tmp_path / "old.npz")
    assert (again.reorthogonalize, again.store) == (mode, "device")
    jax.tree.map(np.testing.assert_array_equal, again, state)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dim", lambda x: -5),
        ("dim", lambda x: 91),
        ("off_diagonal", lambda x: x[:-1]),
        ("off_diagonal", lambda x: -x),
        ("previous", lambda x: x[:-1]),
        ("basis", lambda x: x[:, :-1]),
        ("basis", lambda x: x[:-1]),
        ("step", lambda x: 61),
        ("failed_step", lambda x: 60),
        ("reorthogonalize", lambda x: "some"),
        ("store", lambda x: "disk"),
        ("diagonal", lambda x: x * np.nan),
    ],
)
def test_a_damaged_recurrence_is_refused(name, change, tmp_path):
    lanczos.save(tmp_path / "state.npz", lanczos.extend(OPERATOR, begin("full"), num_steps=3))
    fields = dict(np.load(tmp_path / "state.npz"))
    np.savez(tmp_path / "state.npz", **(fields | {name: change(fields[name])}))
    named = "recurrence" if name == "diagonal" else name
    with pytest.raises(ValueError, match=f"got one whose {named} is damaged"):
        lanczos.load(tmp_path / "state.npz")


def test_selective_returns_no_rows_that_are_no_lanczos_vectors():
    with pytest.raises(ValueError, match=r"keep_basis must not be True where .* 'selective'"):
        begin("selective", keep_basis=True)
    with pytest.raises(ValueError, match=r"keep_basis must not be False where .* 'full'"):
        begin("full", keep_basis=False)
    result = lanczos.tridiagonalize(OPERATOR, START, num_steps=60, reorthogonalize="selective")
    assert result.basis is None
    kept = lanczos.tridiagonalize(
        OPERATOR, START, num_steps=5, reorthogonalize="none", keep_basis=True
    )
    assert kept.basis.shape == (5, 90)


def test_removed_names_warn_and_still_work():
    for name in ("RitzPairs", "check_basis", "choose", "num_rows"):
        with pytest.warns(DeprecationWarning, match=f"lanczos.{name} will be gone"):
            assert callable(getattr(lanczos, name))
    with pytest.raises(AttributeError, match="has no attribute 'Ritzpairs'"):
        _ = lanczos.Ritzpairs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(hasattr(lanczos, name) for name in lanczos.__all__)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("mode", lanczos.REORTHOGONALIZE)
def test_narrow_vectors_have_coefficients_in_float32(mode, dtype):
    result = lanczos.tridiagonalize(
        lambda v: jnp.array([1.0, 3.0, 9.0], v.dtype) * v,
        jnp.ones(3, dtype),
        num_steps=3,
        reorthogonalize=mode,
    )
    assert result.diagonal.dtype == result.off_diagonal.dtype == jnp.float32
    # α₁ = 13/3, β₁² = (1 + 9 + 81)/3 - α₁², each to the rounding of the vectors.
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(result.diagonal[0], 13 / 3, rtol=4 * eps)
    np.testing.assert_allclose(result.off_diagonal[0], (91 / 3 - 169 / 9) ** 0.5, rtol=4 * eps)
