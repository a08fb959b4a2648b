"""Runs in stages: stopped by a tolerance, kept on disk, carried on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from jaxlimit import lanczos, spectrum
from jaxlimit._core import memory
from jaxlimit.spectrum import Monitor

DIM = 400
EIGENVALUES = np.concatenate([np.zeros(300), np.linspace(-1, 3, 97), [10, 20, 40]])
OPERATOR = jax.tree_util.Partial(jnp.multiply, jnp.asarray(EIGENVALUES, jnp.float32))
KEY = jax.random.key(2)


def share(x):
    return jnp.abs(x) / (jnp.abs(x) + 0.3)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_tolerance_is_met_and_the_interval_is_true():
    truth = np.mean(share(EIGENVALUES))
    run = spectrum.trace_within(OPERATOR, KEY, share, dim=DIM, tolerance=0.2)
    assert run.converged
    assert run.estimate.upper - run.estimate.lower <= 0.2 * run.estimate.value
    assert run.estimate.lower <= truth <= run.estimate.upper
    # Random error needs probes, and the bracket was closed by depth: both had to be raised.
    num_probes, depth = run.measure.nodes.shape
    assert num_probes > 1
    assert depth <= 256


def test_a_tolerance_out_of_reach_says_how_far_it_got():
    run = spectrum.trace_within(
        OPERATOR, KEY, share, dim=DIM, tolerance=1e-6, num_steps=100, num_probes=3
    )
    assert not run.converged
    assert run.measure.nodes.shape == (3, 100)
    truth = np.mean(share(EIGENVALUES))
    assert run.estimate.lower <= truth <= run.estimate.upper


@pytest.mark.parametrize("reorthogonalize", lanczos.REORTHOGONALIZE)
def test_a_run_that_was_cut_off_goes_on_to_the_same_measure(tmp_path, reorthogonalize):
    settings = {"dim": DIM, "num_steps": 80, "reorthogonalize": reorthogonalize}
    kept = {"checkpoint_dir": tmp_path / "run", "checkpoint_every": 16, "chunk": 16}

    def cut_off(stage, done, total):
        if done == 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spectrum.run_probes(OPERATOR, KEY, monitor=Monitor(on_progress=cut_off, **kept), **settings)
    seen = []
    progress = lambda _, done, total: seen.append(done)  # noqa: E731
    resumed = spectrum.run_probes(
        OPERATOR, KEY, monitor=Monitor(on_progress=progress, **kept), **settings
    )
    assert seen == [64, 80]  # the chunk that was cut off had not been written
    whole = spectrum.run_probes(OPERATOR, KEY, monitor=Monitor(chunk=16), **settings)
    assert_same(resumed, whole)


def test_a_run_goes_on_once_a_failing_operator_is_mended(tmp_path):
    settings = {"dim": DIM, "num_steps": 90, "reorthogonalize": "full"}
    kept = {"checkpoint_dir": tmp_path / "run", "checkpoint_every": 16, "chunk": 16}
    whole = spectrum.run_probes(OPERATOR, KEY, monitor=Monitor(chunk=16), **settings)
    calls = []

    def count(product):
        calls.append(product)
        return np.asarray(len(calls) != 41, np.float32)

    def failing(vector):
        scale = io_callback(count, jax.ShapeDtypeStruct((), np.float32), vector[0])
        return OPERATOR(vector) / scale

    seen = []
    with pytest.raises(FloatingPointError, match="at Lanczos step 40 of probe 0"):
        spectrum.run_probes(
            failing,
            KEY,
            monitor=Monitor(on_progress=lambda *a: seen.append(a[1]), **kept),
            **settings,
        )
    assert seen == [16, 32]  # it stopped in the chunk that failed
    mended = spectrum.run_probes(OPERATOR, KEY, monitor=Monitor(**kept), **settings)
    assert mended.nodes.shape == whole.nodes.shape
    estimates = [spectrum.trace_bracket(measure, share) for measure in (mended, whole)]
    np.testing.assert_allclose(*estimates, rtol=1e-3)


def test_a_failing_operator_stops_a_run_with_a_tolerance():
    with pytest.raises(FloatingPointError, match="at Lanczos step 0 of probe 0"):
        spectrum.trace_within(lambda v: v * jnp.inf, KEY, share, dim=DIM, tolerance=0.1)


@pytest.mark.parametrize("reorthogonalize", lanczos.REORTHOGONALIZE)
def test_a_recurrence_goes_on_beyond_its_first_plan(tmp_path, reorthogonalize):
    start = spectrum.probe(KEY, DIM)
    kept = {"reorthogonalize": reorthogonalize}
    state = lanczos.start(start, num_steps=56, **kept)
    lanczos.save(tmp_path / "state.npz", lanczos.extend(OPERATOR, state, num_steps=56, **kept))
    state = lanczos.with_room(lanczos.load(tmp_path / "state.npz"), 80, **kept)
    deeper = lanczos.finish(lanczos.extend(OPERATOR, state, num_steps=24, **kept))
    at_once = lanczos.tridiagonalize(OPERATOR, start, num_steps=80, **kept)
    assert_same(deeper._replace(basis=None), at_once._replace(basis=None))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    spectrum.run_probes(
        OPERATOR, KEY, dim=DIM, num_steps=4, monitor=Monitor(checkpoint_dir=tmp_path)
    )
    with pytest.raises(ValueError, match="differs in dim: checkpoint 400, this run 3"):
        spectrum.run_probes(
            lambda v: v, KEY, dim=3, num_steps=3, monitor=Monitor(checkpoint_dir=tmp_path)
        )
    with pytest.raises(ValueError, match="basis: checkpoint 'float32', this run 'uint16'"):
        spectrum.run_probes(
            OPERATOR,
            KEY,
            dim=DIM,
            num_steps=4,
            store="bfloat16",
            monitor=Monitor(checkpoint_dir=tmp_path),
        )
    kept = {"dim": DIM, "num_steps": 4, "monitor": Monitor(checkpoint_dir=tmp_path)}
    twice = jax.tree_util.Partial(jnp.multiply, 2 * OPERATOR.args[0])
    with pytest.raises(ValueError, match=r"another run, which differs in operator\.arrays"):
        spectrum.run_probes(twice, KEY, **kept)
    # A program that says nothing of its arrays is told by its first step.
    other = jax.pure_callback
    on_host = lambda v: other(lambda v: 2 * np.asarray(OPERATOR(v)), v, v)  # noqa: E731
    with pytest.raises(ValueError, match="another operator"):
        spectrum.run_probes(on_host, KEY, **kept)


def test_a_saved_recurrence_comes_back_and_foreign_files_are_refused(tmp_path):
    state = lanczos.start(jnp.ones(6), num_steps=4)
    state = lanczos.extend(lambda v: jnp.arange(6.0) * v, state, num_steps=2)
    lanczos.save(tmp_path / "state.npz", state)
    assert_same(lanczos.load(tmp_path / "state.npz"), state)
    spectrum.save(tmp_path / "measure.npz", spectrum.exact_measure(jnp.ones(3)))
    with pytest.raises(ValueError, match="must be a Lanczos recurrence of format 2"):
        lanczos.load(tmp_path / "measure.npz")
    with pytest.raises(ValueError, match=r"state\.npz must be a spectral measure of format 1"):
        spectrum.load(tmp_path / "state.npz")


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-40], lambda b: b[:200], lambda b: b"", lambda b: b"nothing of the kind",
     lambda b: b[:300] + bytes(200) + b[500:]],
    ids=["no end", "only a beginning", "empty", "text", "overwritten"],
)  # fmt: skip
def test_damaged_files_are_refused_by_name(tmp_path, damage):
    state = lanczos.extend(OPERATOR, lanczos.start(jnp.ones(DIM), num_steps=4), num_steps=2)
    spectrum.save(tmp_path / "measure.npz", spectrum.exact_measure(jnp.asarray(EIGENVALUES)))
    lanczos.save(tmp_path / "state.npz", state)
    for name, load in (("measure.npz", spectrum.load), ("state.npz", lanczos.load)):
        path = tmp_path / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(ValueError, match=rf"{name} must be a .* cannot be read as one"):
            load(path)
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(ValueError, match="cannot be read as one"):
        spectrum.load(tmp_path / "array.npy")
    with pytest.raises(FileNotFoundError):
        spectrum.load(tmp_path / "none.npz")


def test_a_save_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path, old = tmp_path / "measure.npz", spectrum.exact_measure(jnp.arange(4.0))
    spectrum.save(path, old)

    def disk_full(file, **fields):
        file.write(b"PK")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", disk_full)
    with pytest.raises(OSError, match="no space left"):
        spectrum.save(path, spectrum.exact_measure(jnp.ones(2)))
    assert_same(spectrum.load(path), old)


def test_a_basis_too_large_is_refused_before_the_run_and_says_what_to_change(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 2**30)
    dim, key = 4_000_000, jax.random.key(0)
    never = jax.tree_util.Partial(lambda v: v)
    for run in (
        lambda: spectrum.spectral_measure(
            never, key, dim=dim, num_steps=100, reorthogonalize="full"
        ),
        lambda: spectrum.spectral_measure(
            never, key, dim=dim, num_steps=48, num_probes=2, vectorize=True
        ),
        lambda: spectrum.run_probes(never, key, dim=dim, num_steps=48, num_probes=2),
        lambda: spectrum.trace_within(never, key, share, dim=dim, tolerance=0.1),
        lambda: lanczos.start(jnp.ones(dim), num_steps=100),
    ):
        with pytest.raises(MemoryError, match=r"takes [128]\.\d+ GiB.*'selective'.*'none'"):
            run()
    state = lanczos.start(jnp.ones(dim), num_steps=10)
    with pytest.raises(MemoryError, match="100 vectors of 4000000 entries"):
        lanczos.with_room(state, 100)
    with pytest.raises(MemoryError, match="num_pairs or basis_size"):
        lanczos.extremal_eigenpairs(never, key, dim=dim, num_pairs=40)


def test_a_device_that_does_not_tell_its_memory_refuses_nothing(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: None)
    memory.check_memory("anything", 1e30, "")


@pytest.mark.parametrize(
    ("damage", "what"), [("truncated", ".*"), ("flipped", "not as it was saved is 0/basis")]
)
def test_a_damaged_checkpoint_is_named(tmp_path, damage, what):
    monitor = Monitor(chunk=16, checkpoint_dir=tmp_path)
    settings = {"dim": DIM, "num_steps": 32, "monitor": monitor}
    spectrum.run_probes(OPERATOR, KEY, **settings)
    data = max((tmp_path / "32" / "run").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    says = rf"checkpoint of step 32 in {tmp_path} is damaged: {what}; move it away"
    with pytest.raises(ValueError, match=says):
        spectrum.run_probes(OPERATOR, KEY, **settings)
