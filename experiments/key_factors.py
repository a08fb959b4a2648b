"""Train one network flatter or sharper, with smaller or larger weights: does its limit follow?

python experiments/key_factors.py                         # FC5 on digits, half an hour
python experiments/key_factors.py --base.dataset cifar10 --base.epochs 20 --output DIR

Every setting is one run of `pruning_limit.py` in its own folder, and is not repeated. A second part
prunes the base network in rounds with training in between, and for comparison in one shot.
"""

import dataclasses
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import tyro

from jaxlimit import limits, pruning, spectrum, training
from jaxlimit.lab import figures, runs
from jaxlimit.lab.console import Stages, console
from jaxlimit.lab.content import plain
from jaxlimit.lab.outcome import finish
from jaxlimit.lab.results import RunResult, known_result, read_spectrum
from jaxlimit.lab.settings import RunConfig, Training
from jaxlimit.lab.statistics import rank_correlation
from jaxlimit.pruning import SweepResult


@dataclasses.dataclass(frozen=True)
class Config:
    """Vary one setting of training at a time, then prune gradually."""

    base: RunConfig = dataclasses.field(
        default_factory=lambda: RunConfig(
            training=Training(epochs=300), num_steps=64, num_gap_steps=8, find_mask=False
        )
    )
    """The run that all others differ from in one setting."""
    learning_rate: tuple[float, ...] = (0.0125, 0.025, 0.1)
    """Other learning rates."""
    batch_size: tuple[int, ...] = (64, 256)
    """Other batch sizes, at as many epochs."""
    sam_radius: tuple[float, ...] = (0.05, 0.2)
    """Radii of sharpness-aware steps."""
    l2: tuple[float, ...] = (1e-3, 5e-3)
    """Strengths of the l2 penalty."""
    l1: tuple[float, ...] = (6e-4, 1.2e-3)
    """Other strengths of the l1 penalty."""
    ratios: tuple[float, ...] = (6e-3, 2e-3, 7e-4)
    """Fractions of all weights kept after each round of gradual pruning; none leaves it out."""
    retrain_epochs: int = 40
    """Epochs of training after each round, with the settings of the base otherwise."""
    output: Path = Path("runs/key_factors")


FACTORS = ("learning_rate", "batch_size", "sam_radius", "l2", "l1")


class Setting(NamedTuple):
    """A run that differs from the base in at most one factor."""

    factor: str
    value: Any
    run: RunConfig
    folder: Path


def settings(config: Config) -> list[Setting]:
    """List the runs, the base first."""
    base = Setting("base", None, config.base, config.output / "base" / "seed-0")
    return [base] + [
        Setting(name, value, config.base.replace(**{name: value}),
                config.output / f"{name}-{value:g}" / "seed-0")
        for name in FACTORS
        for value in getattr(config, name)
    ]  # fmt: skip


def measure(setting: Setting, epsilon: float | None = None) -> dict[str, Any]:
    """Run a setting, or read its result; find its limits again at a common ε."""
    _, _, run, folder = setting
    with Stages() as stages:
        net = runs.train(run, 0, folder, stages)
        result = analyse(net, run, folder, stages)
    epsilon = epsilon or result.epsilon
    hessian = read_spectrum(folder, result)
    again = limits.pruning_limit(hessian, net.trained.params, epsilon)
    ratios, losses = jnp.array(result.sweep.loss.ratios), jnp.array(result.sweep.loss.values)
    sweep = SweepResult(ratios, losses, *[jnp.zeros_like(losses)] * 3)
    return summarise(result) | {
        "trace": spectrum.trace_function(hessian, lambda x: x).value * result.dim,
        "common_epsilon": {
            "predicted": again.ratio,
            "measured": pruning.empirical_limit(sweep, losses[-1], epsilon),
        },
    }


def analyse(net: runs.Net, run: RunConfig, folder: Path, stages: Stages) -> RunResult:
    """Predict and measure, or read what an earlier run with the same settings found."""
    return known_result(folder, run) or runs.analyse(net, run, 0, folder, stages)


def summarise(result: RunResult) -> dict[str, Any]:
    """Select what a row of the result holds of one network."""
    return {
        "predicted": result.prediction.ratio,
        "interval": [result.prediction.lower, result.prediction.upper],
        "clipped": result.clipped.ratio,
        "measured": result.measured.by_loss,
        "epsilon": result.epsilon,
        "absolute_trace": result.factors.trace,
        "largest": result.eigenvalues.largest,
        "norm": result.factors.norm,
        "radius": result.factors.radius,
        "support": result.baseline.support,
        "taylor": result.baseline.taylor,
        "distance_from_minimum": result.distance_from_minimum.relative,
        "loss": result.dense.loss,
        "accuracy": result.dense.accuracy,
    }


def prune_in_rounds(config: Config) -> dict[str, Any]:
    """Prune the base network in rounds, training after each, and in one shot to the same ratios.

    The one shot gets as many epochs afterwards as the rounds up to there got together.
    """
    base = settings(config)[0]
    run = base.run

    def step(name: str, net: runs.Net, ratio: float, epochs: int) -> tuple:
        folder = config.output / f"{name}-{epochs}-epochs"
        folder.mkdir(parents=True, exist_ok=True)
        with Stages() as stages:
            with stages.time("retraining"):
                after, row = prune_once(net, ratio, epochs, run)
            return after, row | {"after": summarise(analyse(after, run, folder, stages))}

    with Stages() as stages:
        dense = before = runs.train(run, 0, base.folder, stages)
    gradual, one_shot, name = [], [], "gradual"
    for done, ratio in enumerate(config.ratios, 1):
        # Named by all that made it, for what is found in a folder is taken for its own.
        name += f"-{ratio:g}"
        before, row = step(name, before, ratio, config.retrain_epochs)
        gradual.append(row)
        if done > 1:  # the first round is a single shot itself
            _, row = step(f"one_shot-{ratio:g}", dense, ratio, done * config.retrain_epochs)
        one_shot.append(row)
    return {"dense": score(dense), "gradual": gradual, "one_shot": one_shot}


def prune_once(
    net: runs.Net, ratio: float, epochs: int, run: RunConfig
) -> tuple[runs.Net, dict[str, Any]]:
    """Prune a network to a ratio, train what is kept, and say what each step did."""
    trained = net.trained
    mask = pruning.magnitude_mask(trained.params, ratio)
    pruned = trained._replace(params=pruning.apply_mask(trained.params, mask))
    again = training.fit(
        net.module,
        net.train,
        run.replace(epochs=epochs).train(0),
        start=pruned,
        mask=mask,
    )
    after = net._replace(trained=again)
    return after, {
        "ratio": ratio,
        "radius": pruning.removed_norm(trained.params, ratio),
        "pruned": score(net._replace(trained=pruned)),
        "retrained": score(after),
    }


def score(net) -> dict[str, Any]:
    """Return training loss and test accuracy."""
    at = net.trained
    evaluate = partial(
        training.evaluate, net.module, at.params, at.state, normalization=at.normalization
    )
    return {"loss": evaluate(net.train).loss, "accuracy": evaluate(net.test).accuracy}


def correlate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rank-correlate the limits with flatness, magnitude, ε and the support, and with each other.

    Each is a pair: the runs with their own ε, and all with that of the base.
    """
    causes = ("absolute_trace", "norm", "epsilon", "support", "measured")
    table: dict[str, Any] = {"n": len(rows)}
    for limit in ("predicted", "measured"):
        own, common = [r[limit] for r in rows], [r["common_epsilon"][limit] for r in rows]
        table[limit] = {
            cause: [rank_correlation(values, [r[cause] for r in rows]) for values in (own, common)]
            for cause in causes
            if cause != limit
        }
    return table


def conclude(config: Config, table: dict[str, Any]) -> str:
    """Say what the trainings show."""

    def correlation(cause: str, at: int) -> str:
        predicted, measured = (table[limit][cause][at] for limit in ("predicted", "measured"))
        return f"{predicted:+.2f} predicted and {measured:+.2f} measured"

    return (
        f"Over {table['n']} trainings of {config.base.model} on {config.base.dataset} the rank "
        f"correlation of ρ* with tr|H| is {correlation('absolute_trace', 0)} "
        f"({correlation('absolute_trace', 1)} at one ε for all), with ‖w‖ {correlation('norm', 0)} "
        f"({correlation('norm', 1)}), with the support {correlation('support', 0)}, and of "
        f"predicted with measured {table['predicted']['measured'][0]:+.2f}."
    )


def conclude_regularisation(rows: list[dict[str, Any]], of_base: dict[str, float]) -> str:
    """Say what stronger penalties do to the weights and to the limit."""

    def change(path: list[dict[str, Any]], name: str, form: str) -> str:
        values = [row[name] for row in path]
        steps = list(pairwise(values))
        falls, rises = all(a > b for a, b in steps), all(a < b for a, b in steps)
        verb = "falls" if falls else "rises" if rises else "goes, not steadily,"
        return f"{verb} from {values[0]:{form}} to {values[-1]:{form}}"

    parts = []
    for penalty in ("l1", "l2"):
        strengths = [(of_base[penalty] if row["value"] is None else row["value"], row)
                     for row in rows if row["factor"] in ("base", penalty)]  # fmt: skip
        strengths.sort(key=lambda pair: pair[0])
        if len(strengths) > 1:
            path = [row for _, row in strengths]
            parts.append(
                f"With {penalty} from {strengths[0][0]:g} to {strengths[-1][0]:g} ‖w‖ "
                f"{change(path, 'norm', '.3g')}, ρ* predicted {change(path, 'predicted', '.3%')} "
                f"and measured {change(path, 'measured', '.3%')}."
            )
    return " ".join(parts)


def conclude_rounds(rounds: dict[str, Any], epsilon: float) -> str:
    """Say what gradual pruning shows."""

    def reached(arm: str) -> str:
        within = [row["ratio"] for row in rounds[arm]
                  if row["retrained"]["loss"] <= rounds["dense"]["loss"] + epsilon]  # fmt: skip
        return f"down to ρ = {min(within):.2%}" if within else "at no ratio tried"

    gradual, one_shot = (rounds[arm][-1] for arm in ("gradual", "one_shot"))
    return (
        f"Trained in between, pruning in rounds is within ε {reached('gradual')}, one shot with as "
        f"many epochs {reached('one_shot')}; to ρ = {gradual['ratio']:.2%} the last round removes "
        f"R = {gradual['radius']:.3g}, the one shot {one_shot['radius']:.3g}, and their training "
        f"losses end at {gradual['retrained']['loss']:.3g} and {one_shot['retrained']['loss']:.3g}."
    )


def main(config: Config) -> None:
    """Run every setting, prune in rounds, draw, and say what it shows."""
    base, *others = settings(config)
    first = measure(base)
    rows = [{"factor": "base", "value": None} | first]
    for setting in others:
        name, value, *_ = setting
        console.rule(f"{name} {value:g}")
        rows.append({"factor": name, "value": value} | measure(setting, first["epsilon"]))
    rows = plain(rows)
    table = {"all": correlate(rows)} | {
        name: correlate([rows[0]] + [r for r in rows if r["factor"] == name])
        for name in FACTORS if len(getattr(config, name)) > 1
    }  # fmt: skip
    of_base = {name: getattr(config.base.training, name) for name in FACTORS}
    sentences = [conclude(config, table["all"])]
    if any(r["factor"] in ("l1", "l2") for r in rows):
        sentences.append(conclude_regularisation(rows, of_base))
    title = f"{config.base.model} on {config.base.dataset}"
    drawn = {"factors.png": figures.plot_factors(rows, of_base, title=title)}
    rounds = None
    if config.ratios:
        console.rule("gradual pruning")
        rounds = plain(prune_in_rounds(config))
        sentences.append(conclude_rounds(rounds, first["epsilon"]))
        drawn["rounds.png"] = figures.plot_rounds(rounds, first["epsilon"], title=title)
    path = config.output / "result.json"
    finish(path, config, sentences, figures=drawn, rows=rows, rank_correlations=table,
           rounds=rounds)  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Config))
