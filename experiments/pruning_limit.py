"""Train a network with l1, predict how sparse it can be pruned, prune it, and compare.

python experiments/pruning_limit.py                       # FC5 on digits, about a minute
python experiments/pruning_limit.py --dataset cifar10 --epochs 200 --l1 2e-4 --data-dir DIR
"""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from pruning_report import draw, report, show, speed

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
from jaxlimit.lab.reporting import (
    OtherRunError,
    Stages,
    console,
    environment,
    plain,
    read_json,
    sole_writer,
    write_json,
)
from jaxlimit.pruning import SweepResult


@dataclasses.dataclass(frozen=True)
class Config:
    """Train, predict, prune, compare."""

    model: str = "fc5"
    """One of fc5, fc12, alexnet, vgg16, resnet18, resnet50."""
    dataset: str = "digits"
    """digits, cifar10, cifar100, tiny_imagenet, or a TFDS name."""
    data_dir: Path | None = None
    """TFDS data directory; else TFDS_DATA_DIR, else TFDS's own default."""
    epochs: int = 400
    learning_rate: float = 0.05
    schedule: Literal["constant", "cosine", "multi-step"] = "cosine"
    milestones: tuple[int, ...] = ()
    warmup_epochs: int = 0
    momentum: float = 0.9
    batch_size: int = 128
    accumulate: int = 1
    """Slices of a batch whose gradients are averaged, to save memory in training."""
    l1: float = 3e-4
    """Strength of the l1 penalty on the weights."""
    l1_method: Literal["subgradient", "proximal"] = "subgradient"
    l2: float = 0.0
    """Strength of the l2 penalty on the weights."""
    sam_radius: float = 0.0
    """Radius of sharpness-aware steps; 0 takes plain ones."""
    augment: bool = False
    """Random crop and flip while training."""
    training_dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of training; weights, and all that is measured afterwards, are float32."""
    max_images: int | None = None
    """For trials: no more training images than so many, the first, and no more test images."""
    seeds: tuple[int, ...] = (0,)
    num_steps: int = 256
    """Lanczos depth a probe, at most."""
    num_probes: int = 1
    num_gap_steps: int = 128
    """Lanczos depth on the removed weights, for the gap."""
    tolerance: float = 0.1
    """Stop Lanczos at 128, 256, 512, ... steps where the interval is this share of the prediction;
    0 takes all steps."""
    images_at_once: int = 1000
    """Images a batch in all that is measured after training; bounds the memory."""
    hessian_images: int = 10_000
    """Training images in the Hessian, the first so many; at most all."""
    product_dtype: Literal["float32", "bfloat16"] = "float32"
    """Operands of the Hessian's matrix products; they accumulate in float32."""
    checkpoint_every: int = 64
    """Lanczos steps a probe between checkpoints."""
    num_ratios: int = 200
    """Ratios in the sweep, spaced evenly in the logarithm."""
    smallest_ratio: float = 1e-4
    accuracy_tolerance: float = 0.01
    """Loss of test accuracy that the limit by accuracy tolerates."""
    dry_run: bool = False
    """Say what memory the spectrum will take and how, and stop."""
    distributed: bool = False
    """This process is one of several, found by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, or by SLURM; they share the devices of all, the data and the run folder."""
    output: Path | None = None
    """Run folder; default runs/MODEL-DATASET-DIGEST, the digest that of the training settings."""

    def __post_init__(self) -> None:
        """Raise now what a run would raise, most of it after the training."""
        models.create(self.model, num_classes=2)
        for seed in self.seeds:
            self.training(seed)
        least = dict.fromkeys(("num_steps", "num_probes", "num_gap_steps", "images_at_once",
                               "hessian_images", "checkpoint_every"), 1)  # fmt: skip
        least |= {"num_ratios": 3, "tolerance": 0, "accuracy_tolerance": 0}
        for name, minimum in least.items():
            if not getattr(self, name) >= minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")
        if not 0 < self.smallest_ratio < 1:
            raise ValueError(f"smallest_ratio must lie in (0, 1), got {self.smallest_ratio}")

    def training(self, seed: int) -> training.TrainingConfig:
        """Select what training is told."""
        names = ("epochs", "learning_rate", "schedule", "milestones", "warmup_epochs", "momentum",
                 "batch_size", "accumulate", "l1", "l1_method", "l2", "sam_radius",
                 "augment")  # fmt: skip
        return training.TrainingConfig(seed=seed, **{name: getattr(self, name) for name in names})

    def network(self) -> dict[str, Any]:
        """Select what decides which network comes out, of any one seed."""
        names = ("model", "dataset", "training_dtype", "max_images")
        return plain(self.training(0)) | {name: getattr(self, name) for name in names}

    def folder(self) -> Path:
        """Name the run folder."""
        name = f"{self.model}-{self.dataset}-{digest(self.network())}".replace("/", "-")
        return self.output or Path("runs") / name


def digest(settings: dict[str, Any]) -> str:
    """Name settings by a few letters that others will not have."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:8]


def fingerprint(tree: Any) -> str:
    """Name arrays by a few letters that others will not have."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()[:8]


def run(config: Config, seed: int) -> dict[str, Any]:
    """Run one seed, write its folder, and return what result.json holds."""
    folder = config.folder() / f"seed-{seed}"
    with sole_writer(folder), Stages() as stages:
        return analyse(train(config, seed, folder, stages), config, seed, folder, stages)


def known(folder: Path, config: Config) -> dict[str, Any] | None:
    """Read the result in a seed's folder; None if it is not there or was made with other settings.

    One older than a flag was made with what is now its default. Where the data and the run folder
    are does not matter, nor how many seeds and processes there were.

    Raises:
        ValueError: if what is there is no JSON, or was changed since.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; remove it to measure again") from error
    free = dict.fromkeys(("output", "data_dir", "seeds", "distributed"))
    made = plain(Config()) | result.get("config", {}) | free
    return result if made == plain(config) | free else None


def train(config, seed, folder, stages) -> "Net":
    """Load the data and train a network on them, or take it from the folder's checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    mesh = distributed.all_devices()
    with stages.time("data"):
        held_out = "validation" if config.dataset.startswith("tiny_imagenet") else "test"
        data, test = (
            first(datasets.load(config.dataset, split, config.data_dir), config.max_images)
            for split in ("train", held_out)
        )
    create = partial(models.create, config.model, num_classes=data.num_classes)
    trainee = create(dtype=getattr(jnp, config.training_dtype))
    with stages.time("training"):
        trained = fit(trainee, data, config, seed, folder, stages, mesh)
    return Net(create(), trained, data, test, mesh)


def analyse(net, config, seed, folder, stages) -> dict[str, Any]:
    """Predict and measure how far a trained network can be pruned; write and return the result."""
    estimate = predict(net, config, seed, folder, stages)
    with stages.time("taylor"):
        rise = forecast(net, config)
    with stages.time("sweep"):
        sweeps = prune(net, estimate.epsilon, config, stages)
    result = report(net, estimate, rise, sweeps, config) | {
        "spectra": spectra_identity(net, config, seed),
        "seed": seed,
        "config": config,
        "environment": environment(),
        "seconds": stages.seconds | {"total": sum(stages.seconds.values())},
        "speed": speed(net, config, stages),
    }
    if distributed.is_first():
        # Last of all, since a run whose result is there is not measured again.
        draw(folder, estimate, sweeps, result, config)
        write_json(folder / "result.json", result)
    return plain(result)


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

    def batches(self, config: Config, num_images: int | None = None) -> list[tuple]:
        """Cut the training set, or its first so many images, into batches."""
        return datasets.to_batches(first(self.train, num_images), config.images_at_once)


def fit(module, train, config, seed, folder, stages, mesh) -> training.TrainingResult:
    """Train, or go on from the checkpoint in the folder, and say so."""

    def resumed(metrics):
        done = f"{len(metrics.epoch)} of {config.epochs} epochs"
        console.print(f"resuming from {folder / 'checkpoint'}: {done}")

    return training.fit(
        module,
        train,
        config.training(seed),
        on_epoch=lambda metrics: stages.show("training", int(metrics.epoch), config.epochs),
        on_resume=resumed,
        checkpoint_dir=folder / "checkpoint",
        metrics_path=folder / "metrics.jsonl",
        mesh=mesh,
    )


def predict(net, config, seed, folder, stages) -> LimitEstimate:
    """Predict the limit from the Hessian's spectrum, measured now or by an earlier run."""
    state = net.trained.state
    with stages.time("epsilon"):
        epsilon = limits.loss_tolerance_estimate(
            *net.args, net.batches(config), state, mesh=net.mesh
        )
    identity = spectra_identity(net, config, seed)
    # Named by what makes the recurrences, so that a run with other settings begins its own.
    unfinished = folder / f"lanczos-{digest(identity)}"
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
            **stored,
        )
    distributed.barrier("spectra")  # the others may still be reading those of an earlier run
    if not distributed.is_first():
        return estimate
    for name, file in SPECTRA.items():
        if (measure := getattr(estimate, name)) is not None:
            spectrum.save(folder / file, measure, identity=identity)
    shutil.rmtree(unfinished, ignore_errors=True)
    return estimate


SPECTRA = {"measure": "spectrum.npz", "removed_measure": "removed_spectrum.npz"}


def spectra_identity(net, config: Config, seed: int) -> dict[str, Any]:
    """Collect what a run's spectra are made from; each of their files holds it."""
    names = ("num_steps", "num_probes", "num_gap_steps", "tolerance", "hessian_images",
             "product_dtype", "dataset", "max_images")  # fmt: skip
    settings = {name: getattr(config, name) for name in names}
    return settings | {
        "seed": seed,
        "network": fingerprint((net.trained.params, net.trained.state)),
    }


def kept_spectrum(path: Path, identity: dict[str, Any]) -> spectrum.SpectralMeasure | None:
    """Read a spectrum; None if it is not there or was made from something else.

    Raises:
        ValueError: if what is there cannot be read.
    """
    try:
        return spectrum.load(path, identity=identity)
    except (FileNotFoundError, OtherRunError):
        return None
    except ValueError as error:
        raise ValueError(f"{error}; remove it to measure again") from error


def read_result(folder: Path) -> dict[str, Any]:
    """Read what a run wrote, as it wrote it."""
    return read_json(folder / "result.json")


def read_spectrum(folder: Path, result: dict[str, Any]) -> spectrum.SpectralMeasure:
    """Read the spectrum that a run's result was read off, not that of a later run in its folder.

    Raises:
        ValueError: if the file in the folder is of another run, or damaged.
    """
    return spectrum.load(folder / SPECTRA["measure"], identity=result["spectra"])


def forecast(net, config) -> SweepResult:
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


def prune(net, epsilon, config, stages) -> Sweeps:
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


def product_dtype(config: Config) -> Any:
    """Return the type of the Hessian's products, None for float32."""
    return None if config.product_dtype == "float32" else jnp.dtype(config.product_dtype)


def print_plan(config: Config) -> None:
    """Print the plan for the spectrum of the network as it is before training."""
    train = datasets.load(config.dataset, "train", config.data_dir)
    train = first(train, config.max_images)
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


def main(config: Config) -> None:
    """Run every seed and, for several, their mean and spread."""
    if config.dry_run:
        print_plan(config)
        return
    results = []
    for seed in config.seeds:
        results.append(run(config, seed))
        show(results[-1], config.folder() / f"seed-{seed}")
    if len(results) > 1:
        predicted = np.array([r["prediction"]["ratio"] for r in results])
        measured = np.array([r["measured"]["by_loss"] for r in results])
        console.print(
            f"{len(results)} seeds: predicted {predicted.mean():.3%} ± {predicted.std(ddof=1):.3%},"
            f" measured {measured.mean():.3%} ± {measured.std(ddof=1):.3%}"
        )


def check_lone(base: Config) -> None:
    """Raise if the settings of the runs of another script ask for what that script does not do."""
    for flag in ("distributed", "dry_run"):
        if getattr(base, flag):
            raise ValueError(f"base.{flag} must be False, got True; ask pruning_limit.py itself")


def start(config: Any, main: Callable[[Any], None] = main) -> None:
    """Run alone, or as one of several processes, the first of which speaks and writes."""
    resume = "The same command again goes on from the newest checkpoints in the run folder."
    with distributed.job(config.distributed, resume=resume):
        console.quiet = not distributed.is_first()
        main(config)


if __name__ == "__main__":
    start(tyro.cli(Config))
