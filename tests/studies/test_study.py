"""The whole study of a network trained with Adam and no l1, where the published limit misleads."""

import dataclasses
import itertools

import adam_cnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import StudySettings, curvature, limits, pruning
from jaxlimit._core.digests import fingerprint
from jaxlimit.studies import Budget, run, study, study_task
from jaxlimit.studies.findings import Certified


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


@pytest.mark.parametrize(("remainder", "binds"), [(-2.5, False), (0.6, False), (0.2, True)])
def test_a_certificate_of_another_function_than_the_loss_is_called_so(adam_study, remainder, binds):
    shares = np.array([0.3, 0.7 - remainder, remainder])
    certified = Certified(adam_study.found.num_kept - 1, 0.0, 10, np.nan, shares)
    said = str(dataclasses.replace(adam_study, certified=certified))
    assert not any(line.lstrip().startswith("%") for line in said.splitlines())
    said = said.replace("\n  ", " ")
    assert f"what the model misses {100 * remainder:.3g} %." in said
    assert ("does not bind the loss" in said) is not binds
    assert ("the best mask lies between" in said) is binds


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
        "mask", "layers", "spectrum", "certificate"]  # fmt: skip
    assert "missing: mask (the budget of 0 s is spent)" in str(found)
    assert jax.tree.leaves(found.mask)[0].sum() == 7
    found = small(budget=Budget(products=10))
    assert any("spectrum (takes up to 384 products" in what for what in found.missing)
    np.testing.assert_array_equal(found.mask, jnp.arange(8) == 1)  # a search without a certificate


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


@pytest.mark.parametrize("change", ["loss", "closed over", "where", "accuracy"])
def test_another_loss_finds_no_stage_of_this_one(change, tmp_path):
    """In the same folder, with the same weights, data and settings."""
    scale = {"of": 1.0}

    def squares(params, batch):
        return jnp.mean((scale["of"] * (batch @ params["a"] @ params["b"]) - 1) ** 2)

    def cubes(params, batch):
        return jnp.mean(jnp.abs(batch @ params["a"] @ params["b"] - 1) ** 3)

    params = {"a": jnp.array([[1.0, 2.0], [0.5, 1.0], [3.0, 0.1]]), "b": jnp.array([0.5, 0.3])}
    batches = jax.random.normal(jax.random.key(1), (2, 16, 3))
    settings = StudySettings(epsilon=0.1, num_ratios=6, quiet=True)
    kept = {"key": jax.random.key(0), "budget": 0.0, "folder": tmp_path, "settings": settings}

    def near(params, batch, within=1.0):
        return jnp.mean(jnp.abs(batch @ params["a"] @ params["b"] - 1) < within, dtype=jnp.float32)

    task = {"loss": squares, "params": params, "batches": batches, "accuracy": near}
    first = study(**task, **kept).measured
    if change == "closed over":
        scale["of"] = 1.01
    other = {"closed over": {}, "where": {"where": lambda name, leaf: name == "a"}}
    other["accuracy"] = {"accuracy": lambda params, batch: near(params, batch, within=2.0)}
    task |= other.get(change, {"loss": cubes})
    found, fresh = (study(**task, **kept | {"folder": f}).measured for f in (tmp_path, None))
    name = "accuracies" if change == "accuracy" else "losses"
    np.testing.assert_array_equal(getattr(found, name), getattr(fresh, name))
    assert not np.array_equal(getattr(found, name), getattr(first, name))


def test_a_study_that_fails_leaves_no_folder(tmp_path):
    def broken(w, batch):
        return jnp.mean(batch @ w) * jnp.nan

    with pytest.raises(FloatingPointError):
        study(broken, jnp.ones(8), jnp.ones((1, 4, 8)), key=jax.random.key(0),
              folder=tmp_path / "a" / "b", settings=StudySettings(quiet=True))  # fmt: skip
    assert not (tmp_path / "a").exists()


def test_settings_are_checked_at_once():
    nothing = [{"epsilon": value} for value in (-1, float("inf"), 1e39, float("nan"))]
    for wrong in ({"num_steps": 0}, {"delta": 0}, {"accuracy_tolerance": 2}, *nothing):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            StudySettings(**wrong)


@pytest.mark.parametrize("below", ["", "runs/one"])
def test_a_file_in_place_of_the_folder_is_named_at_once(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    batches = jnp.ones((1, 8, 2))
    with pytest.raises(NotADirectoryError, match=r"folder must be a folder, .*file is a file"):
        study(lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones(2), batches, key=jax.random.key(0),
              folder=tmp_path / "file" / below)  # fmt: skip
    assert (tmp_path / "file").read_text() == "mine"


def test_pruned_before_is_said():
    x = jax.random.normal(jax.random.key(1), (1, 64, 8))
    w = jnp.where(jnp.arange(8) < 4, 0.0, jnp.arange(8.0))
    loss = lambda v, batch: jnp.mean((batch @ (v - w)) ** 2)  # noqa: E731
    found = study(loss, w, x, key=jax.random.key(0), budget=0.0,
                  settings=StudySettings(epsilon=0.1, quiet=True, num_ratios=9))  # fmt: skip
    assert "50 % of the weights are 0 already" in str(found)


def indefinite(w, batch):
    """A quadratic whose Hessian has the eigenvalue -0.02 twice, not in the axes' directions."""
    away = w - jnp.array([2.0, -1.5, 1.0, 0.8, 0.5, 0.3, 0.2, 0.1])
    return 0.5 * jnp.mean((batch @ away) ** 2) - 0.01 * jnp.sum(away**2)


def test_a_loss_of_one_piece_is_certified_by_its_hessian():
    """Against all 256 masks of a loss that is its own quadratic."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((40, 8)) @ np.diag([1, 1, 1, 0.7, 0.5, 0.4, 0, 0])
    rows = jnp.asarray((rows @ np.linalg.qr(rng.standard_normal((8, 8)))[0])[None], jnp.float32)
    w = jnp.array([2.0, -1.5, 1.0, 0.8, 0.5, 0.3, 0.2, 0.1])
    for epsilon in (0.1, 0.5):
        settings = StudySettings(epsilon=epsilon, quiet=True, num_ratios=9, num_layer_steps=0)
        found = study(indefinite, w, rows, key=jax.random.key(0), settings=settings)
        masks = np.array(list(itertools.product([0.0, 1.0], repeat=8)))
        losses = np.array([float(indefinite(w * jnp.asarray(mask), rows[0])) for mask in masks])
        best = masks[losses <= float(indefinite(w, rows[0])) + epsilon].sum(1).min()
        certified = found.certified
        assert certified.shift == pytest.approx(0.02, abs=1e-4)
        assert 0 < certified.num_kept <= best <= found.found.num_kept
        assert best - certified.num_kept <= 3
        np.testing.assert_allclose(certified.shares[2], 0, atol=1e-4)  # it is its own quadratic
        assert "certificate of the Hessian's (+ 0.02 I) quadratic" in str(found)
        assert not any("certificate" in what for what in found.missing)


def test_without_a_spectrum_a_loss_of_one_piece_is_not_certified():
    found = small(settings=StudySettings(epsilon=0.1, quiet=True, num_ratios=9, num_steps=1,
                                         num_layer_steps=0), budget=Budget(products=0))  # fmt: skip
    assert found.certified is None
    assert any(what.startswith("certificate (the loss is not split") for what in found.missing)


def test_the_products_of_the_certificate_are_those_asked_for(monkeypatch):
    asked = []
    smallest = pruning.smallest_mask
    monkeypatch.setattr(pruning, "smallest_mask", lambda *args, **how: (
        asked.append(how["budget"].num_products), smallest(*args, **how))[1])  # fmt: skip
    small(settings=StudySettings(epsilon=0.1, quiet=True, num_ratios=9, certificate_products=7),
          budget=Budget(products=0))  # fmt: skip
    assert asked == [7]


def test_a_mesh_reaches_every_stage(monkeypatch):
    """Of one device here; `mesh_cases` compares eight with one."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    seen = set()

    def watched(function, name):
        def call(*args, **how):
            assert how["mesh"] == mesh, name
            seen.add(name)
            return function(*args, **how)

        return call

    for home, name in (
        (pruning, "magnitude_sweep"), (pruning, "smallest_mask"), (limits, "loss_tolerance"),
        (run.stages, "estimate_limit"), (run.stages, "layer_limits"),
        (curvature, "hessian_matvec"), (curvature, "mean_gradient"),
    ):  # fmt: skip
        monkeypatch.setattr(home, name, watched(getattr(home, name), name))
    settings = StudySettings(quiet=True, num_ratios=9, num_steps=8, num_gap_steps=2,
                             num_layer_steps=2)  # fmt: skip
    found = small(settings=settings, mesh=mesh)
    assert len(seen) == 7
    assert found.missing == ()


def test_what_is_no_mesh_is_refused():
    with pytest.raises(TypeError, match=r"mesh must be a jax.sharding.Mesh, got int"):
        small(mesh=2)
