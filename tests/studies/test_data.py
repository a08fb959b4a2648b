"""Data in all the forms that users have it in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import StudySettings
from jaxlimit.studies import (
    Task,
    check_task,
    count_examples,
    held_batches,
    hold,
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
    with pytest.raises(
        TypeError, match=r"batches must be gone through more than once.*list\(\.\.\."
    ):
        held_batches(iter(Loader()))
    with pytest.raises(TypeError, match="held_out must be gone through more than once"):
        held_batches((x for x in [np.ones(3)]), name="held_out")


def test_what_are_no_batches_is_refused():
    with pytest.raises(TypeError, match="got int"):
        held_batches(3)
    with pytest.raises(ValueError, match="at least one batch"):
        held_batches({"a", "b"} - {"a", "b"})
    with pytest.raises(TypeError, match="arrays of numbers"):
        held_batches(Objects())
    with pytest.raises(MemoryError, match=r"one batch of batches takes .* make batches smaller"):
        held_batches(Loader(), memory=50)


class Long:
    """Many batches of one number each."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return (np.full((1, 2), i, np.float32) for i in range(self.count))


@pytest.mark.parametrize(("count", "room", "stride"), [(7, 7, 1), (8, 7, 2), (100, 7, 16)])
def test_of_a_loader_that_does_not_fit_every_so_manieth_batch_is_held(count, room, stride):
    found = hold(Long(count), memory=8 * room)
    assert found.num_given == count
    assert [int(batch[0, 0]) for batch in found.batches] == list(range(0, count, stride))
    assert sum(batch.nbytes for batch in found.batches) <= 8 * room


def test_a_study_says_of_how_many_examples_it_is():
    settings = StudySettings(quiet=True, num_ratios=9, epsilon=0.1)
    task = Task(lambda w, batch: jnp.mean((batch @ w) ** 2), jnp.ones(2), Long(100), memory=8 * 7)
    found = study_task(task, key=jax.random.key(0), budget=0.0, settings=settings)
    assert (found.about["num_given"], found.about["num_examples"]) == (100, 7)
    assert "Of the loader's 100 training examples 7, evenly spread, are all that" in str(found)
    wanted = np.mean([(2.0 * i) ** 2 for i in range(0, 100, 16)])
    np.testing.assert_allclose(found.measured.dense_loss, wanted, rtol=1e-6)


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
    with pytest.raises(TypeError, match=r"my.py:task must return a jaxlimit.Task, got dict"):
        check_task({"loss": loss}, name="my.py:task")


def test_study_refuses_before_it_makes_a_folder(tmp_path):
    with pytest.raises(TypeError, match="gone through more than once"):
        study(loss, jnp.ones(2), iter(Loader()), key=jax.random.key(0), folder=tmp_path / "run")
    with pytest.raises(TypeError, match="budget must be seconds"):
        study(loss, jnp.ones(2), Loader(), key=jax.random.key(0), folder=tmp_path / "run",
              budget="1h")  # fmt: skip
    assert not (tmp_path / "run").exists()
