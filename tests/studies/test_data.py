"""Data in all the forms that users have it in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import StudySettings, curvature
from jaxlimit.studies import (
    HostBatches,
    Task,
    check_task,
    count_examples,
    held_batches,
    study,
    study_task,
)


class Tensor:
    """Like PyTorch's: NumPy takes it only once it is detached."""

    def __init__(self, array):
        self.array, self.attached = array, True

    def detach(self):
        found = Tensor(self.array)
        found.attached = False
        return found

    def cpu(self):
        return self

    def __array__(self, dtype=None, copy=None):
        assert not self.attached
        return self.array


class Loader:
    """Shuffles anew on each pass, as loaders do; its last batch is short."""

    def __init__(self, wrap=np.asarray):
        self.x = np.arange(22.0, dtype=np.float32).reshape(11, 2)
        self.passes, self.wrap = 0, wrap

    def __iter__(self):
        self.passes += 1
        order = np.random.default_rng(self.passes).permutation(11)
        for start in range(0, 11, 4):
            yield [self.wrap(self.x[order[start : start + 4]]), self.wrap(order[start : start + 4])]


@pytest.mark.parametrize("wrap", [np.asarray, jnp.asarray, Tensor])
def test_a_loader_is_gone_through_once_and_held(wrap):
    loader = Loader(wrap)
    held = held_batches(loader)
    assert loader.passes == 1
    assert [len(batch[1]) for batch in held] == [4, 4, 3]
    assert count_examples(held) == 11
    assert all(type(leaf) is np.ndarray for batch in held for leaf in batch)
    rows = np.concatenate([batch[0] for batch in held])
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], loader.x)


def test_arrays_and_lists_pass_as_they_are():
    arrays, batches = (np.ones((3, 4, 2)), jnp.ones((3, 4))), [np.ones((4, 2))]
    assert held_batches(arrays) is arrays
    assert held_batches(batches) is batches
    assert count_examples(arrays) == 12


def test_what_one_pass_uses_up_is_refused():
    with pytest.raises(TypeError, match=r"batches must allow more than one pass.*list\(\.\.\."):
        held_batches(iter(Loader()))
    with pytest.raises(TypeError, match="held_out must allow more than one pass"):
        held_batches((x for x in [np.ones(3)]), name="held_out")


def test_what_are_no_batches_is_refused():
    for nothing in ([], (), np.ones(3), np.ones((0, 4, 2)), [np.ones((0, 2))], Loader(np.sum)):
        with pytest.raises(ValueError, match="held_out must h"):
            held_batches(nothing, name="held_out")
    with pytest.raises(TypeError, match="got int"):
        held_batches(3)
    with pytest.raises(ValueError, match="at least one batch"):
        held_batches({"a", "b"} - {"a", "b"})
    with pytest.raises(TypeError, match="arrays of numbers"):
        held_batches(Objects())


class Long:
    """Many batches of one number each."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return (np.full((1, 2), i, np.float32) for i in range(self.count))


@pytest.mark.parametrize("room", [0, 8, 50])
def test_a_loader_that_does_not_fit_is_kept_in_a_file_to_the_last_bit(room):
    wanted = list(Loader())
    held = held_batches(Loader(), memory=room)
    assert isinstance(held, HostBatches)
    assert repr(held) == "HostBatches(3 batches)"
    for batch, other in zip(held, wanted, strict=True):
        for leaf, same in zip(batch, other, strict=True):
            assert isinstance(leaf, np.memmap)
            assert (leaf.dtype, leaf.shape) == (same.dtype, same.shape)
            assert leaf.tobytes() == same.tobytes()
    assert count_examples(held) == 11


def test_arrays_of_numpy_that_do_not_fit_stay_on_the_host():
    arrays = np.arange(24.0).reshape(3, 4, 2), np.arange(12).reshape(3, 4)
    held = held_batches(arrays, memory=100)
    assert isinstance(held, HostBatches)
    np.testing.assert_array_equal(np.stack([batch[0] for batch in held]), arrays[0])
    assert np.shares_memory(held[1][0], arrays[0])
    assert isinstance(held_batches(list(held), memory=100), HostBatches)
    assert held_batches(held, memory=0) is held
    on_device = [jnp.ones((4, 2))]
    assert held_batches(on_device, memory=0) is on_device


def test_a_full_disk_is_told_by_name(monkeypatch):
    class Full:
        def write(self, content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with pytest.raises(OSError, match=r"held_out fit neither memory nor .* set TMPDIR"):
        held_batches(Loader(), name="held_out", memory=1)


def measured(memory, **settings):
    """Study the same task with and without room for its examples."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 6)).astype(np.float32)
    y = (x[:, :2] + 0.1 * rng.standard_normal((90, 2))).astype(np.float32)

    class Pairs:
        def __iter__(self):
            return ((x[i : i + 20], y[i : i + 20]) for i in range(0, 90, 20))

    apply = lambda w, batch: jnp.tanh(batch[0] @ w["in"]) @ w["out"]  # noqa: E731
    square = lambda outputs, batch: jnp.mean((outputs - batch[1]) ** 2)  # noqa: E731
    right = lambda w, batch: jnp.mean((apply(w, batch) - batch[1]) ** 2 < 1)  # noqa: E731
    params = {"in": jnp.asarray(rng.standard_normal((6, 5)), jnp.float32), "out": jnp.ones((5, 2))}
    task = Task(
        curvature.split_loss(apply, square), params, Pairs(), held_out=Pairs(), accuracy=right,
        memory=memory,
    )  # fmt: skip
    how = {"num_ratios": 9, "epsilon": 0.2, "num_held_out": 3, "accuracy_tolerance": 0.2}
    settings = StudySettings(quiet=True, **how, **settings)
    return study_task(task, key=jax.random.key(0), settings=settings)


def test_a_sweep_is_of_all_examples_of_a_loader_that_does_not_fit():
    task = Task(lambda w, batch: jnp.mean((batch @ w) ** 2), jnp.ones(2), Long(100), memory=8 * 7)
    settings = StudySettings(quiet=True, num_ratios=9, epsilon=0.1)
    found = study_task(task, key=jax.random.key(0), budget=0.0, settings=settings)
    assert found.about["num_examples"] == 100
    assert "more than the memory holds: each pass read them" in str(found)
    wanted = np.mean([(2.0 * i) ** 2 for i in range(100)])
    np.testing.assert_allclose(found.measured.dense_loss, wanted, rtol=1e-6)


@pytest.mark.slow
def test_a_whole_study_of_a_loader_that_does_not_fit_is_as_in_memory():
    how = {"num_steps": 16, "num_gap_steps": 4, "num_layer_steps": 4, "tolerance": 0.0}
    streamed, held = measured(500, **how), measured(None, **how)
    assert (streamed.about["on_host"], held.about["on_host"]) == (True, False)
    assert streamed.missing == held.missing
    np.testing.assert_allclose(streamed.measured.losses, held.measured.losses, rtol=1e-5)
    assert streamed.found.num_kept == held.found.num_kept
    np.testing.assert_array_equal(streamed.found.mask, held.found.mask)
    assert streamed.certified.num_kept == held.certified.num_kept
    ratios = [float(found.estimate.prediction.ratio) for found in (streamed, held)]
    np.testing.assert_allclose(*ratios, rtol=1e-3)
    np.testing.assert_array_equal(streamed.layer_limits.kept, held.layer_limits.kept)
    assert streamed.guaranteed == held.guaranteed


class Objects:
    def __iter__(self):
        yield np.array([None, 1], object)


def loss(w, batch):
    return jnp.mean((batch[0] @ w) ** 2)


def test_a_task_is_checked():
    good = Task(loss, jnp.ones(2), Loader())
    assert isinstance(check_task(good).batches, list)
    for changes, error, words in (
        ({"loss": 3}, TypeError, "loss must be a function, got int"),
        ({"operands": [1]}, TypeError, "operands must be a tuple"),
        ({"params": {}}, ValueError, "at least one array"),
        ({"params": jnp.array([jnp.nan, 1.0])}, ValueError, "finite"),
        ({"batches": []}, ValueError, "at least one batch"),
        ({"accuracy": "high"}, TypeError, "accuracy must be a function"),
        ({"loss": lambda w, batch: batch[0]}, TypeError, "one real floating number"),
    ):
        fields = {"loss": loss, "params": jnp.ones(2), "batches": Loader()} | changes
        with pytest.raises(error, match=words):
            check_task(Task(**fields))
    with pytest.raises(TypeError, match=r"my.py:task must be a jaxlimit.Task, got dict"):
        check_task({"loss": loss}, name="my.py:task")


def test_study_refuses_before_it_makes_a_folder(tmp_path):
    with pytest.raises(TypeError, match="allow more than one pass"):
        study(loss, jnp.ones(2), iter(Loader()), key=jax.random.key(0), folder=tmp_path / "run")
    with pytest.raises(TypeError, match="budget must be seconds"):
        study(loss, jnp.ones(2), Loader(), key=jax.random.key(0), folder=tmp_path / "run",
              budget="1h")  # fmt: skip
    assert not (tmp_path / "run").exists()
