import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit._core.batches import first_batch, group_batches, leading_size, mean_over

RNG = np.random.default_rng(0)
RAGGED = [RNG.normal(size=shape) for shape in [(4, 2), (3, 2), (4, 2), (4, 5)]]


def test_batches_are_grouped_by_shape_and_weighted_by_size():
    groups = group_batches(RAGGED)
    assert [group.batches.shape for group in groups] == [(2, 4, 2), (1, 3, 2), (1, 4, 5)]
    np.testing.assert_allclose([group.share for group in groups], [8 / 15, 3 / 15, 4 / 15])


def test_a_mean_over_batches_counts_each_example_once():
    def of_batch(batch):
        return jnp.mean(jnp.sum(batch**2, axis=1))

    expected = np.mean(np.concatenate([np.sum(batch**2, axis=1) for batch in RAGGED]))
    np.testing.assert_allclose(mean_over(group_batches(RAGGED), of_batch), expected, rtol=1e-6)
    with jax.enable_x64(True):
        mean = mean_over(group_batches(RAGGED), of_batch)
    np.testing.assert_allclose(mean, expected, rtol=1e-15)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_mean_adds_in_float32_at_least(dtype):
    """In bfloat16 a sum of 2,000 ones ends at 256, where one more is rounded off."""
    values = np.random.default_rng(0).uniform(size=2000).astype(np.float32)
    batches = jnp.asarray(values, dtype)[:, None]
    mean = mean_over(group_batches(batches), lambda batch: batch.mean())
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, np.asarray(batches, np.float64).mean(), rtol=1e-6)


def test_both_forms_have_a_first_batch():
    pair = {"x": np.arange(12).reshape(2, 3, 2), "y": np.arange(6).reshape(2, 3)}
    first = first_batch(pair)
    assert (first["x"].shape, first["y"].shape, leading_size(first)) == ((3, 2), (3,), 3)
    np.testing.assert_array_equal(first_batch(RAGGED), RAGGED[0])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches must hold at least one batch"),
        ({}, r"batches must have leaves .*got shapes \[\]"),
        (np.ones(3), r"leaves \[num_batches, batch, ...\], .*\(3,\)"),
        (np.ones((0, 3, 2)), r"nonzero number of examples, got shapes \[\(0, 3, 2\)\]"),
        (np.ones((3, 0, 2)), r"nonzero number of examples, got shapes \[\(0, 2\)\]"),
        ((np.ones((2, 3)), np.ones((2, 4))), r"got shapes \[\(3,\), \(4,\)\]"),
        ([np.ones((2, 3)), np.ones((0, 3))], r"got shapes \[\(0, 3\)\]"),
        ([np.float32(1.0)], r"got shapes \[\(\)\]"),
    ],
)
def test_empty_and_uneven_batches_are_named(batches, message):
    with pytest.raises(ValueError, match=message):
        group_batches(batches)
