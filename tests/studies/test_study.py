"""The whole study of a network trained with Adam and no l1, where the published limit misleads."""

import dataclasses
import itertools

import adam_cnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import StudySettings, pruning
from jaxlimit.studies import Budget, run, study, study_task
from jaxlimit.studies.store import fingerprint


def true_loss(task, mask=None):
    """The loss and the accuracy, in NumPy's order and float64 means over examples."""
    params = task.params if mask is None else pruning.apply_mask(task.params, mask)
    of_example = jax.vmap(lambda x, y: task.loss(params, (x[None], y[None])))
    losses = [of_example(*batch) for batch in task.batches]
    right = [jnp.argmax(adam_cnn.outputs(params, batch), -1) == batch[1] for batch in task.held_out]
    mean = lambda parts: np.concatenate([np.asarray(x, np.float64) for x in parts]).mean()  # noqa: E731
    return mean(losses), mean(right)


def test_it_says_what_not_to_do(adam_study):
    said = str(adam_study)
    assert len(said.splitlines()) <= 25
    assert max(map(len, said.splitlines())) <= 120
    predicted = float(adam_study.estimate.prediction.ratio)
    needed = adam_study.measured.by_loss
    assert predicted < 0.7 * needed
    warning = f"Do not prune at ρ* = {100 * predicted:.3g} %: magnitude needs {100 * needed:.3g} %"
    assert warning in said
    for words in ("smallest mask found", "magnitude, measured",
                  "predicted ρ*, published", "safe on unseen data"):  # fmt: skip
        assert words in said


def test_its_numbers_are_those_of_the_network(adam_study):
    task, measured, found = adam_study.task, adam_study.measured, adam_study.found
    loss, accuracy = true_loss(task)
    np.testing.assert_allclose(measured.dense_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(measured.dense_accuracy, accuracy, rtol=1e-6)
    loss, accuracy = true_loss(task, adam_study.mask)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-4)
    np.testing.assert_allclose(found.accuracy, accuracy, rtol=1e-6)
    assert found.loss <= measured.dense_loss + measured.epsilon
    assert found.num_kept <= measured.by_loss * measured.dim + 1
    assert sum(int(leaf.sum()) for leaf in jax.tree.leaves(adam_study.mask)) == found.num_kept
    magnitude = pruning.magnitude_mask(task.params, adam_study.at_prediction.ratio)
    np.testing.assert_allclose(
        adam_study.at_prediction.loss, true_loss(task, magnitude)[0], rtol=1e-4
    )
    if adam_study.certified is not None:
        assert adam_study.certified.num_kept <= found.num_kept


def test_the_safe_mask_keeps_held_out_accuracy(adam_study):
    safe = adam_study.guaranteed
    _, dense = true_loss(adam_study.task)
    _, accuracy = true_loss(adam_study.task, adam_study.mask_at(safe.ratio))
    np.testing.assert_allclose(safe.accuracy, accuracy, rtol=1e-6)
    assert accuracy >= dense - safe.tolerance
    assert adam_study.ratio <= adam_study.safe_ratio == safe.ratio <= 1


def test_layers_add_up(adam_study):
    layers = adam_study.layers
    assert layers.sizes.sum() == adam_study.measured.dim
    assert layers.found.sum() == adam_study.found.num_kept
    kept = pruning.num_kept(adam_study.measured.dim, adam_study.measured.by_loss)
    assert layers.magnitude.sum() == int(kept)
    for name, count in zip(layers.names, layers.found, strict=True):
        mask = adam_study.mask[name]
        assert count == int(mask["kernel"].sum() + mask["bias"].sum())


def test_masks_between_are_nested(adam_study):
    kept = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(adam_study.mask_at(ratio))])
            for ratio in (0.1, adam_study.ratio, 0.6, 1.0)]  # fmt: skip
    for smaller, larger in itertools.pairwise(kept):
        assert not (smaller & ~larger).any()
    assert kept[0].sum() == int(0.1 * adam_study.measured.dim + 0.5)
    assert kept[-1].all()
    with pytest.raises(ValueError, match=r"ratio must lie in \[0, 1\]"):
        adam_study.mask_at(1.5)


def same(one, other):
    """Equal to the bit in everything that was found."""
    for field in ("measured", "found", "certified", "at_prediction", "layers", "layer_limits",
                  "guaranteed"):  # fmt: skip
        assert fingerprint(getattr(one, field)) == fingerprint(getattr(other, field)), field
    assert fingerprint(one.estimate.prediction) == fingerprint(other.estimate.prediction)


def test_a_second_call_goes_on_from_the_folder(adam_study, tmp_path, monkeypatch):
    folder = adam_study.task.checkpoint.path.parent / "run"
    for name in ("measure", "search", "limits_by_layer", "at_prediction"):
        monkeypatch.setattr(run.stages, name, None)
    monkeypatch.setattr(run.unseen, "guarantee", None)
    again = study_task(
        adam_study.task, key=jax.random.key(0), folder=folder, settings=adam_study.settings
    )
    same(again, adam_study)
    assert again.seconds["mask"] == adam_study.seconds["mask"]
    monkeypatch.undo()
    other = dataclasses.replace(adam_study.settings, epsilon=0.5, num_layer_steps=0)
    with monkeypatch.context() as patch:  # another study takes nothing from it
        patch.setattr(run.stages, "measure", lambda problem: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study_task(adam_study.task, key=jax.random.key(0), folder=folder, settings=other)


def quadratic(w, batch):
    return 0.5 * jnp.mean((batch @ (w - jnp.arange(8.0))) ** 2)


def small(**settings):
    x = jax.random.normal(jax.random.key(1), (1, 64, 8)) * jnp.array([9.0, 9.0] + 6 * [0.01])
    given = {"settings": StudySettings(epsilon=0.1, quiet=True, num_ratios=9)} | settings
    return study(quadratic, jnp.arange(8.0), x, key=jax.random.key(0), **given)


def test_a_budget_is_kept_and_what_is_missing_is_named():
    found = small(budget=0.0)
    assert found.found is None
    assert found.estimate is None
    assert pruning.num_kept(8, found.measured.by_loss) == 7  # all but the weight that is 0
    assert [what.split()[0] for what in found.missing] == [
        "mask", "layers", "spectrum"]  # fmt: skip
    assert "missing: mask (the budget of 0 s is spent)" in str(found)
    found = small(budget=Budget(products=10))
    assert any("spectrum (takes up to 384 products" in what for what in found.missing)
    assert jax.tree.leaves(found.mask)[0].sum() == 7


@pytest.mark.slow
def test_a_loss_that_is_not_split_says_what_is_missing():
    found = small(settings=StudySettings(epsilon=0.1, quiet=True, num_ratios=9, num_steps=8,
                                         num_gap_steps=8))  # fmt: skip
    assert found.certified is None
    assert any("split_loss" in what for what in found.missing)
    assert found.estimate is not None
    assert list(found.layer_limits.names) == list(found.layers.names)


def test_one_writer(tmp_path):
    from jaxlimit._core import locks

    with locks.hold(tmp_path), pytest.raises(locks.InUseError, match="in use"):
        small(folder=tmp_path)


def test_a_study_that_fails_leaves_no_folder(tmp_path):
    def broken(w, batch):
        return jnp.mean(batch @ w) * jnp.nan

    with pytest.raises(FloatingPointError):
        study(broken, jnp.ones(8), jnp.ones((1, 4, 8)), key=jax.random.key(0),
              folder=tmp_path / "a" / "b", settings=StudySettings(quiet=True))  # fmt: skip
    assert not (tmp_path / "a").exists()


def test_settings_are_checked_at_once():
    for wrong in ({"num_steps": 0}, {"delta": 0}, {"accuracy_tolerance": 2}, {"epsilon": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            StudySettings(**wrong)


def test_pruned_before_is_said():
    x = jax.random.normal(jax.random.key(1), (1, 64, 8))
    w = jnp.where(jnp.arange(8) < 4, 0.0, jnp.arange(8.0))
    loss = lambda v, batch: jnp.mean((batch @ (v - w)) ** 2)  # noqa: E731
    found = study(loss, w, x, key=jax.random.key(0), budget=0.0,
                  settings=StudySettings(epsilon=0.1, quiet=True, num_ratios=9))  # fmt: skip
    assert "50 % of the weights are 0 already" in str(found)
