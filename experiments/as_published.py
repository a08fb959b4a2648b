"""The published numbers, read as their authors read them, beside ours: which step moves them?

cd experiments/results; python ../as_published.py fc5-cifar10-paper fc12-cifar10-paper
python experiments/as_published.py --seeds 0 1 2 --output experiments/results/as_published
python experiments/as_published.py --smoke                       # in seconds, that it runs

For an existing run, from its spectrum: one choice after the other, Lanczos depth, plain Gauss
quadrature, a smoothed density, R rounded, ρ on a grid. Beside it the published numbers of its row;
the measured limit as theirs, the sparsest ratio whose test accuracy is above the dense one; and Δ
by both readings. For the seeds of `run`, trained here, two more choices that need the network: the
kernels alone, and ε from the losses of shuffled augmented batches.

Written down before the seeds were run: these two together move the prediction by less than a tenth;
and Δ with each density normalised by its own sum is at most a fifth of Δ as stated.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxlimit import curvature, datasets, flatten_weights, limits, pruning, spectrum
from jaxlimit.lab import as_published, figures, runs
from jaxlimit.lab.console import Stages
from jaxlimit.lab.markdown import markdown_table
from jaxlimit.lab.outcome import finish
from jaxlimit.lab.points import known_or_made
from jaxlimit.lab.results import read_result, read_spectrum
from jaxlimit.lab.rows import read_row
from jaxlimit.lab.settings import TRIAL, RunConfig

HERE = Path(__file__).parent
KERNELS, TOLERANCE = "kernels alone", "ε of shuffled augmented batches"


@dataclasses.dataclass(frozen=True)
class Config:
    """Read the prediction as published."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders with result.json and spectrum.npz."""
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    """Settings of the networks that are trained here."""
    seeds: tuple[int, ...] = ()
    """Their seeds; none by default."""
    depths: tuple[int, ...] = (96, 128)
    """Lanczos steps of their reading."""
    smoke: bool = False
    """A tiny network and the committed FC5 on digits: shows that the command runs."""
    output: Path = Path("runs/as_published")
    """Where as_published.json goes."""


def read(run: Path, depth: int) -> dict[str, float]:
    """Return the prediction by each reading, from ours to theirs at one depth."""
    result = read_result(run)
    measure, curve = read_spectrum(run, result), result.sweep.loss
    if curve.radii is None:
        raise ValueError(f"{run}: the sweep must hold radii; run it again")
    radius_at = as_published.radius_of_sweep(curve.ratios, curve.radii)
    theirs = dataclasses.replace(as_published.THEIRS, depth=depth)
    return {
        label: as_published.predicted_ratio(measure, radius_at, result.epsilon, reading)
        for label, reading in as_published.one_by_one(theirs).items()
    }


def beside(run: Path, readings: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Put the published numbers of a row beside ours, read as theirs and as stated."""
    result = read_result(run)
    name = f"{result.config.model}-{result.config.dataset}"
    path = HERE / "rows" / f"{name}.toml"
    accuracy = result.sweep.accuracy
    above = [ratio for ratio, value in zip(accuracy.ratios, accuracy.values, strict=True)
             if value > accuracy.values[-1]]  # fmt: skip
    rho = result.prediction.ratio
    return {
        "published": read_row(path).published if path.exists() else None,
        "theory": {depth: list(read.values())[-1] for depth, read in readings.items()}
        | {"ours": rho},
        "measured": {"theirs": min(above) if above else None, "ours": result.measured.by_loss},
        "gap": {"theirs": as_published.other_gap(rho, result.gap), "ours": result.gap},
    }


def chain(config: Config, seed: int, stages: Stages) -> dict[str, Any]:
    """Train a network and read it with one choice of theirs after the other."""
    folder = config.output / config.run.name() / f"seed-{seed}"
    net = runs.train(config.run, seed, folder, stages)
    key, state = jax.random.fold_in(jax.random.key(seed), 7), net.trained.state
    at = (*net.args, datasets.to_batches(net.train), state)
    epsilon = float(limits.loss_tolerance(*at))
    spread = as_published.batch_tolerance(
        net.loss, net.trained.params, state, net.train, key,
        batch_size=config.run.training.batch_size,
    )  # fmt: skip
    with stages.time("spectra"):
        whole, of_kernels = (
            measured(at, where, key, max(config.depths)) for where in (curvature.every_leaf, kernel)
        )
    found = {
        "ours": predicted(*whole, epsilon),
        KERNELS: predicted(*of_kernels, epsilon),
        TOLERANCE: predicted(*of_kernels, spread),
    }
    measure, weights = of_kernels
    ratios = np.geomspace(1e-4, 1, 400)
    norm = partial(pruning.removed_norm, net.trained.params, where=kernel)
    radius_at = as_published.radius_of_sweep(ratios.tolist(), jax.vmap(norm)(ratios).tolist())
    theirs = dataclasses.replace(as_published.THEIRS, depth=min(config.depths))
    for label, reading in list(as_published.one_by_one(theirs).items())[1:]:
        found[label] = as_published.predicted_ratio(measure, radius_at, spread, reading)
    kept = pruning.flat_magnitude_mask(weights, round(found[TOLERANCE] * weights.size))
    with stages.time("removed"):
        block = curvature.restrict(curvature.hessian_matvec(*at, where=kernel), ~kept)
        removed = spectrum.spectral_measure(block, key, num_steps=max(config.depths))
    radius = float(jnp.linalg.norm(jnp.where(kept, 0, weights)))
    gap = as_published.gap_by_two_readings(
        measure, removed, radius, spread, dataclasses.replace(theirs, rounded=False)
    )
    return {"seed": seed, "epsilon": epsilon, "spread": spread, "readings": found, "gap": gap}


def predicted(measure: spectrum.SpectralMeasure, weights: Any, epsilon: float) -> float:
    """Predict ρ* as we read it."""
    return float(limits.pruning_limit(measure, weights, epsilon).ratio)


def kernel(name: str, leaf: Any) -> bool:
    """Select the kernels."""
    del leaf
    return name.endswith("kernel")


def measured(at: tuple, where: Any, key: Any, depth: int) -> tuple[Any, Any]:
    """Measure the spectrum of some leaves, and return it with their weights."""
    matvec = curvature.hessian_matvec(*at, where=where)
    weights, _ = flatten_weights(at[1], where)
    return spectrum.spectral_measure(matvec, key, num_steps=depth), weights


def conclude(found: dict[str, Any], chains: list[dict[str, Any]]) -> str:
    """Say which claims held, and what the existing runs show."""
    parts = []
    for name, row in found.items():
        if row["published"] is None or not name.endswith("paper"):
            continue
        theory, gap = row["published"]["theory"], row["published"]["gap"]
        shown = ", ".join(f"{100 * v:.2g} % ({depth})" for depth, v in row["theory"].items())
        above = row["measured"]["theirs"]
        parts.append(
            f"{name}: theory published {theory[0]} ± {theory[1]} %, read as theirs {shown}; actual "
            f"{row['published']['measured'][0]} %, above dense accuracy "
            f"{'nowhere' if above is None else f'{above:.2%}'}; Δ {gap[0]} ± {gap[1]} %, as stated "
            f"{row['gap']['ours']:.2%}, each density by its own sum {row['gap']['theirs']:.2%}"
        )
    if chains:
        moved = [c["readings"][TOLERANCE] / c["readings"]["ours"] - 1 for c in chains]
        share = [abs(c["gap"][1] / c["gap"][0]) for c in chains]
        parts.append(
            f"on {len(chains)} seeds trained here kernels alone and their ε move ρ* by "
            f"{min(moved):+.1%} to {max(moved):+.1%} (claimed: below a tenth), and Δ by its own "
            f"sum is {min(share):.2f} to {max(share):.2f} times Δ as stated (claimed: at most .2)"
        )
    return "; ".join(parts) + "."


def tabulate(rows: dict[str, dict[str, dict[str, float]]], depth: str) -> str:
    """Lay out the readings of runs at one depth, a row a choice."""
    labels = list(next(iter(rows.values()))[depth])
    columns = {"reading": labels}
    columns |= {run: [f"{row[depth][n]:.3%}" for n in labels] for run, row in rows.items()}
    return markdown_table(columns)


def main(config: Config) -> None:
    """Read every run, train every seed, write and print."""
    if config.smoke:
        config = dataclasses.replace(config, runs=(HERE / "results" / "fc5-digits",), run=TRIAL,
                                     seeds=(0,), depths=(8, 16))  # fmt: skip
    if not config.runs and not config.seeds:
        raise ValueError("runs must name at least one folder, or seeds one seed, got neither")
    rows = {
        run.name: {str(depth): read(run, depth) for depth in config.depths} for run in config.runs
    }
    found = {run.name: beside(run, rows[run.name]) for run in config.runs}
    told = {"run": config.run, "depths": config.depths}
    with Stages() as stages:
        chains = [
            known_or_made(config.output / "points" / f"{config.run.model}-{seed}.json",
                               told | {"seed": seed},
                               lambda seed=seed: chain(config, seed, stages))
            for seed in config.seeds
        ]  # fmt: skip
    tables = {depth: tabulate(rows, depth) for depth in map(str, config.depths)} if rows else {}
    if chains:
        by_seed = {f"seed {chain['seed']}": {"": chain["readings"]} for chain in chains}
        tables["seeds"] = tabulate(by_seed, "")
    sentence = conclude(found, chains)
    columns = {f"{run}, {depth} steps": row[depth] for run, row in rows.items() for depth in row}
    trained = f"{config.run.model}-{config.run.dataset}"
    columns |= {f"{trained}, seed {c['seed']}": c["readings"] for c in chains}
    path, drawn = config.output / "as_published.json", figures.plot_readings(columns)
    finish(path, config, sentence, table=tables, figures={"as_published.png": drawn},
           rows=rows, beside=found, chains=chains)  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Config))
