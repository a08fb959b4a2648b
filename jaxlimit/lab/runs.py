"""A run of the main job: train, predict, prune, compare; continued from its folder if possible."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlimit import (
    LimitEstimate,
    curvature,
    datasets,
    distributed,
    estimate_limit,
    flatten_weights,
    limits,
    models,
    planning,
    pruning,
    spectrum,
    training,
)
from jaxlimit._core.digests import digests, of_json
from jaxlimit.lab import report, sides
from jaxlimit.lab.console import Stages, console
from jaxlimit.lab.jobs import sole_writer
from jaxlimit.lab.results import (
    SPECTRA,
    RunResult,
    kept_spectrum,
    known_result,
    write_result,
)
from jaxlimit.lab.settings import RunConfig
from jaxlimit.pruning import SweepResult


def run(config: RunConfig, seed: int, folder: Path) -> RunResult:
    """Run one seed, write its folder, and return what its result.json holds."""
    with sole_writer(folder), Stages() as stages:
        return analyse(train(config, seed, folder, stages), config, seed, folder, stages)


def known_or_run(config: RunConfig, seed: int, folder: Path) -> RunResult:
    """Read the result in a seed's folder, or run it if there is none with these settings."""
    return known_result(folder, config) or run(config, seed, folder)


class Net(NamedTuple):
    """A trained network with its data and its data loss."""

    module: Any
    trained: training.TrainingResult
    train: datasets.Dataset
    test: datasets.Dataset
    mesh: jax.sharding.Mesh | None

    @property
    def loss(self) -> training.DataLoss:
        """The mean data loss of a batch, `loss(params, batch, state)`."""
        return training.make_loss(self.module, self.trained.normalization)

    @property
    def args(self) -> tuple:
        """Loss and parameters, as the analysis takes them."""
        return self.loss, self.trained.params

    def batches(self, config: RunConfig, num_images: int | None = None) -> list[tuple]:
        """Cut the training set, or its first so many images, into batches."""
        return datasets.to_batches(first(self.train, num_images), config.images_at_once)


def train(config: RunConfig, seed: int, folder: Path, stages: Stages) -> Net:
    """Load the data and train a network on them, or take it from the folder's checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    mesh = distributed.all_devices()
    with stages.time("data"):
        held_out = "validation" if config.dataset.startswith("tiny_imagenet") else "test"
        data = training_images(config)
        test = datasets.load(config.dataset, held_out, config.data_dir)
        test = first(test, config.max_images)
    create = partial(models.create, config.model, num_classes=data.num_classes)
    trainee = create(dtype=getattr(jnp, config.training_dtype))
    with stages.time("training"):
        trained = fit(trainee, data, config.train(seed), folder, stages, mesh)
    return Net(create(), trained, data, test, mesh)


def fit(
    module: Any,
    train: datasets.Dataset,
    config: training.TrainingConfig,
    folder: Path,
    stages: Stages,
    mesh: Any,
) -> training.TrainingResult:
    """Train, or go on from the checkpoint in the folder, and say so."""

    def resumed(metrics):
        done = f"{len(metrics.epoch)} of {config.epochs} epochs"
        console.print(f"resuming from {folder / 'checkpoint'}: {done}")

    monitor = training.Monitor(
        on_epoch=lambda metrics: stages.show("training", int(metrics.epoch), config.epochs),
        on_resume=resumed,
        checkpoint_dir=folder / "checkpoint",
        metrics_path=folder / "metrics.jsonl",
    )
    return training.fit(module, train, config, monitor=monitor, mesh=mesh)


def analyse(net: Net, config: RunConfig, seed: int, folder: Path, stages: Stages) -> RunResult:
    """Predict and measure how far a trained network can be pruned; write and return the result."""
    estimate = predict(net, config, seed, folder, stages)
    with stages.time("taylor"):
        rise = forecast(net, config)
    with stages.time("sweep"):
        sweeps = prune(net, estimate.epsilon, config, stages)
    both = sides.find(net, estimate.epsilon, config, seed, stages) if config.find_mask else None
    findings = report.Findings(estimate, rise, *sweeps, both)
    result = report.collect(
        net, findings, config, seed=seed, stages=stages,
        spectra=spectra_identity(net, config, seed),
    )  # fmt: skip
    if not distributed.is_first():
        return result
    # Last of all the result, since a run whose result is there is not measured again.
    report.draw(folder, estimate.measure, result)
    return write_result(folder, result)


def predict(net: Net, config: RunConfig, seed: int, folder: Path, stages: Stages) -> LimitEstimate:
    """Predict the limit from the Hessian's spectrum, measured now or by an earlier run."""
    state = net.trained.state
    with stages.time("epsilon"):
        epsilon = limits.loss_tolerance(*net.args, net.batches(config), state, mesh=net.mesh)
    identity = spectra_identity(net, config, seed)
    # Named by what makes the recurrences, so a run with other settings begins its own.
    unfinished = folder / f"lanczos-{of_json(identity)[:8]}"
    stored = {name: kept_spectrum(folder / file, identity) for name, file in SPECTRA.items()}
    if stored["measure"] is not None:
        console.print(f"reusing the spectra in {folder}")
    with stages.time("spectrum" if stored["measure"] is None else "spectrum, known"):
        estimate = estimate_limit(
            *net.args,
            net.batches(config, config.hessian_images),
            state,
            key=jax.random.fold_in(jax.random.key(seed), 1),
            epsilon=epsilon,
            num_steps=config.num_steps,
            num_probes=config.num_probes,
            num_gap_steps=config.num_gap_steps,
            tolerance=config.tolerance,
            product_dtype=product_dtype(config),
            on_progress=stages.show,
            mesh=net.mesh,
            checkpoint_dir=unfinished,
            checkpoint_every=config.checkpoint_every,
            measure=stored["measure"],
            removed_measure=stored["removed_measure"],
        )
    distributed.barrier("spectra")  # the others may still be reading those of an earlier run
    if not distributed.is_first():
        return estimate
    for name, file in SPECTRA.items():
        if (measure := getattr(estimate, name)) is not None:
            spectrum.save(folder / file, measure, identity=identity)
    shutil.rmtree(unfinished, ignore_errors=True)
    return estimate


def spectra_identity(net: Net, config: RunConfig, seed: int) -> dict[str, Any]:
    """Collect what identifies the spectra of a run; each of their files holds it."""
    names = ("num_steps", "num_probes", "num_gap_steps", "tolerance", "hessian_images",
             "product_dtype", "dataset", "max_images")  # fmt: skip
    settings = {name: getattr(config, name) for name in names}
    network = of_json(digests((net.trained.params, net.trained.state)))[:8]
    return settings | {"seed": seed, "network": network}


def forecast(net: Net, config: RunConfig) -> SweepResult:
    """Forecast the rise of the loss at each ratio by the second-order Taylor expansion."""
    batches = net.batches(config, config.hessian_images)
    weights, _ = flatten_weights(net.trained.params)
    operator = (*net.args, batches, net.trained.state)
    matvec = curvature.hessian_matvec(*operator, product_dtype=product_dtype(config), mesh=net.mesh)
    gradient = curvature.mean_gradient(*operator, mesh=net.mesh)
    ratios = np.geomspace(config.smallest_ratio, 1, min(60, config.num_ratios))
    rise = jax.block_until_ready(pruning.taylor_forecast(gradient, matvec, weights, ratios))
    return SweepResult(jnp.asarray(ratios), rise, *[jnp.zeros_like(rise)] * 3)


class Sweeps(NamedTuple):
    """Loss on the training set and accuracy on the test set, against the ratio."""

    loss: SweepResult
    accuracy: SweepResult


def prune(net: Net, epsilon: Any, config: RunConfig, stages: Stages) -> Sweeps:
    """Prune at every ratio; then again between the two ratios that hold the limit by loss."""
    state, ratios = net.trained.state, np.geomspace(config.smallest_ratio, 1, config.num_ratios)
    train, test = net.batches(config), datasets.to_batches(net.test, config.images_at_once)

    def sweep(loss, batches, ratios, stage):
        return pruning.magnitude_sweep(
            loss,
            net.trained.params,
            batches,
            ratios,
            state,
            on_progress=stages.show,
            stage=stage,
            mesh=net.mesh,
        )

    coarse = sweep(net.loss, train, ratios, "sweep, loss")
    limit = float(pruning.empirical_limit(coarse, coarse.losses[-1], epsilon))
    between = np.geomspace(limit * ratios[0] / ratios[1], limit, min(22, config.num_ratios))[1:-1]
    fine = sweep(net.loss, train, between, "sweep, near limit")
    both = jax.tree.map(lambda *x: jnp.concatenate(x), coarse, fine)
    order = jnp.argsort(both.ratios)
    return Sweeps(
        jax.tree.map(lambda x: x[order], both),
        sweep(net.loss.accuracy, test, ratios, "sweep, accuracy"),
    )


def first(dataset: datasets.Dataset, count: int | None) -> datasets.Dataset:
    """Take the first `count` examples, or all."""
    return dataset._replace(images=dataset.images[:count], labels=dataset.labels[:count])


def training_images(config: RunConfig) -> datasets.Dataset:
    """Load the training images that a run uses, in the order that they are stored in."""
    data = datasets.load(config.dataset, "train", config.data_dir)
    if config.images_per_class is not None:
        rows = first_of_each_class(data.labels, config.images_per_class)
        data = data._replace(images=data.images[rows], labels=data.labels[rows])
    return first(data, config.max_images)


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the first `count` examples of each class, in ascending order.

    >>> first_of_each_class(np.array([1, 0, 1, 1, 0]), 2).tolist()
    [0, 1, 2, 4]
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(starts, sizes)
    return np.sort(order[place < count])


def product_dtype(config: RunConfig) -> Any:
    """Return the type of the Hessian's products, None for float32."""
    return None if config.product_dtype == "float32" else jnp.dtype(config.product_dtype)


def print_plan(config: RunConfig) -> None:
    """Print the plan for the spectrum of the network as it is before training."""
    train = training_images(config)
    module = models.create(config.model, num_classes=train.num_classes)
    state = dict(module.init(jax.random.key(0), jnp.asarray(train.images[:1], jnp.float32)))
    params, mesh = state.pop("params"), distributed.all_devices()
    workload, ways = planning.prepare(
        training.make_loss(module, training.channel_statistics(train.images)),
        params,
        datasets.to_batches(first(train, config.hessian_images), config.images_at_once),
        state,
        product_dtype=product_dtype(config),
        mesh=mesh,
    )
    counts = {"num_steps": config.num_steps, "num_probes": config.num_probes}
    plan = planning.plan(workload, **counts, **ways)
    where = f", on each of {mesh.size} devices" if mesh else ""
    dim = flatten_weights(params)[0].size
    console.print(f"{config.model} on {config.dataset}, D = {dim:,}{where}", highlight=False)
    console.print(planning.describe(plan), highlight=False)
