"""Which knob moves the prediction? Turn each one alone, on one trained network.

python experiments/sensitivity.py                         # FC5 on digits, minutes on two cores
python experiments/sensitivity.py --run runs/fc5-cifar10-paper/seed-0 --num-steps 96
    --samples 1000 2000 5000 20000 50000 --output runs/sensitivity-cifar10

The network is that of a run of `pruning_limit.py`, which the default makes if it is missing. Its
spectrum serves the knobs that need no new product. The others start from the same probe, so that a
setting differs from the baseline by nothing else; their spectra are kept in its folder.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
import tyro

from jaxlimit import curvature, datasets, flatten_weights, limits, spectrum
from jaxlimit.lab import figures, runs
from jaxlimit.lab.console import Stages, console
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.outcome import finish
from jaxlimit.lab.results import kept_spectrum, read_result, read_spectrum
from jaxlimit.lab.settings import RunConfig
from jaxlimit.limits import PruningLimit


@dataclasses.dataclass(frozen=True)
class Config:
    """Turn one knob at a time."""

    run: Path | None = None
    """Folder of a run, with its checkpoint and spectrum; FC5 on digits if none is given."""
    num_steps: int = 128
    """Lanczos steps, at all settings of the other knobs."""
    depths: tuple[int, ...] = (32, 64, 256, 512, 1024)
    """Other depths; those beyond the run's own are left out."""
    num_probes: int = 2
    """Other probes, each alone."""
    samples: tuple[int, ...] = (128, 256, 512, 1024)
    """Other numbers of images in the Hessian, the first of the training set."""
    batch_sizes: tuple[int, ...] = (32, 512)
    """Other sizes of the batch whose spread of the loss is ε, beside 128."""
    output: Path = Path("runs/sensitivity")


def default_run(config: Config) -> Path:
    """Make the run on digits, deep enough, unless it is there."""
    folder = config.output / "fc5-digits" / "seed-0"
    runs.known_or_run(RunConfig(num_steps=256, tolerance=0.0, find_mask=False), 0, folder)
    return folder


def is_kernel(name: str, leaf: Any) -> bool:
    """Select the kernels alone."""
    del leaf
    return name.endswith("kernel")


def cross_entropy(logits, batch):
    """Return the mean loss of a batch from its logits."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


class Bench(NamedTuple):
    """A trained network in its run's folder, whose spectra are measured once and kept there."""

    net: Any
    settings: RunConfig
    seed: int
    folder: Path
    num_steps: int
    stages: Stages

    @property
    def num_images(self) -> int:
        """Return how many images the run's own Hessian has."""
        return min(self.settings.hessian_images, len(self.net.train.labels))

    def spectrum(self, *, images=None, probe=0, matrix="hessian", where=curvature.is_weight):
        """Measure the spectrum of another matrix, from the run's own probe if that is 0."""
        images = min(images or self.num_images, len(self.net.train.labels))
        name = f"{matrix}-{where.__name__}-{images}-images-{self.num_steps}-steps-probe-{probe}"
        path = self.folder / "sensitivity" / f"{name}.npz"
        made_from = runs.spectra_identity(self.net, self.settings, self.seed)
        identity = {"name": name, "run": made_from}
        if (kept := kept_spectrum(path, identity)) is not None:
            console.print(f"reusing {path}")
            return kept
        # As `runs.predict` and `estimate_limit` derive it.
        key = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), 1))[0]
        with self.stages.time(name):
            measure = spectrum.run_probes(
                self._matvec(images, matrix, where),
                jax.random.fold_in(key, probe) if probe else key,
                dim=flatten_weights(self.net.trained.params, where)[0].size,
                num_steps=self.num_steps,
                num_probes=self.settings.num_probes,
                monitor=spectrum.Monitor(on_progress=self.stages.show, stage=name),
            )
        path.parent.mkdir(exist_ok=True)
        spectrum.save(path, measure, identity=identity)
        return measure

    def _matvec(self, images, matrix, where):
        trained, loss = self.net.trained, self.net.loss
        make = {
            "hessian": partial(curvature.hessian_matvec, loss),
            "gauss-newton": partial(curvature.gauss_newton_matvec, loss.logits, cross_entropy),
        }[matrix]
        batches = datasets.to_batches(runs.first(self.net.train, images))
        narrow = runs.product_dtype(self.settings)
        return make(trained.params, batches, trained.state, where=where, product_dtype=narrow)


def turn_knobs(
    bench: Bench, measure: spectrum.SpectralMeasure, config: Config
) -> dict[str, dict[str, PruningLimit]]:
    """Predict the limit at every setting of every knob; the baseline is in each of them."""
    net, num_images = bench.net, bench.num_images
    everything = datasets.to_batches(net.train)
    tolerance = partial(limits.loss_tolerance_estimate, *net.args, everything, net.trained.state)
    predict = partial(limits.pruning_limit, weights=net.trained.params, epsilon=tolerance())
    shallow = spectrum.truncate(measure, config.num_steps)
    base = predict(shallow)
    known_depths = [x for x in config.depths if x <= measure.nodes.shape[-1]]
    without_biases = bench.spectrum(where=is_kernel)
    return {
        "ε from batches of": in_order(base, 128, config.batch_sizes, lambda size: predict(
            shallow, epsilon=tolerance(batch_size=size)
        )),
        "λ < 0": {"as |λ|": base, "as 0": predict(shallow, negative="clip")},
        "Lanczos depth": in_order(base, config.num_steps, known_depths, lambda depth: predict(
            spectrum.truncate(measure, depth)
        )),
        "probe": {"the run's own": base} | {
            f"another, {i}": predict(bench.spectrum(probe=i))
            for i in range(1, config.num_probes + 1)
        },
        "Hessian images": in_order(base, num_images, config.samples, lambda images: predict(
            bench.spectrum(images=images)
        )),
        "matrix": {
            "Hessian": base,
            "Gauss-Newton": predict(bench.spectrum(matrix="gauss-newton")),
        },
        "biases": {
            "pruned too": base,
            "left alone": predict(without_biases, where=is_kernel),
        },
    }  # fmt: skip


def in_order(base, at, others, predict) -> dict[str, PruningLimit]:
    """Predict at numeric settings beside the baseline's, from the smallest to the largest."""
    found = {number: predict(number) for number in others if number != at} | {at: base}
    return {f"{number:,}": found[number] for number in sorted(found)}


def compare(knobs: dict[str, dict[str, PruningLimit]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Compare every setting with the baseline, which all knobs share."""
    first, second, *_ = (list(settings.values()) for settings in knobs.values())
    base = next(limit for limit in first if any(limit is other for other in second))
    return {
        knob: {
            setting: limit._asdict()
            | {"baseline": limit is base, "change": float(limit.ratio / base.ratio) - 1}
            for setting, limit in settings.items()
        }
        for knob, settings in knobs.items()
    }


def table(knobs: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Lay the settings out in markdown."""
    rows = [(knob, name, x) for knob, settings in knobs.items() for name, x in settings.items()]
    percent = lambda x: f"{100 * float(x):.3g} %"  # noqa: E731
    return markdown_table(
        {
            "knob": [knob for knob, *_ in rows],
            "setting": [name for _, name, _ in rows],
            "ρ*": [percent(x["ratio"]) for *_, x in rows],
            "95 % interval": [f"{percent(x['lower'])} to {percent(x['upper'])}" for *_, x in rows],
            "change": ["baseline" if x["baseline"] else f"{x['change']:+.1%}" for *_, x in rows],
        }
    )


def conclude(knobs: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Say in one sentence which knob matters."""
    changes = {knob: [x["change"] for x in settings.values()] for knob, settings in knobs.items()}
    size = {knob: max(map(abs, change)) for knob, change in changes.items()}
    ranked = sorted(size, key=lambda knob: -size[knob])
    say = lambda knob: f"{knob} ({min(changes[knob]):+.0%} to {max(changes[knob]):+.0%})"  # noqa: E731
    base = next(x for settings in knobs.values() for x in settings.values() if x["baseline"])
    strong = [say(knob) for knob in ranked if size[knob] >= 0.1]
    weak = [say(knob) for knob in ranked if size[knob] < 0.1]
    return (
        f"Of the knobs turned alone about ρ* = {float(base['ratio']):.3%} these move it by a tenth "
        f"or more: {', '.join(strong) or 'none'}; and these by less: {', '.join(weak) or 'none'}."
    )


def main(config: Config) -> None:
    """Turn the knobs, write, draw, and say which matters."""
    folder = config.run or default_run(config)
    result = read_result(folder)
    settings, measure = result.config, read_spectrum(folder, result)
    with Stages() as stages:
        net = runs.train(settings, result.seed, folder, stages)
        bench = Bench(net, settings, result.seed, folder, config.num_steps, stages)
        knobs = compare(turn_knobs(bench, measure, config))
    sentence, laid_out = conclude(knobs), table(knobs)
    name = f"{settings.model} on {settings.dataset}"
    finish(
        config.output / "result.json",
        config,
        sentence,
        table=laid_out,
        figures={
            "sensitivity.png": figures.plot_sensitivity(knobs, title=f"One knob at a time, {name}")
        },
        knobs=knobs,
        network=settings,
        seconds=stages.seconds,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
