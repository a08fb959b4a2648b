"""Data in all the forms that users have it in."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit.studies import Task, check_task, count_examples, held_batches, study


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
    with pytest.raises(MemoryError, match="after 2 batches"):
        held_batches(Loader(), memory=100)


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
    import jax

    with pytest.raises(TypeError, match="gone through more than once"):
        study(loss, jnp.ones(2), iter(Loader()), key=jax.random.key(0), folder=tmp_path / "run")
    with pytest.raises(TypeError, match="budget must be seconds"):
        study(loss, jnp.ones(2), Loader(), key=jax.random.key(0), folder=tmp_path / "run",
              budget="1h")  # fmt: skip
    assert not (tmp_path / "run").exists()
